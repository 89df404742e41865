#!/bin/bash
# Tests the test host itself: what it promises in README.md. About two minutes.
set -euo pipefail
export LC_ALL=C
# shellcheck source=tests/host/lib.sh
. "$(dirname "$0")/lib.sh"

work=$(mktemp -d)
host=selftest-$$
trap '"$here/stop.sh" $host; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
ran=0 skipped=0

ok() { ran=$((ran + 1)) && echo "ok: $1"; }
fail() {
    echo "FAILED: $*" >&2
    exit 1
}
in_host() { "$here/exec.sh" $host "$@"; }
status_of() {
    local status=0
    "$@" >"$work/out" 2>"$work/err" || status=$?
    echo $status
}

mkdir "$work/shared" "$work/fresh"
echo before >"$work/fresh/file"
"$here/run.sh" --background $host --share "$work/shared" --ro "$work/fresh"

[ "$(status_of in_host -- bash -c 'echo one; echo two >&2; exit 7')" = 7 ] || fail "status 7 expected; stderr: $(cat "$work/err")"
[ "$(cat "$work/out")" = one ] && [ "$(cat "$work/err")" = two ] || fail "streams are mixed or lost"
ok "streams and status come back"

[ "$(status_of in_host -- bash -c 'echo a; echo b >/dev/stdout; echo c')" = 0 ] || fail "reopening stdout"
[ "$(tr -d '\n' <"$work/out")" = abc ] || fail "reopening /dev/stdout lost output: $(cat "$work/out")"
ok "reopening /dev/stdout loses nothing"

seq 400000 >"$work/numbers"
in_host --stdin -- cat <"$work/numbers" >"$work/out"
cmp "$work/numbers" "$work/out" || fail "2.7 MB through stdin and stdout are not the same"
ok "2.7 MB through stdin and stdout, byte for byte"

[ "$(status_of in_host --timeout 10 -- bash -c 'echo started; sleep 1000')" = $status_timeout ] || fail "the time limit"
grep -q started "$work/out" || fail "output before the time limit is lost"
in_host -- bash -c '! pgrep --runstates RSD -x sleep' || fail "a command past its time limit still runs"
ok "the time limit ends the command"

pids=()
for n in 1 2 3 4 5 6; do
    in_host -- bash -c "echo $n; exit $n" >"$work/parallel.$n" &
    pids+=($!)
done
for n in 1 2 3 4 5 6; do
    status=0
    wait "${pids[n - 1]}" || status=$?
    [ $status = $n ] && [ "$(cat "$work/parallel.$n")" = $n ] || fail "command $n of six at once: status $status"
done
ok "six commands at once"

export SELFTEST_VALUE='with "quotes" and
a line break'
[ "$(cd /usr/share && in_host -- bash -c 'echo "$SELFTEST_VALUE $PWD"')" = "$SELFTEST_VALUE /usr/share" ] || fail "environment or directory"
ok "environment and directory are the caller's"

in_host -- bash -c "echo back >$work/shared/result"
[ "$(cat "$work/shared/result")" = back ] || fail "a writable share"
[ "$(in_host -- cat "$work/fresh/file")" = before ] || fail "a fresh share"
echo after >"$work/fresh/new" && mv "$work/fresh/new" "$work/fresh/file"
[ "$(in_host -- cat "$work/fresh/file")" = after ] || fail "a replaced file is seen old"
[ "$(status_of in_host -- touch "$work/fresh/x")" != 0 ] || fail "--ro is writable"
ok "shares: writable, fresh, read-only"

in_host -- test -c /dev/kvm || fail "no /dev/kvm"
if [ "$(mode)" = emulated ]; then
    in_host -- bash -c 'echo leak >/usr/leak-test && test -s /usr/leak-test'
    [ ! -e /usr/leak-test ] || fail "a write to /usr reached the machine"
    in_host -- bash -c '
        set -e
        for dev in kvm vhost-net vhost-vsock net/tun loop-control fuse; do test -c /dev/$dev; done
        for controller in cpu cpuset memory io pids; do grep -qw $controller /sys/fs/cgroup/cgroup.subtree_control; done
        findmnt -no FSTYPE /var/lib/bulkhead | grep -qx ext4
        ip netns add a; ip link add v0 type veth peer name v1 netns a; ip link add br0 type bridge; ip link set v0 master br0 up
        ip tuntap add t0 mode tap; tc qdisc add dev v0 ingress
        tc filter add dev v0 parent ffff: matchall action mirred egress redirect dev t0
        iptables-nft -t nat -A POSTROUTING -s 10.0.0.0/8 -m comment --comment x -j MASQUERADE
        iptables-legacy -t nat -A PREROUTING -p tcp -m multiport --dports 1,2 -m addrtype --dst-type LOCAL -j DNAT --to 10.0.0.1
        ip netns del a' >"$work/out" 2>&1 || fail "something the tests need is missing: $(cat "$work/out")"
    ok "devices, cgroup controllers, network tools"

    [ "$(status_of in_host -- bash -c 'echo c >/proc/sysrq-trigger; sleep 100')" = $status_broken ] || fail "a kernel crash is not reported"
    grep -q 'sysrq triggered crash' "$work/err" || fail "the console's tail is not shown: $(cat "$work/err")"
    [ "$(status_of in_host -- true)" = $status_broken ] || fail "a dead host takes commands"
    ok "a crash of the host is noticed and shown"
else
    skipped=2
    echo "skipped: 2 tests of the emulated host (this machine has KVM)"
fi

"$here/stop.sh" $host
[ ! -e "$hosts/$host" ] || fail "stop.sh left something"
[ "$(status_of "$here/run.sh" --timeout 300 -- bash -c 'echo out; exit 3')" = 3 ] && [ "$(cat "$work/out")" = out ] || fail "run.sh -- COMMAND: $(cat "$work/err")"
for left in "$hosts"/run-*/pid; do
    [ ! -e "$left" ] || [ -e "/proc/$(cat "$left")" ] || fail "run.sh left its directory: ${left%/pid}"
done
ok "one command in a host of its own"

echo "test host: $ran tests passed, $skipped skipped"
