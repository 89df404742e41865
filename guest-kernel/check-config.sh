#!/bin/bash
# check-config.sh CONFIG FRAGMENT...
#
# Fails, with a list, when something a fragment asks for is not so in CONFIG:
# Kconfig drops an option in silence when a parent of it is off, and turns one
# on in silence when another selects it.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG FRAGMENT..." >&2
    exit 2
fi

awk '
    FNR == 1 { file++ }
    file == 1 && /^CONFIG_/ { split($0, part, "="); have[part[1]] = substr($0, length(part[1]) + 2); next }
    file == 1 { next }
    /^CONFIG_[A-Za-z0-9_]+=/ {
        split($0, part, "="); name = part[1]; want = substr($0, length(name) + 2); wanted++
        if (!(name in have)) { print "vanished: " name " (wanted " want ", asked for in " FILENAME ")"; bad++ }
        else if (have[name] != want) { print "changed: " name " is " have[name] ", wanted " want " (" FILENAME ")"; bad++ }
        next
    }
    /^# CONFIG_[A-Za-z0-9_]+ is not set$/ {
        wanted++
        if ($2 in have) { print "turned on: " $2 " is " have[$2] ", wanted off (" FILENAME ")"; bad++ }
        next
    }
    /^#/ || /^[[:space:]]*$/ { next }
    { print "not understood: " $0 " (" FILENAME ":" FNR ")"; bad++ }
    END {
        if (bad) { print bad " of " wanted " options are not as wanted"; exit 1 }
        if (!wanted) { print "the fragments ask for nothing"; exit 1 }
        print wanted " options are as wanted"
    }
' "$@"
