#!/usr/bin/env bash
# Set everything up, then run the tests. Arguments go to pytest:
#   bash scripts/test.sh                       the fast tests
#   bash scripts/test.sh --all                 also those marked long
#   bash scripts/test.sh -k rollout -x         any other pytest arguments
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

bash "$root/scripts/setup.sh" --dev
cd "$root"
if [ "${1:-}" = --all ]; then
    shift
    set -- -m "" "$@" # pyproject.toml says -m "not long"; the last -m counts
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # tiny tensors: more threads only wait for each other
exec .venv/bin/python -m pytest -n "${VCD_TEST_PROCESSES:-2}" --dist worksteal "$@"
