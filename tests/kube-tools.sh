#!/usr/bin/env bash
# Builds a Kubernetes, etcd and CoreDNS from their Go modules (the releases below) into the cache and
# prints the folder that holds them. Built once: later calls only print.
#
#   kube-tools.sh        kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy,
#                        kubectl, agnhost, etcd, coredns
#   kube-tools.sh e2e    e2e.test, Kubernetes' own tests
set -euo pipefail

version=v1.37.2 # k8s.io/kubernetes; what it keeps as staging modules has the version v0.37.2
etcd=v3.7.0     # as its go.mod has it
coredns=v1.14.3
part=${1:-cluster}
cache=${BULKHEAD_CACHE:-$HOME/.cache/bulkhead}
# What is built, and how, is in this file.
out=$cache/kube/$version-$part-$(sha256sum <"$0" | cut -c1-12)
say() { printf '==> %s\n' "$*" >&2; }
case $part in
cluster | e2e) ;;
*) say "usage: kube-tools.sh [e2e]"; exit 2 ;;
esac

if [ -d "$out" ]; then echo "$out"; exit 0; fi

export PATH="$PATH:/usr/local/go/bin"
command -v go >/dev/null || { say "no Go: tests/setup.sh test installs it"; exit 1; }
mkdir -p "$cache/kube"
exec 9>"$cache/kube/lock"
flock -w 5400 9 || { say "another build holds $cache/kube/lock for an hour and a half"; exit 1; }
if [ -d "$out" ]; then echo "$out"; exit 0; fi

work=$(mktemp -d "$cache/kube/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
begin=$SECONDS

# The module's folder as the release has it, but for its go.mod: what is in its staging folder are modules of
# their own, and etcd's server is a program of this build, too, so that both share what they have in common.
fetch() {
    timeout 900 go mod download -json "k8s.io/kubernetes@$version" >"$work/module" || { cat "$work/module"; return 1; }
    cp -r "$(sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p' "$work/module")" "$work/src" && chmod -R u+w "$work/src" || return 1
    cd "$work/src" && rm -rf go.work go.work.sum vendor || return 1
    sed -i -e "s#=> ./staging/src/\(k8s.io/[a-z0-9-]*\)#=> \1 ${version/v1/v0}#" \
        -e "s#^\(\tgo.etcd.io/etcd/server/v3\) .*#\1 $etcd#" go.mod
}

# Static and without debug information; the version is what kubelet and API server say of themselves.
flags=(-buildvcs=false -trimpath -mod=mod)
linked="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1
    -X k8s.io/component-base/version.gitMinor=${version:3:2} -X k8s.io/component-base/version.gitTreeState=clean"
export CGO_ENABLED=0

cluster() {
    fetch || return 1
    mkdir "$work/out"
    nice timeout 5000 go build "${flags[@]}" -ldflags "$linked" -o "$work/out/" ./cmd/kube-{apiserver,controller-manager,scheduler,proxy} \
        ./cmd/kubelet ./cmd/kubectl ./test/images/agnhost go.etcd.io/etcd/server/v3 || return 1
    mv "$work/out/server" "$work/out/etcd" || return 1
    # Of CoreDNS only the plugins that a cluster's DNS has; and a release that wants no newer modules than
    # Kubernetes does: most of it is compiled already.
    mkdir cmd/coredns && cp go.mod coredns.mod && cp go.sum coredns.sum || return 1
    {
        printf 'package main\n\nimport (\n\t"github.com/coredns/coredns/coremain"\n'
        printf '\t_ "github.com/coredns/coredns/plugin/%s"\n' cache errors forward health kubernetes log loop ready reload
        printf ')\n\nfunc main() { coremain.Run() }\n'
    } >cmd/coredns/main.go
    timeout 900 go get -modfile=coredns.mod "github.com/coredns/coredns@$coredns" || return 1
    nice timeout 3000 go build -modfile=coredns.mod "${flags[@]}" -ldflags "-s -w" -o "$work/out/coredns" ./cmd/coredns
}

e2e() {
    fetch || return 1
    mkdir "$work/out"
    nice timeout 5000 go test -c "${flags[@]}" -ldflags "$linked" -o "$work/out/e2e.test" ./test/e2e
}

say "building Kubernetes $version from its Go module: $part (many minutes the first time)"
status=0
("$part") >"$work/log" 2>&1 || status=$?
if [ $status != 0 ]; then
    tail -n 20 "$work/log" >&2
    say "building Kubernetes $version ($part) failed (status $status)"
    exit 1
fi
say "built in $((SECONDS - begin)) s"
chmod 755 "$work/out"
rm -rf "$out"
# A lone rename: who sees the folder sees all of it.
mv "$work/out" "$out"
echo "$out"
