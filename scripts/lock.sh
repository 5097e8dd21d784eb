#!/usr/bin/env bash
# After a change of Pipfile: resolve it anew into Pipfile.lock, without the address of any package index.
# Resolves on Python 3.11, the oldest supported, so that what only 3.11 needs is in the lock as well.
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$root"

python="${PYTHON:-python3.11}"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || {
    echo "error: locking needs Python 3.11: point PYTHON=/path/to/python3.11 at one." >&2
    exit 1
}
pipenv="$(bash scripts/setup.sh --pipenv)"

# In a folder of its own: the project's .venv may be of another Python.
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp Pipfile "$work/"
export PIPENV_PIPFILE="$work/Pipfile" PIPENV_VENV_IN_PROJECT=1 PIPENV_IGNORE_VIRTUALENVS=1 PIPENV_NOSPIN=1 PIPENV_YES=1
# pipenv hashes the configured indexes into the lock: lock as a machine without any configuration would.
export PIP_CONFIG_FILE=/dev/null
unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIPENV_PYPI_MIRROR PIPENV_ACTIVE

export TMPDIR="$work" # pipenv leaves files behind
echo "Resolving Pipfile (about a minute)"
"$pipenv" lock --python "$python"
"$python" scripts/strip_lock.py "$work/Pipfile.lock"
"$pipenv" verify
cp "$work/Pipfile.lock" Pipfile.lock
echo "Pipfile.lock is new: bash scripts/test.sh --all installs and tests it"
