#!/usr/bin/env bash
# `make test`: every test there is. Builds, runs the unit and property tests on the machine, then
# the end-to-end tests in two test hosts side by side (one where the machine has KVM of its own).
# Closes with one line: N passed, N failed, N skipped.
#
#   run.sh [FILTER…]     only the end-to-end tests whose name contains a filter
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
export PATH="$HOME/.cargo/bin:/usr/local/go/bin:$PATH"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$top/target}
say() { printf '==> %s\n' "$*" >&2; }
die() { say "$*"; echo; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
results=$(mktemp -d /tmp/bulkhead-results.XXXXXX)
passed=0 failed=0 skipped=0

say "building what a node runs"
bin=$(packaging/build.sh fast) || die "the build failed"
say "building the tests' programs"
cargo build --locked --profile fast -p bulkhead-tests >&2 || die "the tests do not build"
registry=$(tests/images/registry.sh "$CARGO_TARGET_DIR/fast/bulkhead-test-images") || die "no test images"
go_tools=$(tests/go-tools.sh) || die "no crictl"

if [ $# = 0 ]; then
    say "unit and property tests"
    cargo test --locked --workspace --no-fail-fast -- --show-output 2>&1 | tee "$results/unit.log" \
        | grep -E '^(test .* FAILED|test result|failures:|error|thread .* panicked|---- )|skipped: ' || true
    status=${PIPESTATUS[0]}
    read -r passed failed ignored < <(awk '/^test result:/ { p += $4; f += $6; i += $8 } END { print p+0, f+0, i+0 }' "$results/unit.log")
    # A test that could not run here says so and returns: it has not passed.
    said=$(grep -cE '^skipped: ' "$results/unit.log")
    passed=$((passed - said)) skipped=$((ignored + said))
    if [ "$failed" = 0 ] && { [ "$status" != 0 ] || [ "$passed" -le 0 ]; }; then
        say "cargo test failed before a test did (see $results/unit.log)"
        tail -n 40 "$results/unit.log" >&2
        failed=1
    fi
fi

if [ $# = 0 ]; then
    say "the VMM's devices with a Linux guest, in a test host"
    vmm/tests/devices.sh 2>&1 | tee "$results/devices.log" \
        | grep -E '^(test .* FAILED|test result|thread .* panicked)|^skipped: ' || true
    read -r p f < <(awk '/^test result:/ { p += $4; f += $6 } END { print p+0, f+0 }' "$results/devices.log")
    said=$(grep -cE '^skipped: ' "$results/devices.log")
    if [ $((p + f)) = 0 ]; then
        say "they did not run:"
        tail -n 30 "$results/devices.log" >&2
        f=1
    fi
    passed=$((passed + p - said)) failed=$((failed + f)) skipped=$((skipped + said))
fi

say "end-to-end tests"
export BULKHEAD_BIN_DIR=$bin BULKHEAD_REGISTRY=$registry BULKHEAD_GO_TOOLS=$go_tools
shards=2
grep -qwE 'vmx|svm' /proc/cpuinfo && shards=1
pids=()
for shard in $(seq $shards); do
    mkdir -p "$results/$shard"
    tests/host/run.sh --timeout 3600 --share "$results/$shard" --ro "$bin" --ro "$registry" --ro "$go_tools" -- \
        "$CARGO_TARGET_DIR/fast/bulkhead-tests" --shard "$shard/$shards" --results "$results/$shard" "$@" \
        > >(tee "$results/$shard.log" | sed "s|^|[$shard] |") 2>&1 &
    pids+=($!)
done
for shard in $(seq $shards); do
    wait "${pids[$((shard - 1))]}"
    status=$?
    sums=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped' "$results/$shard.log" | tail -n 1)
    if [ -z "$sums" ]; then
        say "test host $shard ended with status $status and no sums; its last lines:"
        tail -n 30 "$results/$shard.log" >&2
        # What it got done counts, and the end counts as a failure.
        p=$(grep -c '^ok ' "$results/$shard.log") f=$(($(grep -c '^FAIL ' "$results/$shard.log") + 1)) s=$(grep -c '^skip ' "$results/$shard.log")
    else
        read -r p _ f _ s _ <<<"${sums//,/}"
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done

echo
if [ $skipped != 0 ]; then
    echo "Skipped:"
    grep -hE '^skipped: ' "$results/unit.log" "$results/devices.log" 2>/dev/null | sort | uniq -c
    grep -hE '^skip ' "$results"/[0-9]*.log
fi
if [ $failed != 0 ]; then
    echo "Failed (logs in $results):"
    grep -hE '^test .* FAILED' "$results/unit.log" "$results/devices.log" 2>/dev/null
    grep -hE '^FAIL ' "$results"/[0-9]*.log
else
    rm -rf "$results"
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
