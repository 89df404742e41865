#!/bin/bash
# check-config.sh CONFIG FRAGMENT...
#
# Fails, with a list, when something a fragment asks for is not so in CONFIG:
# Kconfig drops an option in silence when a parent of it is off, and turns one
# on in silence when another selects it. Of an option that several fragments name the last word counts.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG FRAGMENT..." >&2
    exit 2
fi

awk '
    function ask(name, want) { if (!(name in wanted)) order[++count] = name; wanted[name] = want; whose[name] = FILENAME }
    FNR == 1 { file++ }
    file == 1 && /^CONFIG_/ { split($0, part, "="); have[part[1]] = substr($0, length(part[1]) + 2); next }
    file == 1 { next }
    /^CONFIG_[A-Za-z0-9_]+=/ { split($0, part, "="); ask(part[1], substr($0, length(part[1]) + 2)); next }
    /^# CONFIG_[A-Za-z0-9_]+ is not set$/ { ask($2, "off"); next }
    /^#/ || /^[[:space:]]*$/ { next }
    { print "not understood: " $0 " (" FILENAME ":" FNR ")"; bad++ }
    END {
        for (i = 1; i <= count; i++) {
            name = order[i]; want = wanted[name]
            if (want == "off") {
                if (name in have) { print "turned on: " name " is " have[name] ", wanted off (" whose[name] ")"; bad++ }
            } else if (!(name in have)) {
                print "vanished: " name " (wanted " want ", asked for in " whose[name] ")"; bad++
            } else if (have[name] != want) {
                print "changed: " name " is " have[name] ", wanted " want " (" whose[name] ")"; bad++
            }
        }
        if (bad) { print bad " of " count + 0 " options are not as wanted"; exit 1 }
        if (!count) { print "the fragments ask for nothing"; exit 1 }
        print count " options are as wanted"
    }
' "$@"
