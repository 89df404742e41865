#!/bin/bash
# Starts a test host, runs a command in it, ends it. See README.md.
set -euo pipefail
export LC_ALL=C
# shellcheck source=tests/host/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat >&2 <<'TEXT'
usage: run.sh [OPTIONS] -- COMMAND…      run COMMAND in a new test host, return its status
       run.sh [OPTIONS] --shell          an interactive shell in a new test host
       run.sh [OPTIONS] --background NAME start one that stays (exec.sh, stop.sh)

  --timeout S   kill it all after S seconds (default 1800; 0: never; not for --background)
  --mem SIZE    memory of the emulated machine (default 6G)
  --disk SIZE   size of the sparse disk at /var/lib/bulkhead (default 20G)
  --share DIR   DIR is writable in the host, at the same path (repeatable)
  --ro DIR      DIR is seen fresh, uncached, at the same path, read-only (repeatable)
  --copy DIR    DIR is copied into the host's memory at its start (programs and what they read
                whole: many times faster there, and not changed by a later build) (repeatable)
  --net ADDRESS:PORT
                a network card, without an address. From 10.0.2.2 the host reaches what listens here on the
                loopback, and here PORT of the host is reached at ADDRESS (10.0.2.15, say), which the command
                in the host has to take. This network namespace gets the addresses: let it be one of your own.
TEXT
    exit 2
}

timeout=1800 mem=6G disk=20G name='' shell='' net='' command=()
shares=() copies=() fresh=("$checkout" "$bulkhead_cache")
[ -z "${CARGO_TARGET_DIR:-}" ] || fresh+=("$CARGO_TARGET_DIR")
while [ $# -gt 0 ]; do
    case $1 in
    --timeout | --mem | --disk | --share | --ro | --copy | --net | --background)
        [ $# -ge 2 ] || usage
        case $1 in
        --timeout) timeout=$2 ;;
        --mem) mem=$2 ;;
        --disk) disk=$2 ;;
        --share) shares+=("$2") ;;
        --ro) fresh+=("$2") ;;
        --copy) copies+=("$2") ;;
        --net) net=$2 ;;
        --background) name=$2 ;;
        esac
        shift 2
        ;;
    --shell)
        shell=1
        shift
        ;;
    --)
        shift
        command=("$@")
        break
        ;;
    *) usage ;;
    esac
