#!/bin/bash
# Makes what the emulated test host boots, or finds it in the cache; prints the
# directory: vmlinux, initrd (with the early modules and this folder's guest
# scripts) and modules/, all from Debian's kernel package (extracted, not installed);
# and qemu/, when the machine's own QEMU is too old.
set -euo pipefail
export LC_ALL=C
# shellcheck source=tests/host/lib.sh
. "$(dirname "$0")/lib.sh"

packages=(qemu-system-x86 busybox-static e2fsprogs kmod zstd xz-utils cpio binutils util-linux)
missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    [ "$(id -u)" -eq 0 ] || die "not root; run: apt-get install --no-install-recommends ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
fi

# The newest kernel package apt knows: the plain one, not cloud, not real-time.
newest_kernel() {
    apt-cache pkgnames linux-image-6.12 | grep -E '^linux-image-6\.12\.[0-9]+\+deb[0-9]+-amd64-unsigned$' | sort -V | tail -n 1
}
kernel=$(newest_kernel)
if [ -z "$kernel" ]; then
    say "apt knows no 6.12 kernel yet; updating its lists"
    apt-get update -q >&2
    kernel=$(newest_kernel)
fi
[ -n "$kernel" ] || die "apt offers no linux-image-6.12.*-amd64-unsigned; the test host needs one"
version=$(apt-cache show --no-all-versions "$kernel" | sed -n 's/^Version: //p')
release=${kernel#linux-image-}
release=${release%-unsigned}

# QEMU 7.2 gives an interrupted guest wrong flags now and then (one boot in two
# hundred dies early in the kernel, its saved EFLAGS the low half of a pointer).
# Debian 12 has a newer one in its backports; that too is extracted, not installed.
qemu_wanted=10
cache=$bulkhead_cache/test-host
mkdir -p "$cache"

# One preparation at a time.
take_lock() {
    exec 9>"$cache/lock"
    flock -w 900 9 || die "another preparation did not end within 15 minutes; lock file $cache/lock"
}

# The QEMU of suite $1, with package lists of our own: the machine's stay as they are.
fetch_qemu() {
    local work apt deb status=0
    work=$(mktemp -d "$cache/qemu.XXXXXX")
    mkdir -p "$work"/{deb,root,lists/partial,archives/partial}
    echo "deb http://deb.debian.org/debian $1 main" >"$work/sources.list"
    apt=(-q -o APT::Sandbox::User=root -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work")
    # The last but one shows whether it lacks libraries.
    (cd "$work/deb" && apt-get "${apt[@]}" update >&2 &&
        apt-get "${apt[@]}" download qemu-system-{x86,data,common}"/$1" >&2) &&
        for deb in "$work"/deb/*.deb; do dpkg-deb -x "$deb" "$work/root" || break; done &&
        "$work/root/usr/bin/qemu-system-x86_64" --version >&2 &&
        mv -T "$work/root" "$cache/qemu-$1" || status=1
    rm -rf "$work"
    return $status
}

qemu= qemu_version=$(dpkg-query -W -f '${Version}' qemu-system-x86)
if dpkg --compare-versions "${qemu_version#*:}" lt $qemu_wanted; then
    qemu=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")-backports
    if [ ! -e "$cache/qemu-$qemu" ]; then
        take_lock
        say "fetching QEMU from $qemu (15 MB; the machine's is $qemu_version)"
        if [ ! -e "$cache/qemu-$qemu" ] && ! fetch_qemu "$qemu"; then
            say "it could not be had: QEMU $qemu_version will do, and let a guest die now and then"
            qemu=
        fi
    fi
fi

hash=$({
    echo "$kernel $version $qemu"
    dpkg-query -W -f '${Version}' busybox-static
    cat "$here/prepare.sh" "$here/modules" "$here"/guest/*
} | sha256sum | cut -c1-16)
result=$cache/$hash
if [ -e "$result/initrd" ]; then
    echo "$result"
    exit
fi

take_lock
if [ -e "$result/initrd" ]; then
    echo "$result"
    exit
fi
work=$(mktemp -d "$cache/prepare.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The unpacked package is kept apart: a change of our scripts need not fetch it again.
unpacked=$cache/$kernel-$version
if [ ! -e "$unpacked" ]; then
    say "fetching $kernel $version (about 100 MB)"
    mkdir "$work/deb" "$work/package" "$work/unpacked"
    (cd "$work/deb" && apt-get download "$kernel" >&2)
    dpkg-deb -x "$work"/deb/*.deb "$work/package"
    say "unpacking kernel and modules"
    # A bzImage holds the ELF kernel compressed; entered directly it saves the
    # emulated processor the decompression. Boot protocol: setup_sects at 0x1f1,
    # payload_offset at 0x248, payload_length at 0x24c (with 4 bytes of size after it).
    image=$work/package/boot/vmlinuz-$release
    field() { od -An -t "u$2" -j "$1" -N "$2" "$image" | tr -d ' '; }
    offset=$((($(field $((0x1f1)) 1) + 1) * 512 + $(field $((0x248)) 4)))
    length=$(($(field $((0x24c)) 4) - 4))
    payload=$work/payload
    tail -c +$((offset + 1)) "$image" | head -c "$length" >"$payload" || true
    case $(od -An -t x1 -N 4 "$payload" | tr -d ' ') in
    28b52ffd) zstd -q -d -c "$payload" >"$work/unpacked/vmlinux" ;;
    fd377a58) xz -d -c "$payload" >"$work/unpacked/vmlinux" ;;
    *) die "the kernel in $kernel is compressed in a way this script does not know" ;;
    esac
    readelf -h "$work/unpacked/vmlinux" >/dev/null || die "no ELF kernel came out of $kernel"
    mkdir -p "$work/unpacked/modules"
    mv "$work/package/lib/modules/$release" "$work/unpacked/modules/"
    find "$work/unpacked/modules" -name '*.ko.xz' -print0 | xargs -0 -r -P "$(nproc)" xz -d
    mkdir -p "$work/unpacked/lib"
    ln -s ../modules "$work/unpacked/lib/modules"
    depmod -b "$work/unpacked" "$release"
    mv -T "$work/unpacked" "$unpacked"
fi

say "making the initramfs"
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,modules,guest}
cp /bin/busybox "$root/bin/busybox"
cp "$here/guest/init" "$root/init"
cp "$here/guest/serve" "$here/guest/job" "$root/guest/"
chmod 755 "$root/init"
# Load order, each module once, what it depends on first.
grep -vE '^(#|$)' "$here/modules" | while read -r module; do
    modprobe -d "$unpacked" -S "$release" --show-depends "$module" ||
        die "the kernel package has no module $module"
done >"$work/depends"
sed -n 's/^insmod \([^ ]*\).*/\1/p' "$work/depends" | awk '!seen[$0]++' >"$work/files"
while read -r file; do
    strip --strip-debug -o "$root/modules/${file##*/}" "$file"
    echo "${file##*/}"
done <"$work/files" >"$root/modules/order"
[ -s "$root/modules/order" ] || die "no module was found for the initramfs"

mkdir "$work/result"
(cd "$root" && find . | sort | cpio -o -H newc --quiet -R 0:0) >"$work/result/initrd"
ln -s "../${unpacked##*/}/vmlinux" "$work/result/vmlinux"
ln -s "../${unpacked##*/}/modules" "$work/result/modules"
[ -z "$qemu" ] || ln -s "../qemu-$qemu" "$work/result/qemu"
mv -T "$work/result" "$result"
say "ready in $result"
echo "$result"
