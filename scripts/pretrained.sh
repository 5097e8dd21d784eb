#!/usr/bin/env bash
# Make the model that comes with vcd, vcd/pretrained/digits: train, measure, export. Half an hour on one core of a CPU.
# Safe to run again after it was stopped; its run is kept in runs/pretrained/ (or $RUNS). PYTHON=... chooses the interpreter.
#
#   bash scripts/pretrained.sh
#   git diff --stat vcd/pretrained   # what became of it
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$root"
python="$(realpath -s "${PYTHON:-.venv/bin/python}")"
run="${RUNS:-runs/pretrained}/digits"

"$python" -m vcd.train model=vcd dataset=digits trainer.max_steps=2000 trainer.accelerator=cpu seed=0 "run_dir=$run"
"$python" -m vcd.evaluate "ckpt=$run/last.ckpt" "metrics=[distribution,memorisation]" n=2000 device=cpu
rm -rf vcd/pretrained/digits
# float16 weights, for less than 2 MB; what that costs is in metrics-half.json, beside metrics.json
"$python" -m vcd.export "ckpt=$run/last.ckpt" out=vcd/pretrained/digits half=true device=cpu
run="$(realpath "$run")"
cd "$run"
PYTHONPATH="$root" "$python" -m vcd.evaluate ckpt=digits "metrics=[distribution,memorisation]" n=2000 device=cpu out=metrics-half.json
