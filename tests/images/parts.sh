#!/usr/bin/env bash
# Fetches and builds what the test images are made of, into the cache, and prints the folder:
#   busybox/   an upstream busybox (Debian's source package, defconfig, static) with its applets
#   nginx/     nginx and the libraries it needs, unpacked from Debian's packages
#   files/     setcap, setfacl, setfattr and their libraries, in the same way
#   programs/  the C programs of this folder, static
# Debian's own busybox-static is not used: it lacks applets that CRI's tests call, and its shell
# prefers applets over files.
set -euo pipefail

cache=${BULKHEAD_CACHE:-$HOME/.cache/bulkhead}
packages=(nginx nginx-common libc6 libcrypt1 libpcre2-8-0 libssl3 zlib1g)
file_tools=(acl attr libacl1 libattr1 libcap2 libcap2-bin)
say() { printf '==> %s\n' "$*" >&2; }

here=$(cd "$(dirname "$0")" && pwd)
key=$( { cat "$0" "$here"/*.c; } | sha256sum | cut -c1-16)
out=$cache/image-parts/$key
mkdir -p "$cache/image-parts"
exec 9>"$cache/image-parts/lock"
flock -w 3600 9
if [ -e "$out/done" ]; then echo "$out"; exit 0; fi

work=$(mktemp -d "$cache/image-parts/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

say "test images: fetching busybox's source from Debian"
mkdir -p apt/lists/partial apt/cache/archives/partial
cat >apt/sources.list <<SOURCES
deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
SOURCES
apt=(apt-get -q -o "Dir::Etc::SourceList=$work/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update >apt.log 2>&1 || { cat apt.log >&2; exit 1; }
"${apt[@]}" source --download-only busybox >>apt.log 2>&1 || { cat apt.log >&2; exit 1; }
tar -xf busybox_*.orig.tar.*
cd busybox-*/
say "test images: building busybox (defconfig, static), about two minutes"
make defconfig >../busybox.log 2>&1
# tc of this release does not compile against newer kernel headers (CBQ left the kernel).
sed -i -e 's/^# CONFIG_STATIC is not set$/CONFIG_STATIC=y/' -e 's/^CONFIG_TC=y$/# CONFIG_TC is not set/' .config
(yes '' || true) | make oldconfig >>../busybox.log 2>&1
nice make -j"$(nproc)" >>../busybox.log 2>&1 || { tail -n 30 ../busybox.log >&2; exit 1; }
make CONFIG_PREFIX="$work/out/busybox" install >>../busybox.log 2>&1
cd "$work"

unpack() { # FOLDER PACKAGE…: each package below a folder of its own
    local folder=$1 deb name
    shift
    say "test images: fetching for $folder from Debian: $*"
    mkdir -p "debs/$folder" "out/$folder"
    (cd "debs/$folder" && apt-get -q -o APT::Sandbox::User=root download "$@") >>apt.log 2>&1 || { cat apt.log >&2; exit 1; }
    for deb in "debs/$folder"/*.deb; do
        name=$(basename "$deb"); name=${name%%_*}
        dpkg -x "$deb" "out/$folder/$name"
    done
}
unpack nginx "${packages[@]}"
unpack files "${file_tools[@]}"

mkdir out/programs
for source in "$here"/*.c; do
    name=$(basename "$source" .c)
    cc -Os -s -static -Wall -Werror -o "out/programs/$name" "$source"
done

touch out/done
rm -rf "$out"
mv out "$out"
echo "$out"
