#!/usr/bin/env bash
# Runs vmm/tests/devices.rs and restore.rs in the test host: `vmm/tests/devices.sh [FILTER…]`.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
musl=x86_64-unknown-linux-musl
kernel=$(make --no-print-directory -s -C guest-kernel path)
[ -e "$kernel" ] || { echo "devices.sh: no guest kernel: make -C guest-kernel" >&2; exit 1; }
nice cargo build --quiet --locked --release --manifest-path vmm/tests/guest/Cargo.toml --target "$musl"
# The unit tests of the network device come along: here is a vhost-net for them.
programs=$(nice cargo test --quiet --locked --profile fast -p bulkhead-vmm --lib --test devices --test restore --no-run \
    --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
unit=$(grep '/bulkhead_vmm-' <<<"$programs")
test=$(grep '/devices-' <<<"$programs")
restore=$(grep '/restore-' <<<"$programs")
initramfs=$(agent/build.sh)
export BULKHEAD_GUEST_KERNEL=$kernel
export BULKHEAD_AGENT_INITRAMFS=$(realpath "${initramfs##*$'\n'}")
export BULKHEAD_DEVICE_GUEST=$CARGO_TARGET_DIR/$musl/release/device-guest
run=(bash -c '"$1" devices::net; a=$?; "$2" --test-threads=1 --show-output "${@:4}"; b=$?
    "$3" --show-output "${@:4}"; exit $((a | b | $?))' -- "$unit" "$test" "$restore" "$@")
if [ -n "${BULKHEAD_TEST_HOST_NAME:-}" ]; then
    exec tests/host/exec.sh "$BULKHEAD_TEST_HOST_NAME" -- "${run[@]}"
fi
exec tests/host/run.sh -- "${run[@]}"
