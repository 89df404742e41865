#!/usr/bin/env bash
# Runs in the test host those tests of a crate that cannot run on this machine:
#
#   in-host.sh vmm DIST [FILTER…]     what needs a Linux guest (devices, restore.rs) or vhost-net (the
#                                     unit tests of the network device)
#   in-host.sh agent DIST [FILTER…]   what needs cgroup v2, or the agent as PID 1 of a guest
#
# DIST is what packaging/build.sh prints: the VMM, the agent and the kernel are DIST's, the test programs
# cargo's usual ones. A FILTER is libtest's. BULKHEAD_TEST_HOST_NAME names a host that runs already
# (tests/host/run.sh --background).
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { echo "usage: in-host.sh vmm|agent DIST [FILTER…]" >&2; exit 2; }
[ $# -ge 2 ] || usage
crate=$1 bin=$2
shift 2
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
export BULKHEAD_VMM=$bin/bulkhead-vmm
case $crate in
vmm)
    targets=(--lib --test devices --test restore)
    programs='bulkhead_vmm|devices|restore'
    export BULKHEAD_GUEST_KERNEL=$bin/vmlinux BULKHEAD_AGENT_INITRAMFS=$bin/initramfs.cpio
    static=x86_64-unknown-linux-gnu
    # With --target the flags do not concern build scripts.
    RUSTFLAGS="-C target-feature=+crt-static" \
        nice cargo build --quiet --locked --release --manifest-path vmm/tests/guest/Cargo.toml --target $static
    export BULKHEAD_DEVICE_GUEST=$CARGO_TARGET_DIR/$static/release/device-guest
    ;;
agent)
    targets=(--test confinement --test containers --test execs --test guest --test network --test streams)
    programs='confinement|containers|execs|guest|network|streams'
    export BULKHEAD_AGENT=$bin/bulkhead-agent BULKHEAD_KERNEL=$bin/vmlinux BULKHEAD_INITRAMFS=$bin/initramfs.cpio
    ;;
*) usage ;;
esac
# Of the whole workspace, as `cargo test` built them: alone they would have other features.
found=$(nice cargo test --quiet --locked --workspace "${targets[@]}" --no-run --message-format=json |
    sed -nE 's/.*"executable":"([^"]*\/deps\/('"$programs"')-[^"]*)".*/\1/p')
[ -n "$found" ] || { echo "in-host.sh: cargo built no test program of $crate" >&2; exit 1; }
run=(bash -c 'status=0
    for program in $1; do
        echo "     Running in the test host ($program)"
        case $program in
        */bulkhead_vmm-*) "$program" --show-output devices::net || status=1 ;;
        *) "$program" --show-output --test-threads=1 "${@:2}" || status=1 ;;
        esac
    done
    exit $status' -- "$found" "$@")
if [ -n "${BULKHEAD_TEST_HOST_NAME:-}" ]; then
    exec tests/host/exec.sh "$BULKHEAD_TEST_HOST_NAME" -- "${run[@]}"
fi
exec tests/host/run.sh --copy "$bin" -- "${run[@]}"
