#!/usr/bin/env bash
# Runs in the test host what of the VMM's tests needs a Linux guest (devices, restore.rs) or a
# vhost-net (the unit tests of the network device): `vmm/tests/in-host.sh DIST [FILTER…]`, DIST as
# packaging/build.sh prints it. The test programs are cargo's usual ones, the VMM is DIST's.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${1:?usage: in-host.sh DIST [FILTER…]}
shift
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
static=x86_64-unknown-linux-gnu
# With --target the flags do not concern build scripts.
RUSTFLAGS="-C target-feature=+crt-static" \
    nice cargo build --quiet --locked --release --manifest-path vmm/tests/guest/Cargo.toml --target $static
# Of the whole workspace, as `cargo test` built them: alone they would have other features.
programs=$(nice cargo test --quiet --locked --workspace --lib --test devices --test restore --no-run \
    --message-format=json | sed -n 's/.*"executable":"\([^"]*\/deps\/\(bulkhead_vmm\|devices\|restore\)-[^"]*\)".*/\1/p')
export BULKHEAD_VMM=$bin/bulkhead-vmm BULKHEAD_GUEST_KERNEL=$bin/vmlinux BULKHEAD_AGENT_INITRAMFS=$bin/initramfs.cpio
export BULKHEAD_DEVICE_GUEST=$CARGO_TARGET_DIR/$static/release/device-guest
run=(bash -c 'status=0
    for program in $1; do
        echo "     Running in the test host ($program)"
        case $program in
        */bulkhead_vmm-*) "$program" --show-output devices::net || status=1 ;;
        *) "$program" --show-output --test-threads=1 "${@:2}" || status=1 ;;
        esac
    done
    exit $status' -- "$programs" "$@")
if [ -n "${BULKHEAD_TEST_HOST_NAME:-}" ]; then
    exec tests/host/exec.sh "$BULKHEAD_TEST_HOST_NAME" -- "${run[@]}"
fi
exec tests/host/run.sh --copy "$bin" -- "${run[@]}"
