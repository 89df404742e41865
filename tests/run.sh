#!/usr/bin/env bash
# `make test`. Builds, runs the unit and property tests on the machine, then what needs a real host with
# KVM and cgroup v2 in two test hosts side by side: first the VMM's and the agent's own tests, then the
# end-to-end tests, then critest, the CRI's own validation suite.
# One of the two first serves as the node of a real Kubernetes (tests/kube.sh).
# Where the machine has KVM of its own, there is one host and it is the machine. Closes with one
# line: N passed, N failed, N skipped.
# With filters only what those tests need is built and booted.
#
#   run.sh [FILTER…]     only the end-to-end tests whose name contains a filter; critest where a
#                        filter is `critest`, or `critest:PART` for its specs whose `RUN: SPEC`
#                        contains PART (`critest:kvm`, 'critest:host: Streaming'); the cases with
#                        a Kubernetes where it is `kube`, or `kube::PART` for those whose name
#                        contains that
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
export PATH="$HOME/.cargo/bin:/usr/local/go/bin:$PATH"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$top/target}
say() { printf '==> [%4d s] %s\n' $SECONDS "$*" >&2; }
die() { say "$*"; echo; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
results=$(mktemp -d /tmp/bulkhead-results.XXXXXX)
passed=0 failed=0 skipped=0
filters=("$@") kube_filters=()
if [ $# != 0 ]; then
    filters=()
    for filter in "$@"; do
        case $filter in
        kube | kube::*) kube_filters+=("$filter") ;;
        *) filters+=("$filter") ;;
        esac
    done
fi
# The end-to-end tests and critest have no part in a run with filters for Kubernetes alone.
e2e=yes kube=
[ $# = 0 ] || [ ${#filters[@]} != 0 ] || e2e=
[ $# != 0 ] && [ ${#kube_filters[@]} = 0 ] || kube=yes

# Passes on of what cargo and test programs say what is news: which program runs, which tests failed and
# what those said, how it ended, and what the compiler has against it. What passing and skipped tests
# say is in the log alone, whatever it looks like: libtest prints it after `successes:`.
news() {
    local line part=build lines=0
    while IFS= read -r line; do
        case $line in
        ' '*Running\ *) part=build; printf '%s\n' "$line" ;;
        'running '*' test'*) part=tests ;;
        'successes:') part=successes ;;
        'failures:') part=failures lines=0; printf '%s\n' "$line" ;;
        'test result: '*) part=build; printf '%s\n' "$line" ;;
        'test '*' FAILED' | 'error: test failed'* | 'fatal runtime error'*) printf '%s\n' "$line" ;;
        '---- '*' stdout ----')
            lines=0
            [ $part != failures ] || printf '%s\n' "$line"
            ;;
        *)
            case $part in
            build) [[ ! $line =~ ^error|^thread\ .*\ panicked ]] || printf '%s\n' "$line" ;;
            failures)
                lines=$((lines + 1))
                # What it failed with stands at the end of what it said.
                [[ $lines -le 61 || ! $line =~ ^thread\ .*\ panicked ]] || lines=50
                [ $lines -gt 60 ] || printf '%s\n' "$line"
                [ $lines != 61 ] || echo "(the rest is in the log)"
                ;;
            esac
            ;;
        esac
    done
}

# Runs a command with a time limit, its output into FILE and the news of it to the terminal as they
# come: watched FILE SECONDS COMMAND… It is over when the command is, whatever a test may have left
# running with the output still open.
watched() {
    local log=$1 limit=$2 pid show status
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    tail -n +1 -f --pid=$pid "$log" 2>/dev/null | news >&2 &
    show=$!
    wait $pid
    status=$?
    wait $show
    [ $status != 124 ] || say "not done within $limit s: the last lines are"
    [ $status != 124 ] || tail -n 20 "$log" >&2
    return $status
}

