#!/usr/bin/env bash
# A real Kubernetes around Bulkhead: control plane on the machine, nodes in test hosts, in processes, mounts and
# network of their own. All of it ends with this script.
#
#   kube.sh cases RESULTS [FILTER…]    the cases of tests/src/kube whose name contains a filter
#
# The environment says where things are: BULKHEAD_BIN_DIR, BULKHEAD_KUBE (the program), BULKHEAD_KUBE_TOOLS,
# BULKHEAD_KUBE_REGISTRY.
set -euo pipefail
cd "$(dirname "$0")/.."
export BULKHEAD_TEST_SCRIPTS=$PWD/tests
what=$1 results=$2
shift 2
work=$(mktemp -d /tmp/bulkhead-kube.XXXXXX)
# Host names are made of process ids, which others have, too.
export BULKHEAD_TEST_HOSTS=$work/hosts
holder=
trap '[ -z "$holder" ] || kill -KILL "$holder" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
export BULKHEAD_KUBE_WORK=$work
unshare --mount --net --pid --fork --kill-child=KILL --mount-proc "$BULKHEAD_KUBE" "$what" "$work" "$results" "$@" </dev/null &
holder=$!
status=0
wait $holder || status=$?
holder=
exit $status
