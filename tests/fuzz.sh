#!/usr/bin/env bash
# `make fuzz`: builds the fuzz targets and runs each for a while: fuzz.sh [SECONDS [TARGET…]] (default
# 60, and all). What they found and learnt stays in ${BULKHEAD_CACHE:-~/.cache/bulkhead}/fuzz/TARGET:
# the corpus, and inputs that failed as `crash-…`, which `fuzz.sh 0 TARGET` runs again.
#
# libFuzzer's instrumentation and AddressSanitizer are unstable options of the compiler;
# RUSTC_BOOTSTRAP makes the usual one take them, so that no other need be installed.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
export PATH="$HOME/.cargo/bin:$PATH"
seconds=${1:-60}
shift || true
target=x86_64-unknown-linux-gnu
dir=${CARGO_TARGET_DIR:-$top/target}/fuzz
say() { printf '==> %s\n' "$*" >&2; }

targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    for file in tests/fuzz/targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi
say "building"
# With --target the flags do not concern build scripts.
RUSTC_BOOTSTRAP=1 RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Zsanitizer=address \
-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --locked --release --manifest-path tests/fuzz/Cargo.toml --target $target --target-dir "$dir" >&2

failed=0
for name in "${targets[@]}"; do
    program=$dir/$target/release/$name
    [ -x "$program" ] || { say "$name: no such target"; exit 2; }
    corpus=${BULKHEAD_CACHE:-$HOME/.cache/bulkhead}/fuzz/$name
    mkdir -p "$corpus"
    if [ "$seconds" = 0 ]; then
        found=("$corpus"/crash-*)
        [ -e "${found[0]}" ] || { say "$name: nothing has failed"; continue; }
        "$program" "${found[@]}" || failed=1
        continue
    fi
    say "$name, for $seconds s"
    log=$(mktemp)
    if "$program" -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=10 -max_len=65536 \
        -artifact_prefix="$corpus/" "$corpus" >"$log" 2>&1; then
        grep -E '^Done|^#[0-9]+.*DONE' "$log" | sed "s/^/$name: /"
    else
        failed=1
        tail -n 40 "$log"
        echo "$name: FAILED"
    fi
    rm -f "$log"
done
exit $failed
