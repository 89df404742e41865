#!/usr/bin/env bash
# Types what the documentation tells an operator to type: every `sh` block of every page in docs/, in
# the order of the page, on a node that packaging/install.sh set up at the usual paths. In the test
# host, with the tests' registry on 127.0.0.1:5000; BULKHEAD_BIN_DIR and BULKHEAD_GO_TOOLS name the
# programs. What it installs is seen by itself alone and gone with it.
#
#   docs.sh [PAGE…]     only these pages, by name without .md
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
say() { printf '==> %s\n' "$*"; }

if [ -z "${BULKHEAD_DOCS_INSIDE:-}" ]; then
    export BULKHEAD_DOCS_INSIDE=yes
    exec unshare --mount --propagation private "$0" "$@"
fi

work=$(mktemp -d /tmp/bulkhead-docs.XXXXXX)
mount -t tmpfs docs "$work"
for part in usr etc; do
    mkdir "$work/$part" "$work/$part.work"
    mount -t overlay docs -o "lowerdir=/$part,upperdir=$work/$part,workdir=$work/$part.work" "/$part"
done
for part in /var/lib /run; do
    mkdir -p "$part/bulkhead"
    mkdir -p "$work$part"
done
# State on a disk of its own below the test host's, not where another node's state is.
state=$(mktemp -d /var/lib/bulkhead/docs.XXXXXX)
mount --bind "$state" /var/lib/bulkhead
mount --bind "$work/run" /run/bulkhead

daemon=
finish() {
    local status=$?
    trap - EXIT
    [ $status = 0 ] || { say "the daemon's last words"; tail -n 40 "$work/daemon.log" 2>/dev/null || true; }
    if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; fi
    ip link delete bulkhead0 2>/dev/null || true
    umount --lazy /var/lib/bulkhead && rm -rf "$state"
    umount --lazy "$work" && rmdir "$work"
    exit $status
}
trap finish EXIT

PREFIX=/usr "$top/packaging/install.sh" 2>/dev/null
mkdir -p /etc/cni
rm -rf /etc/cni/net.d
# The registries the pages name are behind a mirror.
mkdir -p /etc/bulkhead/certs.d/registry.k8s.io
cat >/etc/bulkhead/certs.d/registry.k8s.io/hosts.toml <<HOSTS
server = "http://127.0.0.1:5000/v2/registry.k8s.io"
[host."http://127.0.0.1:5000/v2/registry.k8s.io"]
  override_path = true
HOSTS
install -D -m 644 /usr/share/bulkhead/10-bulkhead.conflist /etc/cni/net.d/10-bulkhead.conflist
sed -i 's|^max_vcpus = 0|max_vcpus = 2|' /etc/bulkhead/config.toml
printf 'runtime-endpoint: unix:///run/bulkhead/bulkhead.sock\ntimeout: 120\n' >/etc/crictl.yaml
export PATH="$BULKHEAD_GO_TOOLS:/usr/bin:$PATH"
bulkhead serve >"$work/daemon.log" 2>&1 &
daemon=$!
deadline=$((SECONDS + 60))
until [ -S /run/bulkhead/bulkhead.sock ]; do
    [ $SECONDS -lt $deadline ] || { say "the daemon does not come up"; exit 1; }
    kill -0 "$daemon" || exit 1
    read -rt 0.2 <> <(:) || true
done

pages=("$@")
[ ${#pages[@]} != 0 ] || for page in "$top"/docs/*.md; do page=${page##*/}; pages+=("${page%.md}"); done
for page in "${pages[@]}"; do
    mkdir -p "$work/pages/$page"
    awk '/^```sh$/ { on = 1; next } /^```$/ { on = 0 } on' "$top/docs/$page.md" >"$work/pages/$page/commands"
    [ -s "$work/pages/$page/commands" ] || { say "$page: no commands"; continue; }
    say "$page: $(grep -c . "$work/pages/$page/commands") lines"
    (cd "$work/pages/$page" && timeout 300 bash -euo pipefail -x commands) >"$work/output" 2>&1 </dev/null || {
        status=$?
        tail -n 30 "$work/output"
        say "$page: status $status"
        exit 1
    }
    left=$(crictl pods -q)
    [ -z "$left" ] || { say "$page leaves pods: $left"; exit 1; }
done
say "every command worked"
