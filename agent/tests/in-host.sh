#!/usr/bin/env bash
# Runs the agent's tests in the test host, which has cgroup v2, and the agent as PID 1 of a guest:
# `agent/tests/in-host.sh DIST [FILTER…]`, DIST as packaging/build.sh prints it. The test programs
# are cargo's usual ones, the agent is DIST's.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${1:?usage: in-host.sh DIST [FILTER…]}
shift
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
# Of the whole workspace, as `cargo test` built them: alone they would have other features.
programs=$(nice cargo test --quiet --locked --workspace --test confinement --test containers --test execs --test guest --test network --test streams \
    --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\/deps\/[^"]*\)".*/\1/p')
export BULKHEAD_VMM=$bin/bulkhead-vmm BULKHEAD_KERNEL=$bin/vmlinux BULKHEAD_INITRAMFS=$bin/initramfs.cpio
export BULKHEAD_AGENT=$bin/bulkhead-agent
run=(bash -c 'status=0
    for program in $1; do
        echo "     Running in the test host ($program)"
        "$program" --show-output --test-threads=1 "${@:2}" || status=1
    done
    exit $status' -- "$programs" "$@")
if [ -n "${BULKHEAD_TEST_HOST_NAME:-}" ]; then
    exec tests/host/exec.sh "$BULKHEAD_TEST_HOST_NAME" -- "${run[@]}"
fi
exec tests/host/run.sh --copy "$bin" -- "${run[@]}"
