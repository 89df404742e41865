#!/bin/bash
# Builds the guest kernel, or finds it in the cache.
#
#   build.sh build [full]    build if needed; progress on stderr, the path on stdout
#   build.sh path [full]     the path only, whether the file is there or not
#   build.sh config [full]   merge and check the configuration, print where it is
#
# With `full` the second, larger kernel: config/full on top of config. Nothing else builds it.
#
# The cache is ${BULKHEAD_CACHE:-$HOME/.cache/bulkhead}/guest-kernel/<hash>/, named
# by what the result depends on: the version of Debian's source package, the
# configuration fragments, the patches, and this script with the check.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
series=6.12
archive=/usr/src/linux-source-$series.tar.xz
cache=${BULKHEAD_CACHE:-${HOME:-/root}/.cache/bulkhead}/guest-kernel
jobs=${BULKHEAD_JOBS:-$(nproc)}
fragments=("$here"/config/*.config)
patches=("$here"/patches/*.patch)
variant=${2:-}
case $variant in
'') ;;
full) fragments+=("$here"/config/full/*.config) ;;
*) set -- usage ;;
esac

say() { printf 'guest-kernel: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# The directory this checkout's kernel belongs in.
result_dir() {
    local version hash
    version=$(dpkg-query -W -f '${Version}' "linux-source-$series" 2>/dev/null) ||
        die "the package linux-source-$series is not installed; run: make -C guest-kernel deps"
    hash=$({
        echo "$version"
        # Options only: a better comment is no new kernel.
        grep -hE '^(CONFIG_|# CONFIG_[A-Za-z0-9_]+ is not set$)' "${fragments[@]}"
        cat "${patches[@]}" "$here/build.sh" "$here/check-config.sh"
    } | sha256sum | cut -c1-16)
    echo "$cache/$hash"
}

# Unpacks the source into $1 and leaves a checked .config there.
configure() {
    say "unpacking $archive"
    tar -C "$1" --strip-components=1 -xf "$archive"
    local patch
    for patch in "${patches[@]}"; do
        say "applying ${patch##*/}"
        patch -d "$1" -p1 --fuzz=0 --quiet <"$patch" >&2 || die "${patch##*/} does not fit $archive; see guest-kernel/README.md"
    done
    say "merging ${#fragments[@]} configuration fragments"
    make -C "$1" tinyconfig >"$1/config.log" 2>&1 || die "make tinyconfig failed: $(tail -n 3 "$1/config.log")"
    cat "${fragments[@]}" >>"$1/.config"
    make -C "$1" olddefconfig >>"$1/config.log" 2>&1 || die "make olddefconfig failed: $(tail -n 3 "$1/config.log")"
    "$here/check-config.sh" "$1/.config" "${fragments[@]}" >&2 ||
        die "the options above are not as the fragments ask: a parent is missing, or another option selects them"
}

# Compiles in $1, with a line of progress every twenty seconds.
compile() {
    local log=$1/build.log start=$SECONDS builder
    say "compiling with $jobs jobs (guest-kernel/README.md says how long it takes), log in $log"
    # Fixed names and time: the same source and configuration give the same file.
    nice make -C "$1" -j"$jobs" vmlinux \
        KBUILD_BUILD_USER=bulkhead KBUILD_BUILD_HOST=bulkhead \
        KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC' >"$log" 2>&1 9>&- &
    builder=$!
    until timeout 20 tail --pid=$builder -f /dev/null; do
        say "$((SECONDS - start)) s: $(grep -c '^  [A-Z]' "$log") steps of about 3200, now $(tail -n 1 "$log" | tr -s ' ')"
    done
    wait $builder || {
        tail -n 30 "$log" >&2
        cp "$log" "$cache/failed-build.log"
        die "the build failed; its log is $cache/failed-build.log"
    }
    say "compiled in $((SECONDS - start)) s"
}

# Builds into $1 (which does not exist yet) and renames it into place when whole.
build() {
    local dir=$1 size
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    if ! flock -n 9; then
        say "another build is running; waiting for it (at most an hour)"
        flock -w 3600 9 || die "the other build did not end within an hour; lock file $cache/lock"
    fi
    [ -e "$dir/vmlinux" ] && return
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/source" "$work/result"
    configure "$work/source"
    compile "$work/source"
    strip -s -o "$work/result/vmlinux" "$work/source/vmlinux"
    cp "$work/source/.config" "$work/result/config"
    cp "$work/source/System.map" "$work/result/System.map"
    size=$(stat -c %s "$work/result/vmlinux")
    mv -T "$work/result" "$dir"
    say "done: $((size / 1048576)) MiB"
}

case ${1:-} in
path)
    dir=$(result_dir)
    echo "$dir/vmlinux"
    ;;
build)
    "$here/deps.sh" $variant
    dir=$(result_dir)
    [ -e "$dir/vmlinux" ] || build "$dir"
    echo "$dir/vmlinux"
    ;;
config)
    "$here/deps.sh" $variant
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/source"
    configure "$work/source"
    cp "$work/source/.config" "$cache/last-config${variant:+-$variant}"
    echo "$cache/last-config${variant:+-$variant}"
    ;;
*)
    echo "usage: $0 build|path|config [full]" >&2
    exit 2
    ;;
esac
