#!/bin/bash
# Tests check-config.sh: it must accept what is so, and name each thing that is not.
set -euo pipefail
cd "$(dirname "$0")"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ran=0

# expect STATUS TEXT CONFIG FRAGMENT: the check ends with STATUS and its output holds TEXT.
expect() {
    local status=0 output
    printf '%b' "$3" >"$work/config"
    printf '%b' "$4" >"$work/fragment"
    output=$(./check-config.sh "$work/config" "$work/fragment") || status=$?
    if [ "$status" -ne "$1" ] || [[ "$output" != *"$2"* ]]; then
        echo "FAILED: wanted status $1 and '$2', got status $status and '$output'" >&2
        exit 1
    fi
    ran=$((ran + 1))
}

expect 0 '2 options are as wanted' 'CONFIG_A=y\n# CONFIG_B is not set\n' 'CONFIG_A=y\n# CONFIG_B is not set\n'
expect 1 'vanished: CONFIG_A' '# CONFIG_A is not set\n' 'CONFIG_A=y\n'
expect 1 'changed: CONFIG_N is 8, wanted 64' 'CONFIG_N=8\n' 'CONFIG_N=64\n'
expect 1 'turned on: CONFIG_B' 'CONFIG_A=y\nCONFIG_B=y\n' 'CONFIG_A=y\n# CONFIG_B is not set\n'
expect 1 'not understood' 'CONFIG_A=y\n' 'CONFIG_A\n'
expect 1 'ask for nothing' 'CONFIG_A=y\n' '# only words\n'
# A later fragment has the last word, whichever way.
expect 0 '1 options are as wanted' 'CONFIG_A=y\n' '# CONFIG_A is not set\nCONFIG_A=y\n'
expect 1 'turned on: CONFIG_A' 'CONFIG_A=y\n' 'CONFIG_A=y\n# CONFIG_A is not set\n'
expect 0 'as wanted' 'CONFIG_S="a=b c"\n' 'CONFIG_S="a=b c"\n'
echo "check-config: $ran tests passed"
