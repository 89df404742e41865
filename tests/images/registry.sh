#!/usr/bin/env bash
# Makes the test images, pushes them into a real registry (Debian's docker-registry) and prints the
# folder that holds the registry's storage: a read-only registry over it is all a test needs.
# Cached by the content of everything that goes in.
#
#   registry.sh BULKHEAD-TEST-IMAGES [TOOLS]    the program that writes the images; with what kube-tools.sh
#                                               printed, those for Kubernetes
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${BULKHEAD_CACHE:-$HOME/.cache/bulkhead}
say() { printf '==> %s\n' "$*" >&2; }

maker=${1:?usage: registry.sh BULKHEAD-TEST-IMAGES [TOOLS]}
parts=$("$here/parts.sh")
key=$( { echo "$parts" ${2+"$2"}; cat "$here"/../src/images/*.rs "$0"; } | sha256sum | cut -c1-16)
out=$cache/registry/$key
mkdir -p "$cache/registry"
exec 9>"$cache/registry/lock"
flock -w 3600 9
if [ -e "$out/done" ]; then echo "$out"; exit 0; fi

work=$(mktemp -d "$cache/registry/work.XXXXXX")
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

say "test images: writing the layers"
"$maker" "$parts" "$work/layouts" ${2+"$2"} >"$work/list"

port=5199
mkdir -p "$work/storage"
cat >"$work/config.yml" <<CONFIG
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: $work/storage}
http: {addr: 127.0.0.1:$port}
CONFIG
docker-registry serve "$work/config.yml" >"$work/registry.log" 2>&1 &
server=$!
deadline=$((SECONDS + 60))
until curl -sf "http://127.0.0.1:$port/v2/" >/dev/null; do
    [ $SECONDS -lt $deadline ] || { say "the registry did not come up:"; cat "$work/registry.log" >&2; exit 1; }
    kill -0 "$server" 2>/dev/null || { cat "$work/registry.log" >&2; exit 1; }
    read -rt 0.1 <> <(:) || true
done
while read -r dir name; do
    say "test images: pushing $name"
    skopeo copy --insecure-policy -q --dest-tls-verify=false "oci:$dir" "docker://127.0.0.1:$port/$name"
done <"$work/list"
kill "$server"; wait "$server" 2>/dev/null || true; server=

mv "$work/storage" "$work/final"
touch "$work/final/done"
rm -rf "$out"
mv "$work/final" "$out"
echo "$out"
