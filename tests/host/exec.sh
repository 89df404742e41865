#!/bin/bash
# Runs a command in a test host that run.sh --background started; its output
# comes as it is written, its status is returned.
set -euo pipefail
export LC_ALL=C
# shellcheck source=tests/host/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    echo "usage: exec.sh NAME [--timeout S] [--stdin] -- COMMAND…
       exec.sh NAME --shell

  --stdin   read standard input to its end first, and give it to COMMAND" >&2
    exit 2
}

[ $# -ge 2 ] || usage
name=$1 timeout=0 stdin='' shell=''
shift
while [ $# -gt 0 ]; do
    case $1 in
    --timeout)
        [ $# -ge 2 ] || usage
        timeout=$2
        shift 2
        ;;
    --stdin)
        stdin=1
        shift
        ;;
    --shell)
        shell=1
        shift
        ;;
    --)
        shift
        break
        ;;
    *) usage ;;
    esac
done
[[ $timeout =~ ^[0-9]+$ ]] || die "--timeout wants seconds, not '$timeout'"
check_name "$name"
host_pid "$name" >/dev/null || die "host $name does not run; start it with: run.sh --background $name"
status=0
if [ -n "$shell" ]; then
    attach_shell "$name" || status=$?
    exit $status
fi
[ $# -gt 0 ] || usage
job=$(new_job "$name" "$@")
trap 'rm -rf "$job"' EXIT
[ /dev/fd/1 -ef /dev/fd/2 ] && : >"$job/merge"
[ -z "$stdin" ] || cat >"$job/stdin"
follow_job "$name" "$job" "$timeout" || status=$?
exit $status
