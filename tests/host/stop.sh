#!/bin/bash
# stop.sh NAME: ends a test host and removes all it had. Nothing to do is no error.
set -euo pipefail
# shellcheck source=tests/host/lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -eq 1 ] || {
    echo "usage: stop.sh NAME" >&2
    exit 2
}
check_name "$1"
if pid=$(host_pid "$1"); then
    kill -KILL "$pid"
    timeout 30 tail --pid="$pid" -f /dev/null || die "host $1 (process $pid) did not end"
fi
rm -rf "${hosts:?}/$1"
