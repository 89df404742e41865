#!/usr/bin/env bash
# Builds crictl and critest from their Go module (sigs.k8s.io/cri-tools, the release below) into the
# cache and prints the folder that holds them. Built once: later calls only print.
set -euo pipefail

version=v1.37.0
cache=${BULKHEAD_CACHE:-$HOME/.cache/bulkhead}
# What is built, and how, is in this file.
out=$cache/go/$version-$(sha256sum <"$0" | cut -c1-12)
say() { printf '==> %s\n' "$*" >&2; }

if [ -x "$out/critest" ]; then echo "$out"; exit 0; fi

export PATH="$PATH:/usr/local/go/bin"
command -v go >/dev/null || { say "no Go: tests/setup.sh test installs it"; exit 1; }
mkdir -p "$cache/go"
exec 9>"$cache/go/lock"
flock -w 3600 9 || { say "another build of the tools holds $cache/go/lock for an hour"; exit 1; }
if [ -x "$out/critest" ]; then echo "$out"; exit 0; fi

work=$(mktemp -d "$cache/go/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "building crictl and critest $version by Go (some minutes the first time)"
# Built in the module's own folder, so that its go.sum holds for every dependency and no list of
# releases is asked for. Static; the version is what `crictl --version` says.
build() {
    local source
    timeout 600 go mod download -json "sigs.k8s.io/cri-tools@$version" >"$work/module" || { cat "$work/module"; return 1; }
    source=$(sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p' "$work/module")
    cd "$source" || return 1
    local flags=(-buildvcs=false -trimpath -mod=readonly
        -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$version")
    export CGO_ENABLED=0
    nice timeout 3000 go build "${flags[@]}" -o "$work/crictl" ./cmd/crictl || return 1
    # critest is a test program: that of the package that would be its command.
    nice timeout 3000 go test -c "${flags[@]}" -o "$work/critest" ./cmd/critest
}
status=0
(build) >"$work/log" 2>&1 || status=$?
if [ $status != 0 ]; then
    tail -n 20 "$work/log" >&2
    say "building cri-tools $version failed (status $status)"
    exit 1
fi
rm "$work/log" "$work/module"
chmod 755 "$work"
rm -rf "$out"
# A lone rename: who sees the folder sees all of it.
mv "$work" "$out"
echo "$out"
