#!/usr/bin/env bash
# Builds the static agent and its initramfs; prints the path of the initramfs as its last line, the
# agent beside it. PROFILE is cargo's (fast by default, release for what is installed).
#
# Static by glibc and not musl: the distribution's libseccomp.a, which containers' system call
# filters need, is made for glibc. RUSTFLAGS with --target concern the agent alone, not build
# scripts and macros. For size: every guest unpacks it at its boot, and it waits more than it works.
set -euo pipefail

cd "$(dirname "$0")/.."
profile=${PROFILE:-fast}
target=x86_64-unknown-linux-gnu
directory=${CARGO_TARGET_DIR:-target}

if [ -z "${LIBSECCOMP_LIB_PATH:-}" ]; then
    LIBSECCOMP_LIB_PATH=$(dirname "$(find /usr/lib /usr/local/lib -name libseccomp.a -print -quit)")
fi
if [ ! -f "$LIBSECCOMP_LIB_PATH/libseccomp.a" ]; then
    echo "libseccomp.a is missing: apt-get install libseccomp-dev" >&2
    exit 1
fi
export LIBSECCOMP_LIB_PATH LIBSECCOMP_LINK_TYPE=static

RUSTFLAGS="-C target-feature=+crt-static -C opt-level=s" \
    cargo build --profile "$profile" --target "$target" -p bulkhead-agent >&2

built=$directory/$target/$profile
agent/initramfs.sh "$built/bulkhead-agent" "$built/initramfs.cpio"
echo "$built/initramfs.cpio"
