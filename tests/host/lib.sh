# Common parts of the test host's commands. Sourced by bash, not run.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # for those who source this
checkout=$(cd "$here/../.." && pwd)
# shellcheck disable=SC2034
bulkhead_cache=${BULKHEAD_CACHE:-${HOME:-/root}/.cache/bulkhead}
hosts=${BULKHEAD_TEST_HOSTS:-/tmp/bulkhead-test-hosts.$(id -u)}

say() { printf 'test-host: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 125
}

# Status codes of our own, above what a command is likely to return.
# shellcheck disable=SC2034
status_timeout=124 # the time limit passed, as with timeout(1)
status_broken=125  # the host could not be started, or died

# True when the machine itself can run virtual machines. The processor decides:
# some development machines have a /dev/kvm that opens and cannot boot a kernel.
machine_has_kvm() {
    grep -qwE 'vmx|svm' /proc/cpuinfo && { : <>/dev/kvm; } 2>/dev/null
}

# direct: on the machine itself; emulated: in QEMU.
mode() {
    case ${BULKHEAD_TEST_HOST:-auto} in
    direct | emulated) echo "$BULKHEAD_TEST_HOST" ;;
    auto) if machine_has_kvm; then echo direct; else echo emulated; fi ;;
    *) die "BULKHEAD_TEST_HOST is '$BULKHEAD_TEST_HOST'; it may be auto, direct or emulated" ;;
    esac
}

check_name() {
    [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9_-]{0,40}$ ]] || die "'$1' is no name for a host: letters, digits, - and _ only, at most 41"
}

# The pid of host $1 when it runs (its QEMU, or the holder of its namespace).
host_pid() {
    local pid
    pid=$(cat "$hosts/$1/pid" 2>/dev/null) || return 1
    # The pid must still be ours: its command line or environment names the host's directory.
    { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF "$hosts/$1/" && echo "$pid"
}

# Starts the job in $2 (a new directory with its script) on host $1, copies its
# output as it comes, returns its status. $3: seconds allowed, 0 for no limit.
follow_job() {
    local host=$1 job=$2 limit=$3 pid waiter out err reason status
    pid=$(host_pid "$host") || die "host $host does not run"
    : >"$job/stdout"
    : >"$job/stderr"
    # The waiter ends when the job has, when the host dies, or at the limit.
    (
        trap - EXIT
        exec >/dev/null 2>&1
        deadline=$((SECONDS + limit))
        while [ ! -e "$job/status" ]; do
            # A dead process nobody has waited for yet has no exe.
            if [ ! -e "/proc/$pid/exe" ]; then
                # A job that powers the host off may have left its status.
                [ -e "$job/status" ] || echo dead >"$job/reason"
                break
            fi
            if [ "$limit" -gt 0 ] && [ $SECONDS -ge $deadline ]; then
                echo timeout >"$job/reason"
                break
            fi
            read -r -t 0.1 _ <>"$job/../../never"
        done
    ) &
    waiter=$!
    if [ ! -e "$job/tty" ]; then
        tail -s 0.05 --pid=$waiter -c +1 -f "$job/stdout" 2>/dev/null &
        out=$!
        tail -s 0.05 --pid=$waiter -c +1 -f "$job/stderr" >&2 2>/dev/null &
        err=$!
    fi
    submit_job "$host" "${job##*/}" "$pid"
    # shellcheck disable=SC2064 # the values of now
    trap "stop_job '$host' '${job##*/}' '$pid'; kill $waiter 2>/dev/null; exit 130" INT TERM HUP
    wait $waiter
    [ -z "${out:-}" ] || wait $out $err
    reason=$(cat "$job/reason" 2>/dev/null || true)
    status=$(cat "$job/status" 2>/dev/null || true)
    case $reason in
    dead)
        say "host $host died under the command; the end of its console:"
        tail -n 40 "$hosts/$host/console.log" >&2
        return $status_broken
        ;;
    timeout)
        stop_job "$host" "${job##*/}" "$pid"
        say "the command's time limit of $limit s passed"
        return $status_timeout
        ;;
    esac
    return "${status:-$status_broken}"
}

# Runs a command in the namespaces of the direct host held by process $1: they
# are those of that process's only child.
enter_direct() {
    local child
    child=$(cat "/proc/$1/task/$1/children")
    shift
    nsenter -t "${child%% *}" -m -p -n -- "$@"
}

# Tells host $1 to start job $2. $3 is the host's pid.
submit_job() {
    if [ -e "$hosts/$1/direct" ]; then
        enter_direct "$3" setsid /bin/bash "$here/guest/job" "$hosts/$1/share/jobs/$2" </dev/null >/dev/null 2>&1 &
        disown $!
    else
        # One short line, written at once: concurrent jobs do not mix.
        echo "start $2" >"$hosts/$1/control.in"
    fi
}

# Kills job $2 on host $1: its whole session, unless parts of it left that.
stop_job() {
    [ -e "/proc/$3/exe" ] || return 0
    if [ -e "$hosts/$1/direct" ]; then
        enter_direct "$3" kill -KILL -- "-$(cat "$hosts/$1/share/jobs/$2/pid")" 2>/dev/null || true
    else
        echo "kill $2" >"$hosts/$1/control.in"
        # The job's directory is needed until it is done.
        for _ in $(seq 100); do
            [ ! -e "$hosts/$1/share/jobs/$2/killed" ] || return 0
            read -r -t 0.1 _ <>"$hosts/$1/share/never" || true
        done
        say "host $1 did not confirm within 10 s that the command is killed"
    fi
}

# Writes a job for the command in "$@" on host $1 and prints its directory.
# The command sees this shell's environment and directory.
new_job() {
    local host=$1 job
    shift
    job=$(mktemp -d "$hosts/$host/share/jobs/job.XXXXXX")
    {
        export -p | grep -vE '^declare -x (BASH[A-Z_]*|SHELLOPTS|UID|EUID|PPID|_|OLDPWD|SHLVL)(=|$)' || true
        printf 'cd %q || exit 125\n' "$PWD"
        printf 'exec'
        printf ' %q' "$@"
        echo
    } >"$job/script"
    echo "$job"
}

# An interactive shell on host $1, on this terminal.
attach_shell() {
    local host=$1 dir=$hosts/$1 job size saved status=0 feed show
    [ -t 0 ] || die "--shell needs a terminal"
    exec 7>"$dir/tty.lock"
    flock -n 7 || die "somebody else has the terminal of host $host"
    size=$(stty size)
    saved=$(stty -g)
    job=$(new_job "$host" /bin/bash -c "stty rows ${size% *} cols ${size#* }; PS1='[test-host $host] \w # ' exec /bin/bash --norc -i")
    rm -f "$job/merge"
    : >"$job/tty"
    if [ -e "$dir/direct" ]; then
        enter_direct "$(host_pid "$host")" /bin/bash "$job/script" || status=$?
        return $status
    fi
    say "a shell on host $host; leave it with exit or Ctrl-D"
    cat "$dir/tty.out" 7>&- &
    show=$!
    exec 6<&0
    stty raw -echo
    cat <&6 >"$dir/tty.in" 7>&- &
    feed=$!
    follow_job "$host" "$job" 0 || status=$?
    kill $feed $show 2>/dev/null
    stty "$saved"
    return $status
}
