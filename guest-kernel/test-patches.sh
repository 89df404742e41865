#!/bin/bash
# Tests patches/: each says why it is there, fits the source that is installed without fuzz, and
# applies after those before it. Without the source only the first is looked at.
set -euo pipefail
cd "$(dirname "$0")"

archive=/usr/src/linux-source-6.12.tar.xz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
die() { echo "FAILED: $*" >&2; exit 1; }

for patch in patches/*.patch; do
    # A title, an empty line, a reason.
    sed '/^--- a\//,$d' "$patch" | awk 'NR == 1 && NF { title = 1 } NR == 2 && !NF { gap = 1 } NR > 2 && NF { reason = 1 }
        END { exit !(title && gap && reason) }' || die "$patch does not begin with a title and a reason"
    grep -q '^--- a/' "$patch" || die "$patch changes nothing"
done
if [ ! -e "$archive" ]; then
    echo "patches: looked at; $archive is not here to try them on"
    exit 0
fi
sed -n 's|^+++ b/||p' patches/*.patch | sort -u | sed 's|^|linux-source-6.12/|' >"$work/files"
tar -C "$work" --strip-components=1 -xf "$archive" -T "$work/files"
for patch in patches/*.patch; do
    patch -d "$work" -p1 --fuzz=0 --quiet <"$patch" || die "$patch does not fit $archive"
    # What fits but is there already would be asked twice.
    patch -d "$work" -p1 --fuzz=0 --quiet --dry-run --force <"$patch" >/dev/null && die "$patch applies twice"
done
echo "patches: $(ls patches/*.patch | wc -l) fit"
