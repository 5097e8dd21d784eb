#!/usr/bin/env bash
# Draw the pictures of README.md and RESULTS.md anew, into docs/ (or $PICTURES). The same command again goes on where it
# stopped; its runs are kept in runs/pictures/ (or $RUNS). Further arguments go to the trainings of digits and mnist.
#
#   bash scripts/pictures.sh digits     digits.png: what README's first command makes; four minutes on a CPU
#   bash scripts/pictures.sh mnist      mnist_{vcd,vwd,ddpm,ddpm_eps,bansal,rissanen,exchange,bands}.png and first.png, README's: two hours on two cores
#   bash scripts/pictures.sh compare    mnist_comparison.png and mnist_patch.png, with the numbers of RESULTS.md: three hours
#
# Of a model: the first 64 samples of seed 0, none chosen, and x_T..x_0 of the first eight.
# benchmarks/results/scaling.png is drawn by benchmarks/bench_scaling.py --plot.
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$root"
python="$root/.venv/bin/python"
[ -x "$python" ] || python=python
docs="${PICTURES:-$root/docs}"
runs="${RUNS:-runs/pictures}"

# drawn NAME OVERRIDE...: train, or go on, and put samples and sequences side by side into NAME.png; `folder` is the run's.
drawn() {
    local name="$1" said
    shift
    said="$("$python" -m vcd.train runs="$runs" "$@" | tee /dev/stderr)"
    folder="$(sed -n 's|^checkpoint *\(.*\)/last.ckpt$|\1|p' <<<"$said")"
    "$python" - "$docs/$name.png" "$folder" <<'PY'
import sys
from pathlib import Path

from vcd.figures import beside

out, folder = map(Path, sys.argv[1:])
print(beside(out, [folder / "samples.png", folder / "sequences.png"]))
PY
}

case "${1:-}" in
digits)
    drawn digits "${@:2}"
    ;;
mnist)
    mnist=(dataset=mnist network=fast trainer.max_steps=1500 "${@:2}")
    drawn mnist_vcd "${mnist[@]}" model=vcd
    vcd="$folder"
    drawn mnist_vwd "${mnist[@]}" model=vwd
    both="ckpt=[$vcd/last.ckpt,$folder/last.ckpt]"
    "$python" -m vcd.control "$both" task=exchange n=5 out="$runs/exchange"
    "$python" -m vcd.control "$both" task=bands n=64 out="$runs/bands"
    cp "$runs/exchange/exchange.png" "$docs/mnist_exchange.png"
    "$python" scripts/first_picture.py "$vcd/last.ckpt" "$docs/first.png"
    cp "$runs/bands/bands.png" "$docs/mnist_bands.png"
    drawn mnist_rissanen "${mnist[@]}" model=rissanen
    drawn mnist_ddpm "${mnist[@]}" model=ddpm
    drawn mnist_ddpm_eps "${mnist[@]}" model=ddpm prediction=eps
    drawn mnist_bansal "${mnist[@]}" model=bansal
    ;;
compare)
    "$python" -m vcd.compare experiment=compare_mnist_cpu out="$runs/comparison"
    cp "$runs/comparison/samples.png" "$docs/mnist_comparison.png"
    "$python" -m vcd.compare experiment=compare_patch_cpu out="$runs/patch"
    cp "$runs/patch/samples.png" "$docs/mnist_patch.png"
    ;;
*)
    sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
