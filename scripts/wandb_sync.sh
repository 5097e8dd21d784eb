#!/usr/bin/env bash
# Upload the offline runs of wandb below a folder, oldest start first, and say what is still missing.
#
#   bash scripts/wandb_sync.sh DIR          a folder of runs, or one run folder
#   bash scripts/wandb_sync.sh DIR --list   only say what is missing
#
# Run it where there is a network, after `wandb login`. What was uploaded is marked and left out the next time.
set -uo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
if [ $# -lt 1 ] || [ ! -d "$1" ]; then
    echo "usage: bash scripts/wandb_sync.sh DIR [--list]: a folder of runs" >&2
    exit 2
fi
wandb="$root/.venv/bin/wandb"
[ -x "$wandb" ] || wandb=wandb

# Folders of starts that were not uploaded, by the time in their names.
missing() {
    find "$1" -type d -name 'offline-run-*' | while read -r start; do
        compgen -G "$start/*.wandb" >/dev/null && ! compgen -G "$start/*.wandb.synced" >/dev/null && printf '%s\t%s\n' "${start##*/}" "$start"
    done | sort | cut -f 2
}

total="$(find "$1" -type d -name 'offline-run-*' | wc -l)"
if [ "${2:-}" != --list ]; then
    n=0 count="$(missing "$1" | grep -c .)"
    while read -r start; do
        n=$((n + 1))
        echo "[$n/$count] $start"
        WANDB_MODE=online "$wandb" sync "$start" </dev/null || echo "  not uploaded (see above)" >&2
    done < <(missing "$1")
fi
left="$(missing "$1")"
if [ -n "$left" ]; then
    echo "$left" | sed 's/^/missing: /'
    echo "$(echo "$left" | grep -c .) of $total starts are still to be uploaded"
    exit 1
fi
echo "all $total starts are uploaded"
