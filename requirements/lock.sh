#!/bin/sh
# Pins every requirement file from its .in file (make lock). $UV names the resolver.
set -eu
cd "$(dirname "$0")"
pin() {
    "$UV" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
        --no-annotate --no-header --no-emit-index-url "$@"
}
pin runtime.in -o ../layers/runtime/requirements.txt
pin dev.in -c ../layers/runtime/requirements.txt -o dev.txt
pin cloud.in -o cloud.txt
pin sam.in -o sam.txt
pin policy.in -o policy.txt
pin generators.in -o generators.txt
pin plots.in -o plots.txt
if command -v npm >/dev/null; then # versions and digests, but no addresses
    (cd npm && npm install --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts --no-audit --no-fund --silent)
fi
if grep -n '://' ./*.txt ../layers/runtime/requirements.txt || grep -n '"resolved"' npm/package-lock.json; then
    echo "requirements: a pinned file names a host; remove it" >&2
    exit 1
fi
