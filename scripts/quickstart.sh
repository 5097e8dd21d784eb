#!/usr/bin/env bash
# Set everything up, then train VCD on the embedded digits. Arguments go to the training:
#   bash scripts/quickstart.sh                 the main job: python -m vcd.train as it is
#   bash scripts/quickstart.sh model=vwd       these overrides of python -m vcd.train, and no others
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

cat <<'SAY'
Two steps:
  1. install the packages into .venv (the first time only: two to five minutes, 6 GB)
  2. python -m vcd.train: a small diffusion model learns 1,797 handwritten digits (under four minutes on two CPU cores)
SAY
bash "$root/scripts/setup.sh"
exec "$root/.venv/bin/python" -m vcd.train "$@" # runs/ is made in the current folder
