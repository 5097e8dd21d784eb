#!/usr/bin/env bash
# Show the curves of wandb's offline runs in the terminal (wandb leet; h: help, q: quit).
#
#   bash scripts/wandb_leet.sh DIR          a run folder, or a folder of runs: space adds a run to the plots
#   bash scripts/wandb_leet.sh DIR --list   only say which starts those are
#
# wandb leet looks into one folder, and every run has its own: this links the last start of each, which holds the whole run.
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
if [ $# -lt 1 ] || [ ! -d "$1" ]; then
    echo "usage: bash scripts/wandb_leet.sh DIR [--list]: a run folder, or a folder of runs" >&2
    exit 2
fi
wandb="$root/.venv/bin/wandb"
[ -x "$wandb" ] || wandb=wandb

found=()
while IFS= read -r id; do
    last="$(find "${id%/*}/wandb" -mindepth 1 -maxdepth 1 -type d \( -name 'offline-run-*' -o -name 'run-*' \) 2>/dev/null |
        sed 's|\(.*/\)\(offline-\)\{0,1\}run-\(.*\)|\3\t&|' | sort | tail -n 1 | cut -f 2)"
    [ -z "$last" ] || found+=("$(CDPATH='' cd -- "$last" && pwd -P)")
done < <(find "$1" -type f -name wandb_id | sort)
if [ ${#found[@]} -eq 0 ]; then
    echo "no run below $1 was logged by wandb here: train with logger=wandb" >&2
    exit 1
fi
if [ "${2:-}" = --list ]; then
    printf '%s\n' "${found[@]}"
    exit
fi
links="$(mktemp -d)"
trap 'rm -r -- "$links"' EXIT
for start in "${found[@]}"; do ln -s "$start" "$links/${start##*/}"; done
"$wandb" leet "$links"
