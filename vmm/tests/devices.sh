#!/usr/bin/env bash
# Runs vmm/tests/devices.rs in the test host: `vmm/tests/devices.sh [FILTER…]`.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
musl=x86_64-unknown-linux-musl
kernel=$(make --no-print-directory -s -C guest-kernel path)
[ -e "$kernel" ] || { echo "devices.sh: no guest kernel: make -C guest-kernel" >&2; exit 1; }
nice cargo build --quiet --locked --release --manifest-path vmm/tests/guest/Cargo.toml --target "$musl"
test=$(nice cargo test --quiet --locked --profile fast -p bulkhead-vmm --test devices --no-run \
    --message-format=json | sed -n 's/.*"executable":"\([^"]*devices-[^"]*\)".*/\1/p' | tail -n 1)
export BULKHEAD_GUEST_KERNEL=$kernel
export BULKHEAD_DEVICE_GUEST=$CARGO_TARGET_DIR/$musl/release/device-guest
if [ -n "${BULKHEAD_TEST_HOST_NAME:-}" ]; then
    exec tests/host/exec.sh "$BULKHEAD_TEST_HOST_NAME" -- "$test" --test-threads=1 "$@"
fi
exec tests/host/run.sh -- "$test" --test-threads=1 "$@"
