#!/usr/bin/env bash
# Packs the agent into an initramfs: a cpio archive (newc, the kernel's
# Documentation/driver-api/early-userspace/buffer-format.rst) with the agent as /init, the console
# device the kernel opens for it, and the directory over which the agent puts its root. The same
# agent gives the same bytes: owners are root, times are 0.
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: $0 AGENT OUTPUT" >&2
    exit 2
fi
agent=$1
output=$2
inode=0

# entry NAME MODE(octal) SIZE RDEV_MAJOR RDEV_MINOR: the header, the name and its padding.
entry() {
    local name=$1 mode=$2 size=$3 major=$4 minor=$5 length=$((${#1} + 1))
    inode=$((inode + 1))
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
        $inode $((8#$mode)) 0 0 1 0 "$size" 0 0 "$major" "$minor" $length 0
    printf '%s\0' "$name"
    pad $((110 + length))
}

# Fills up to a multiple of 4.
pad() {
    local rest=$(($1 % 4))
    [ $rest -eq 0 ] || head -c $((4 - rest)) /dev/zero
}

size=$(stat -c %s "$agent")
temporary=$(mktemp "$output.XXXXXX")
trap 'rm -f "$temporary"' EXIT
{
    entry dev 040755 0 0 0
    entry dev/console 020600 0 5 1
    entry newroot 040755 0 0 0
    entry init 100755 "$size" 0 0
    cat "$agent"
    pad "$size"
    entry 'TRAILER!!!' 0 0 0 0
} > "$temporary"
chmod 644 "$temporary"
mv "$temporary" "$output"
trap - EXIT
