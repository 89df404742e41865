#!/usr/bin/env bash
# Builds what a node runs, into one directory: bulkhead, bulkhead-vmm, bulkhead-agent (static),
# initramfs.cpio (the agent) and vmlinux (the guest kernel). Prints the directory.
#
#   build.sh [PROFILE]     a cargo profile: release (default) or fast (for tests)
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
profile=${1:-release}
target=${CARGO_TARGET_DIR:-$top/target}
out=$target/dist-$profile
export PATH="$HOME/.cargo/bin:$PATH"
say() { printf '==> %s\n' "$*" >&2; }

say "building the guest kernel (minutes the first time, then from the cache)"
kernel=$(make --no-print-directory -C "$top/guest-kernel" | tail -n 1)
[ -f "$kernel" ] || { say "the guest kernel build gave no file"; exit 1; }

cd "$top"
say "building bulkhead and bulkhead-vmm (profile $profile)"
cargo build --locked --profile "$profile" -p bulkhead -p bulkhead-vmm >&2
say "building the agent, static, and its initramfs"
initramfs=$(PROFILE="$profile" CARGO_TARGET_DIR="$target" agent/build.sh | tail -n 1)

mkdir -p "$out"
# Renamed into place: a test host may be reading the old ones.
place() { cp "$1" "$out/.$2.new" && mv "$out/.$2.new" "$out/$2"; }
place "$target/$profile/bulkhead" bulkhead
place "$target/$profile/bulkhead-vmm" bulkhead-vmm
place "$(dirname "$initramfs")/bulkhead-agent" bulkhead-agent
place "$initramfs" initramfs.cpio
cmp -s "$kernel" "$out/vmlinux" || place "$kernel" vmlinux
echo "$out"
