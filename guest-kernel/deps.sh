#!/bin/bash
# Installs the Debian packages the guest kernel is built from and with; those of the full kernel, too,
# when called with `full`. Does nothing, and needs neither root nor network, when all are there.
set -euo pipefail

packages=(linux-source-6.12 gcc libc6-dev make bc bison flex patch libelf-dev xz-utils perl binutils util-linux)
# pahole makes BTF from debugging information.
[ "${1:-}" != full ] || packages+=(dwarves)

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "guest-kernel: installing ${missing[*]}" >&2
if [ "$(id -u)" -ne 0 ]; then
    echo "guest-kernel: not root; run: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >&2
apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