done
[[ $timeout =~ ^[0-9]+$ ]] || die "--timeout wants seconds, not '$timeout'"
if [ -n "$name" ]; then
    [ -z "$shell" ] && [ ${#command[@]} -eq 0 ] || usage
    check_name "$name"
    background=1
else
    if [ -n "$shell" ]; then
        [ ${#command[@]} -eq 0 ] || usage
    else
        [ ${#command[@]} -gt 0 ] || usage
    fi
    name=run-$$
    background=
fi
[[ -z $net || $net =~ ^10\.0\.2\.[0-9]+:[0-9]+$ ]] || die "--net wants an address of 10.0.2.0/24 and a port, not '$net'"
[ "$(id -u)" -eq 0 ] || die "the test host needs root: it reads all of the machine's files and keeps their owners"

mode=$(mode)
dir=$hosts/$name
mkdir -p "$hosts"
! host_pid "$name" >/dev/null || die "host $name runs already"
rm -rf "$dir"
mkdir -p "$dir/share/jobs"
mkfifo "$dir/share/never"
started=
cleanup() {
    local pid
    if [ -z "$started" ] || [ -z "$background" ]; then
        pid=$(host_pid "$name") && kill -KILL "$pid" 2>/dev/null
        rm -rf "$dir"
    fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

begin=$(date +%s%N)
truncate -s "$disk" "$dir/disk.img"
mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "$dir/disk.img"

start_emulated() {
    local kernel qemu count=0 path args
    kernel=$("$here/prepare.sh")
    qemu=(qemu-system-x86_64)
    if [ -e "$kernel/qemu" ]; then
        path=$(readlink -f "$kernel/qemu/usr")
        qemu=("$path/bin/qemu-system-x86_64" -L "$path/share/qemu" -L /usr/share/seabios)
        export QEMU_MODULE_DIR=$path/lib/x86_64-linux-gnu/qemu
    fi
    mkfifo "$dir/control.in" "$dir/control.out" "$dir/tty.in" "$dir/tty.out"
    args=()
    share() { # TAG PATH READONLY
        args+=(-fsdev "local,id=$1,path=${2//,/,,},security_model=none,multidevs=remap,readonly=$3"
            -device "virtio-9p-pci,fsdev=$1,mount_tag=$1")
    }
    listed() { # PATH READONLY OPTIONS: shared, and mounted as the guest's init finds it in the list
        local tag=share$((count++))
        share $tag "$1" "$2"
        echo "$tag $3 $1" >>"$dir/share/mounts"
    }
    share root / on
    share control "$dir/share" off
    share modules "$(readlink -f "$kernel/modules")" on
    : >"$dir/share/mounts"
    for path in "${fresh[@]}"; do
        path=$(realpath -m "$path")
        mkdir -p "$path"
        listed "$path" on ro,cache=none
    done
    for path in ${shares[@]+"${shares[@]}"}; do
        path=$(realpath -e "$path") || die "--share: no such directory"
        listed "$path" off cache=none
    done
    # Last: one may lie in a directory above.
    for path in ${copies[@]+"${copies[@]}"}; do
        path=$(realpath -e "$path") || die "--copy: no such directory"
        listed "$path" on copy
    done
    if [ -n "$net" ]; then
        # QEMU is the router, and dials and listens on this side.
        ip link set lo up
        ip address replace 10.0.2.2/32 dev lo
        ip address replace "${net%:*}/32" dev lo
        # Else who dials the host would have the host's own address.
        ip route replace table local local "${net%:*}" dev lo proto kernel scope host src 10.0.2.2
        args+=(-netdev "user,id=net,ipv6=off,hostfwd=tcp:$net-$net" -device virtio-net-pci,netdev=net,romfile=)
    fi
    # One processor: with two, the emulated host's kernel oopses now and then.
    # oops=panic, panic=-1 and -no-reboot make any oops the end of QEMU, which
    # every waiter sees. tsc=reliable: a busy machine looks like an unstable clock,
    # and any other clock source costs an exit of the emulator at every reading.
    # Without ERMS, FSRM and rep_good kernels copy and clear by plain moves: the
    # emulator does `rep movs` and `rep stos` one element at a time.
    setsid "${qemu[@]}" -nodefaults -no-user-config -display none -no-reboot \
        -M q35,hpet=off,smbus=off,sata=off,usb=off -accel tcg -cpu max,-erms,-fsrm -smp 1 -m "$mem" \
        -kernel "$kernel/vmlinux" -initrd "$kernel/initrd" \
        -append "console=ttyS0 tsc=reliable oops=panic panic=-1 mitigations=off nokaslr audit=0 clearcpuid=rep_good random.trust_cpu=1 loglevel=4 apparmor=1" \
        -serial "file:$dir/console.log" \
        -device virtio-serial-pci \
        -chardev "pipe,id=control,path=$dir/control" -device virtserialport,chardev=control,nr=1 \
        -chardev "pipe,id=tty,path=$dir/tty" -device virtconsole,chardev=tty,nr=0 \
        -drive "file=$dir/disk.img,format=raw,if=none,id=scratch,cache=unsafe,discard=unmap" \
        -device virtio-blk-pci,drive=scratch \
        "${args[@]}" </dev/null >"$dir/qemu.log" 2>&1 &
    echo $! >"$dir/pid"
    # Its end, by a kill of ours, is no news.
    disown
}

start_direct() {
    say "the machine has KVM: running on the machine itself, in namespaces of its own"
    local path
    : >"$dir/direct"
    for path in "${fresh[@]}" ${copies[@]+"${copies[@]}"}; do
        mkdir -p "$path"
        echo "ro $(realpath "$path")"
    done >"$dir/mounts"
    for path in ${shares[@]+"${shares[@]}"}; do
        path=$(realpath -e "$path") || die "--share: no such directory"
        echo "rw $path"
    done >>"$dir/mounts"
    : >"$dir/console.log"
    # All that runs in it ends with it: the holder is the first process of a
    # process namespace.
    setsid unshare --mount --propagation private --net --pid --fork --kill-child --mount-proc /bin/bash "$here/guest/direct" "$dir/" \
        </dev/null >"$dir/console.log" 2>&1 &
    echo $! >"$dir/pid"
}

# A cable from the network namespace of the direct host held by process $1 to a switch in this one.
join_direct() {
    local child cable
    child=$(cat "/proc/$1/task/$1/children")
    cable=${net%:*} cable=host-${cable##*.}
    ip link set lo up
    [ -e /sys/class/net/test-hosts ] || ip link add test-hosts type bridge
    ip address replace 10.0.2.2/24 dev test-hosts
    ip link set test-hosts up
    ip link add "$cable" master test-hosts type veth peer name eth0 netns "${child%% *}"
    ip link set "$cable" up
}

"start_$mode"
pid=$(cat "$dir/pid")
deadline=$((SECONDS + 180))
while [ ! -e "$dir/share/up" ]; do
    if [ ! -e "/proc/$pid/exe" ] || [ $SECONDS -ge $deadline ]; then
        [ -e "/proc/$pid/exe" ] && say "the test host was not up within 180 s" || say "the test host ended while starting"
        cat "$dir/qemu.log" >&2 2>/dev/null || true
        tail -n 40 "$dir/console.log" >&2 2>/dev/null || true
        exit $status_broken
    fi
    read -r -t 0.05 _ <>"$dir/share/never" || true
done
[ -z "$net" ] || [ $mode != direct ] || join_direct "$pid"
started=1
say "$mode host $name is up after $((($(date +%s%N) - begin) / 1000000)) ms"

[ -z "$background" ] || exit 0
status=0
if [ -n "$shell" ]; then
    attach_shell "$name" || status=$?
else
    job=$(new_job "$name" "${command[@]}")
    [ /dev/fd/1 -ef /dev/fd/2 ] && : >"$job/merge"
    follow_job "$name" "$job" "$timeout" || status=$?
fi
exit $status
