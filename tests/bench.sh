#!/usr/bin/env bash
# `make bench`: builds, starts a test host, and runs bulkhead-bench in it. What is given goes to
# bulkhead-bench: --pods N, --repeat N, --peer qemu, --peer firecracker=PATH, --only-peer,
# --only-streams (and volumes), --only-layers, --only-memory, --json FILE (on this machine).
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
export PATH="$HOME/.cargo/bin:/usr/local/go/bin:$PATH"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$top/target}
say() { printf '==> %s\n' "$*" >&2; }
static=x86_64-unknown-linux-gnu

json='' words=()
while [ $# -gt 0 ]; do
    case $1 in
    --json)
        [ $# -ge 2 ] || { say "--json needs a file"; exit 2; }
        json=$(realpath -m "$2")
        shift 2
        ;;
    *)
        words+=("$1")
        shift
        ;;
    esac
done

if [ -z "${BULKHEAD_BIN_DIR:-}" ]; then
    say "building what a node runs"
    BULKHEAD_BIN_DIR=$(packaging/build.sh fast)
fi
say "building the benchmark"
cargo build --locked --profile fast -p bulkhead-tests --bin bulkhead-bench --bin bulkhead-test-images >&2
registry=$(tests/images/registry.sh "$CARGO_TARGET_DIR/fast/bulkhead-test-images")
if [[ " ${words[*]-} " == *" --peer "* ]]; then
    # With --target the flags do not concern build scripts.
    RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --locked --release --quiet --manifest-path tests/bench-guest/Cargo.toml --target $static >&2
fi
if [[ " ${words[*]-} " == *" --peer qemu "* ]]; then
    command -v qemu-system-x86_64 >/dev/null || { say "--peer qemu: apt-get install qemu-system-x86"; exit 2; }
fi
export BULKHEAD_BIN_DIR BULKHEAD_REGISTRY=$registry BULKHEAD_BENCH_GUEST=$CARGO_TARGET_DIR/$static/release/bench-guest

results=$(mktemp -d /tmp/bulkhead-bench.XXXXXX)
trap 'rm -rf "$results"' EXIT
status=0
mkdir "$results/program"
cp "$CARGO_TARGET_DIR/fast/bulkhead-bench" "$results/program/"
cc -Os -s -static -Wall -Wextra -Werror -o "$results/program/bulk" tests/bench-guest/bulk.c
if [[ " ${words[*]-} " != *" --only-"* ]]; then
    say "what needs no VM, on this machine"
    "$results/program/bulkhead-bench" --only-lists --repeat 50 --results "$results" --json "$results/lists.json" || status=$?
fi
say "the rest, in the test host"
tests/host/run.sh --timeout 3000 --share "$results" --copy "$BULKHEAD_BIN_DIR" --copy "$results/program" --ro "$registry" -- \
    "$results/program/bulkhead-bench" --results "$results" --json "$results/figures.json" ${words[@]+"${words[@]}"} || {
    more=$?
    [ $more -le $status ] || status=$more
}
if [ $status = 2 ]; then
    say "the daemon said last:"
    tail -n 20 "$results/bench/daemon.log" >&2 2>/dev/null || true
fi
if [ -n "$json" ]; then
    jq -s '{figures: (map(.figures) | add), holds: (map(.holds) | add)}' "$results"/*.json >"$json"
fi
exit $status