# What test programs said in FILES, a line per test: `ok|FAILED|ignored|skipped PROGRAM::NAME`, then
# why it was skipped. A test that cannot run here says `skipped: WHY` and returns: it has not passed.
# One that ran in several places has failed if it failed in one, and passed if it passed in one.
outcomes() {
    awk '
        # A test that says it was skipped does so before or after its line.
        function close_program(name, test) {
            for (test in here) {
                for (name in said) if (here[test] == "ok" && (test == name || test ~ "::" name "$")) {
                    here[test] = "skipped"
                    reason[program "::" test] = said[name]
                }
                name = program "::" test
                if (!(name in best) || rank[here[test]] > rank[best[name]]) best[name] = here[test]
            }
            split("", here); split("", said)
        }
        BEGIN { rank["ignored"] = 1; rank["skipped"] = 2; rank["ok"] = 3; rank["FAILED"] = 4 }
        / Running .*\(.*\)$/ || / Doc-tests / {
            close_program()
            program = $NF; gsub(/^.*\/|-[0-9a-f]+\)$|\)$/, "", program)
        }
        /^test .* \.\.\. / { last = $2; how = $4; sub(/,$/, "", how); if (how in rank) here[last] = how }
        /^test .* \.\.\. ?$/ { last = $2 }
        /^(ok|FAILED)$/ { here[last] = $1 }
        /^---- .* stdout ----$/ { block = $2 }
        /^skipped: / {
            why = $0; sub(/^skipped: /, "", why)
            # With the name of the test where it is said past the capture of output.
            if ($2 ~ /:$/ && $2 !~ /\//) { name = $2; sub(/:$/, "", name); said[name] = why } else said[block] = why
        }
        END {
            close_program()
            for (name in best) print best[name], name, best[name] == "skipped" ? reason[name] : ""
        }' "$@" | LC_ALL=C sort
}

say "building what a node runs"
bin=$(packaging/build.sh fast) || die "the build failed"
say "building the tests' programs"
cargo build --locked --profile fast -p bulkhead-tests >&2 || die "the tests do not build"
mkdir "$results/claims" "$results/program"
program=$results/program/bulkhead-tests
cp "$CARGO_TARGET_DIR/fast/bulkhead-tests" "$program"
maker=$CARGO_TARGET_DIR/fast/bulkhead-test-images
registry=$(tests/images/registry.sh "$maker") || die "no test images"
# crictl and critest take minutes to build where the cache lacks them: for the tests that call them.
go_tools=
listed=0
if [ -n "$e2e" ] && [ -n "$("$program" --list-crictl "${filters[@]}")" ]; then
    go_tools=$(tests/go-tools.sh) || die "no crictl and critest"
fi
export BULKHEAD_BIN_DIR=$bin BULKHEAD_REGISTRY=$registry BULKHEAD_GO_TOOLS=$go_tools
[ -z $e2e ] || listed=$("$program" --list "${filters[@]}" | wc -l)
if [ -n "$kube" ]; then
    export BULKHEAD_KUBE=$results/program/bulkhead-kube
    cp "$CARGO_TARGET_DIR/fast/bulkhead-kube" "$BULKHEAD_KUBE"
    cases=$("$BULKHEAD_KUBE" --list ${kube_filters[@]+"${kube_filters[@]}"} | wc -l)
    [ "$cases" != 0 ] || kube=
fi
[ "$listed" != 0 ] || [ -n "$kube" ] || die "no test's name contains: $*"
# Kubernetes takes a quarter of an hour to build where the cache lacks it.
if [ -n "$kube" ]; then
    BULKHEAD_KUBE_TOOLS=$(tests/kube-tools.sh) || die "no Kubernetes"
    BULKHEAD_KUBE_REGISTRY=$(tests/images/registry.sh "$maker" "$BULKHEAD_KUBE_TOOLS") || die "no images for Kubernetes"
    export BULKHEAD_KUBE_TOOLS BULKHEAD_KUBE_REGISTRY
fi

