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
    erofs-utils jq dpkg-dev util-linux ethtool attr libcap2-bin apparmor sudo unzip
    xfsprogs btrfs-progs dosfstools squashfs-tools genisoimage)

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

newer() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# The compiler that everything here is tested with, as Cargo.toml says.
rust_wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$(dirname "$0")/../Cargo.toml")
install_rust() {
    export PATH="$HOME/.cargo/bin:$PATH"
    local version=
    command -v cargo >/dev/null && version=$(cargo --version | cut -d' ' -f2)
    case $version in
    "$rust_wanted" | "$rust_wanted".*) return 0 ;;
    esac
    if [ -n "$version" ] && newer "$rust_wanted" "$version"; then
        say "Rust $version is here; Bulkhead is tested with $rust_wanted, and another clippy may say other things"
        return 0
    fi
    say "installing Rust $rust_wanted by rustup (${version:-none} is here)"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
        sh -s -- -y --profile minimal --default-toolchain "$rust_wanted" -c rustfmt -c clippy >&2 ||
        die "no Rust $rust_wanted: install it from https://rustup.rs and call again"
}

# Go as its own command fetches it: a module of the proxy that crictl comes from, too. The sum is of a
# copy that `go mod download golang.org/toolchain@…` verified against Go's checksum database.
go_wanted=1.25
go_version=1.26.8
go_sha256=30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7
install_go() {
    export PATH="/usr/local/go/bin:$PATH"
    if command -v go >/dev/null && newer $go_wanted "$(go env GOVERSION | sed 's/^go//')"; then return 0; fi
    local work sum module=golang.org/toolchain@v0.0.1-go$go_version.linux-amd64
    local url=https://proxy.golang.org/${module/@/\/@v\/}.zip
    say "installing Go $go_version to /usr/local/go (for crictl; Debian's is too old)"
    work=$(mktemp -d /usr/local/go.XXXXXX)
    # shellcheck disable=SC2064 # the value of now
    trap "rm -rf '$work'" EXIT
    curl -sSfL "$url" -o "$work/go.zip" || die "no Go $go_wanted or newer: install it to /usr/local/go and call again"
    sum=$(sha256sum <"$work/go.zip" | cut -d' ' -f1)
    [ "$sum" = $go_sha256 ] || die "$url has the SHA-256 sum $sum, not $go_sha256: it is not what was checked; nothing was installed"
    unzip -q "$work/go.zip" -d "$work"
    # What the go command does with it: a module has neither modes nor modules in it.
    chmod -R u=rwX,go=rX "$work/$module"
    chmod 755 "$work/$module"/bin/* "$work/$module"/pkg/tool/*/*
    find "$work/$module" -name _go.mod -execdir mv {} go.mod \;
    rm -rf /usr/local/go
    mv "$work/$module" /usr/local/go
    rm -rf "$work"
    trap - EXIT
}

case "${1:-}" in
    build) install_missing "${build_packages[@]}"; install_rust ;;
    test) install_missing "${build_packages[@]}" "${test_packages[@]}"; install_rust; install_go ;;
    *) die "usage: $0 build|test" ;;
esac
