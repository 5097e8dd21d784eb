#!/usr/bin/env bash
# For a machine without a network that has Python 3.12, torch, torchvision, numpy, scipy, scikit-learn, matplotlib and
# Pillow: what else vcd and its fast tests need, as wheels.
#
#   bash scripts/carry.sh FOLDER                  here: download the wheels of Pipfile.lock into FOLDER, about 10 MiB
#   bash scripts/carry.sh --lean FOLDER           the same where there are Lightning, torchmetrics and pytest too: 5 MiB
#   bash scripts/carry.sh --install FOLDER SITE   there: install into SITE those that are missing; then export PYTHONPATH=SITE
#
# PYTHON=/path/to/python chooses the interpreter. No index is named: pip takes the one it is configured with.
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="${PYTHON:-python3}"

# wandb, TensorBoard, Optuna and notebooks are left out.
LEAN=(hydra-core omegaconf antlr4-python3-runtime torch-fidelity pydantic pydantic-core annotated-types typing-inspection
    beartype jsonschema jsonschema-specifications referencing rpds-py hydra-submitit-launcher submitit)
USUAL=(pytorch-lightning lightning-utilities torchmetrics jaxtyping wadler-lindig tqdm pyyaml packaging fsspec typing-extensions
    jinja2 markupsafe cloudpickle attrs pytest pytest-timeout pytest-xdist execnet iniconfig pluggy pygments)
THERE=(torch torchvision numpy scipy scikit-learn matplotlib pillow) # too large to carry all of them in 64 MiB
LIMIT=$((64 * 1024 * 1024))

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

pinned() { # name==version, by Pipfile.lock, of the names given
    "$python" - "$root/Pipfile.lock" "$@" <<'PY'
import json, sys
lock = json.load(open(sys.argv[1]))
known = lock["default"] | lock["develop"]
for name in sys.argv[2:]:
    if name not in known:
        sys.exit(f"error: Pipfile.lock has no {name}: take it out of scripts/carry.sh, or lock it")
    print(name + known[name]["version"])
PY
}

download() {
    local names line
    names=("${LEAN[@]}")
    [ "$1" = lean ] || names+=("${USUAL[@]}")
    mkdir -p "$2"
    while read -r line; do
        case "$line" in
            antlr4-*) "$python" -m pip wheel -q --disable-pip-version-check --no-deps -w "$2" "$line" ;; # has no wheel; pure Python
            *) "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
                --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
                --platform manylinux2014_x86_64 --platform manylinux_2_5_x86_64 -d "$2" "$line" ;;
        esac
    done < <(pinned "${names[@]}")
    local bytes
    bytes="$(du -sb "$2" | cut -f 1)"
    printf '%s: %d wheels, %d KiB\n' "$2" "$(find "$2" -name '*.whl' | wc -l)" $((bytes / 1024))
    [ "$bytes" -le "$LIMIT" ] || die "$2 holds more than 64 MiB: empty it first, or take --lean"
}

install() { # a package that is there already stays as it is
    local missing
    missing="$("$python" - "$1" "${THERE[@]}" <<'PY'
import re, sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
def there(name):
    try:
        return distribution(re.sub(r"[-_.]+", "-", name))
    except PackageNotFoundError:
        return None
if lacking := [name for name in sys.argv[2:] if not there(name)]:
    sys.exit(f"error: {sys.executable} lacks {', '.join(lacking)}, which are too large to carry: choose another with PYTHON=...")
for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    if not there(wheel.name.split("-")[0]):
        print(wheel)
PY
)"
    [ -n "$missing" ] || { echo "nothing is missing"; return; }
    # shellcheck disable=SC2086  # one path a line
    (IFS=$'\n' && "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --upgrade --target "$2" $missing)
    printf 'installed %d packages in %s: export PYTHONPATH=%s\n' "$(printf '%s\n' "$missing" | wc -l)" "$2" "$2"
}

case "${1:-}" in
    --install) [ $# -eq 3 ] || die "bash scripts/carry.sh --install FOLDER SITE"; install "$2" "$3" ;;
    --lean) [ $# -eq 2 ] || die "bash scripts/carry.sh --lean FOLDER"; download lean "$2" ;;
    -* | "") die "bash scripts/carry.sh [--lean] FOLDER, or bash scripts/carry.sh --install FOLDER SITE" ;;
    *) download all "$1" ;;
esac
