#!/usr/bin/env bash
# Holds the dependencies against deny.toml: licences, duplicate versions, sources, and known faults where
# their database can be reached. Builds cargo-deny into the cache the first time, in about two minutes of
# one processor.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
version=0.20.2
cache=${BULKHEAD_CACHE:-$HOME/.cache/bulkhead}
deny=$cache/cargo-deny/$version/bin/cargo-deny
export PATH="$HOME/.cargo/bin:$PATH"
say() { printf '==> %s\n' "$*" >&2; }

if [ ! -x "$deny" ]; then
    mkdir -p "$cache/cargo-deny"
    exec 9>"$cache/cargo-deny/lock"
    flock -w 3600 9 || { say "another build of cargo-deny holds $cache/cargo-deny/lock for an hour"; exit 1; }
fi
if [ ! -x "$deny" ]; then
    say "building cargo-deny $version (about a minute on two cores)"
    work=$(mktemp -d "$cache/cargo-deny/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # Not optimised: it runs for two seconds. Its lock file has the sums of all it is made of.
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 nice cargo install --quiet --locked --debug --target-dir "$work/target" \
        --root "$work/root" --version "=$version" cargo-deny >&2 || { say "cargo-deny $version does not build"; exit 1; }
    rm -rf "${deny%/bin/*}"
    mv "$work/root" "${deny%/bin/*}"
fi

cd "$top"
"$deny" --locked check licenses bans sources
# The database is a git repository at github.com, which not every machine may reach.
if timeout 120 "$deny" --locked fetch db >/dev/null 2>&1; then
    "$deny" --locked check advisories
else
    say "skipped: known faults of dependencies: github.com/RustSec/advisory-db cannot be reached"
fi
