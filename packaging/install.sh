#!/usr/bin/env bash
# `make install`: puts what packaging/build.sh built where a node expects it. Respects DESTDIR and
# PREFIX (/usr). Nothing that is configured already is overwritten, and nothing of others' is
# touched: CNI configuration and RuntimeClasses are examples below share/.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
built=${BULKHEAD_BIN_DIR:-${CARGO_TARGET_DIR:-$top/target}/dist-release}
prefix=${PREFIX:-/usr}
root=${DESTDIR:-}
say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }

[[ $prefix == /* ]] || die "PREFIX is '$prefix', not an absolute path"
for part in bulkhead bulkhead-vmm bulkhead-agent vmlinux initramfs.cpio; do
    [ -f "$built/$part" ] || die "$built/$part is missing: make build"
done

put() { # MODE FILE TARGET
    install -D -m "$1" "$2" "$root$3"
    say "$root$3"
}
put 755 "$built/bulkhead" "$prefix/bin/bulkhead"
put 755 "$built/bulkhead-vmm" "$prefix/lib/bulkhead/bulkhead-vmm"
put 755 "$built/bulkhead-agent" "$prefix/lib/bulkhead/bulkhead-agent"
put 644 "$built/vmlinux" "$prefix/lib/bulkhead/vmlinux"
put 644 "$built/initramfs.cpio" "$prefix/lib/bulkhead/initramfs.cpio"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# `|` cannot be in either: it would end the expression.
[[ $prefix != *['|&\']* ]] || die "PREFIX '$prefix' has a character that cannot be written into files"
sed "s|@PREFIX@|$prefix|" "$top/packaging/systemd/bulkhead.service" >"$work/bulkhead.service"
"$built/bulkhead" serve --print-default-config | sed "s|\"/usr/lib/bulkhead/|\"$prefix/lib/bulkhead/|" >"$work/config.toml"
grep -q "^binary = \"$prefix/lib/bulkhead/bulkhead-vmm\"" "$work/config.toml" || die "the default configuration names no vmm.binary"

put 644 "$work/bulkhead.service" "$prefix/lib/systemd/system/bulkhead.service"
put 644 "$work/config.toml" "$prefix/share/bulkhead/config.toml"
put 644 "$top/packaging/cni/10-bulkhead.conflist" "$prefix/share/bulkhead/10-bulkhead.conflist"
put 644 "$top/packaging/kubernetes/runtimeclass-kvm.yaml" "$prefix/share/bulkhead/runtimeclass-kvm.yaml"
put 644 "$top/packaging/kubernetes/runtimeclass-kvm-full.yaml" "$prefix/share/bulkhead/runtimeclass-kvm-full.yaml"
put 644 "$top/packaging/kubernetes/runtimeclass-host.yaml" "$prefix/share/bulkhead/runtimeclass-host.yaml"
put 644 "$top/LICENSE" "$prefix/share/doc/bulkhead/LICENSE"
if [ -e "$root/etc/bulkhead/config.toml" ]; then
    say "$root/etc/bulkhead/config.toml is there and stays as it is"
else
    put 644 "$work/config.toml" /etc/bulkhead/config.toml
fi
say "a node without a CNI network: cp $prefix/share/bulkhead/10-bulkhead.conflist /etc/cni/net.d/"