if [ $# = 0 ]; then
    say "unit and property tests, on this machine"
    watched "$results/unit.log" 1500 cargo test --locked --workspace --no-fail-fast -- --show-output || failed=1
    say "the same in two test hosts, where they need cgroup v2 or a Linux guest"
    watched "$results/vmm.log" 1500 tests/in-host.sh vmm "$bin" &
    vmm=$!
    watched "$results/agent.log" 1500 tests/in-host.sh agent "$bin" || failed=1
    wait $vmm || failed=1
    say "$(grep -h '^the daemon died' "$results/unit.log" || echo 'a daemon was killed at no write')"
    outcomes "$results/unit.log" "$results/vmm.log" "$results/agent.log" >"$results/outcomes"
    count() { grep -cE "^($1) " "$results/outcomes"; }
    passed=$(count ok) skipped=$(count 'skipped|ignored') bad=$(count FAILED)
    if [ $failed != 0 ] && [ "$bad" = 0 ]; then
        say "something failed before a test did: the last lines of each log"
        tail -n 15 "$results"/{unit,vmm,agent}.log >&2
        bad=1
    fi
    failed=$bad
fi

say "end-to-end tests and critest"
nodes=2
grep -qwE 'vmx|svm' /proc/cpuinfo && nodes=1
# No more hosts than tests: two that boot side by side take as long again.
[ $nodes -le "$listed" ] || nodes=$listed
# Kubernetes comes first on the last node, whose other tests the other takes meanwhile.
kubernetes() {
    mkdir -p "$results/kube"
    timeout --kill-after=60 3000 tests/kube.sh cases "$results/kube" ${kube_filters[@]+"${kube_filters[@]}"} \
        </dev/null > >(tee "$results/kube.log" | sed -u "s|^|[kube] |") 2>&1
}
# The nodes share the list of tests: each takes the next that no other has taken.
end_to_end() { # NODE
    mkdir -p "$results/$1"
    tests/host/run.sh --timeout 3600 --share "$results/$1" --share "$results/claims" \
        --copy "$bin" ${go_tools:+--copy "$go_tools"} --copy "$results/program" --ro "$registry" -- \
        "$program" --node "$1" --claims "$results/claims" --results "$results/$1" ${filters[@]+"${filters[@]}"} \
        </dev/null > >(tee "$results/$1.log" | sed -u "s|^|[$1] |") 2>&1
}
# What a run in LOG that ended with STATUS did: sums WHAT STATUS
sums() {
    local log=$results/$1.log sums p f s
    sums=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped' "$log" | tail -n 1)
    if [ -z "$sums" ]; then
        say "test host $1 ended with status $2 and no sums; its last lines:"
        tail -n 30 "$log" >&2
        # What it got done counts, and the end counts as a failure.
        p=$(grep -c '^ok ' "$log") f=$(($(grep -c '^FAIL ' "$log") + 1)) s=$(grep -c '^skip ' "$log")
    else
        read -r p _ f _ s _ <<<"${sums//,/}"
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}
pids=()
if [ -n "$kube" ] && [ "$nodes" -le 1 ]; then kubernetes & pids+=("kube $!"); fi
for node in $(seq "$nodes"); do
    if [ "$node" = "$nodes" ] && [ -n "$kube" ] && [ "$nodes" -gt 1 ]; then
        { kubernetes; echo $? >"$results/kube.status"; end_to_end $node; } &
    else
        end_to_end $node &
    fi
    pids+=("$node $!")
done
for run in "${pids[@]}"; do
    wait "${run#* }"
    status=$?
    sums "${run% *}" $status
done
[ ! -e "$results/kube.status" ] || sums kube "$(cat "$results/kube.status")"
# A test nobody took ran nowhere.
taken=$(find "$results/claims" -mindepth 1 | wc -l)
if [ "$taken" != "$listed" ]; then
    say "$listed end-to-end tests and batches of critest were to run, and $taken did"
    failed=$((failed + 1))
fi

# What became of critest's specs, run by run, and the reasons of those that were skipped.
critest_sums() {
    sed -nE 's/^(ok|skip|FAIL) critest ([a-z-]+): (.*)$/\1\t\2\t\3/p' "$results"/[0-9]*.log | awk -F '\t' '
        { count[$2, $1]++; runs[$2] }
        $1 == "skip" { why = $3; sub(/^.*: skipped: /, "", why); reasons[$2 "\t" why]++ }
        END {
            for (run in runs) {
                printf "critest %s: %d passed, %d failed, %d skipped\n", run, count[run, "ok"], count[run, "FAIL"], count[run, "skip"]
                for (key in reasons) if (index(key, run "\t") == 1) { why = key; sub(/^[^\t]*\t/, "", why); printf "critest %s:   %d skipped: %s\n", run, reasons[key], why }
            }
        }' | LC_ALL=C sort -s -t: -k1,1
}

echo
if [ $skipped != 0 ]; then
    echo "Skipped:"
    grep -hE '^(skipped|ignored) ' "$results/outcomes" 2>/dev/null
    grep -hE '^skip ' "$results"/{[0-9]*,kube}.log 2>/dev/null | grep -vE '^skip critest '
fi
critest_sums
if [ $failed != 0 ]; then
    echo "Failed (logs in $results):"
    grep -hE '^FAILED ' "$results/outcomes" 2>/dev/null
    grep -hE '^FAIL ' "$results"/{[0-9]*,kube}.log 2>/dev/null
else
    rm -rf "$results"
fi
say "done"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
