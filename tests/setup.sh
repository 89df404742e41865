#!/usr/bin/env bash
# Everything `make demo` and `make test` need on a Debian machine, installed once. Idempotent: says
# what it does and does nothing when all is there. Run as root.
#
#   tests/setup.sh build   what building needs (compiler, guest kernel)
#   tests/setup.sh test    what the tests need besides (registry, CNI plugins, emulator, Go)
set -euo pipefail

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

build_packages=(build-essential pkg-config curl ca-certificates git
    bc flex bison libelf-dev libssl-dev cpio kmod zstd xz-utils rsync
    libseccomp-dev e2fsprogs iproute2 linux-source-6.12)
test_packages=(docker-registry containernetworking-plugins skopeo busybox-static iptables nftables
    erofs-utils jq dpkg-dev util-linux ethtool attr libcap2-bin apparmor sudo)

# The emulator is only for machines without virtualization hardware.
if ! grep -qwE 'vmx|svm' /proc/cpuinfo; then
    test_packages+=(qemu-system-x86)
fi

install_missing() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    [ "$(id -u)" = 0 ] || die "not root: these packages are missing: ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    apt-get update -q >&2
    # A service that a package brings must not start here: the tests run their own.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; made=yes; fi
    local status=0
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends --allow-downgrades "${missing[@]}" >&2 || status=$?
    [ -z "$made" ] || rm -f $policy
    [ $status = 0 ] || die "apt-get could not install: ${missing[*]}"
}

rust_wanted=1.90
newer() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

install_rust() {
    export PATH="$HOME/.cargo/bin:$PATH"
    if command -v cargo >/dev/null && newer $rust_wanted "$(cargo --version | cut -d' ' -f2)"; then return 0; fi
    say "installing Rust by rustup (Debian's is too old: $rust_wanted or newer is needed)"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy >&2 \
        || die "no Rust $rust_wanted: install it from https://rustup.rs and call again"
}

go_wanted=1.25
install_go() {
    export PATH="/usr/local/go/bin:$PATH"
    if command -v go >/dev/null && newer $go_wanted "$(go env GOVERSION | sed 's/^go//')"; then return 0; fi
    local version=1.26.0
    say "installing Go $version to /usr/local/go (for crictl; Debian's is too old)"
    curl -sSfL "https://go.dev/dl/go$version.linux-amd64.tar.gz" | tar -C /usr/local -xz \
        || die "no Go $go_wanted: install it from https://go.dev/dl and call again"
}

case "${1:-}" in
    build) install_missing "${build_packages[@]}"; install_rust ;;
    test) install_missing "${build_packages[@]}" "${test_packages[@]}"; install_rust; install_go ;;
    *) die "usage: $0 build|test" ;;
esac
