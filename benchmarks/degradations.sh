#!/usr/bin/env bash
# What RESULTS.md says of degradations. The same command again goes on where it stopped; runs are kept in $RUNS.
#
#   bash benchmarks/degradations.sh restoration   cold diffusion by inpainting, super-resolution, deblurring (MNIST), colouring (CIFAR-10)
#   bash benchmarks/degradations.sh hot_cold      noise, blur, both, and VWD of 6 and of 50 levels, at 6, 16 and 50 evaluations (MNIST)
#
# Names after that, such as inpaint or blur_noise, pick some. STEPS, N and RESTORED scale it; $VCD_DATA holds the data.
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$root"
python="${PYTHON:-$root/.venv/bin/python}"
[ -x "$python" ] || python=python
runs="${RUNS:-runs/degradations}"

# trained NAME OVERRIDE...: train in $runs/NAME, or go on.
trained() {
    local name="$1"
    shift
    [ -f "$runs/$name/done" ] && return
    "$python" -m vcd.train run_dir="$runs/$name" seed=0 trainer.val_check_interval=100000 \
        callbacks.pictures.n=4 callbacks.pictures.rows=1 "$@"
    touch "$runs/$name/done"
}

# measured NAME OUT OVERRIDE...
measured() {
    local name="$1" out="$runs/$1/$2.json"
    shift 2
    [ -f "$out" ] || "$python" -m vcd.evaluate ckpt="$runs/$name/last.ckpt" out="$out" device=cpu "$@"
}

# wanted NAME CHOICE...: is it among them, or is there none?
wanted() {
    [ $# -eq 1 ] || [[ " ${*:2} " == *" $1 "* ]]
}

case "${1:-}" in
restoration)
    common="model=bansal network=fast batch_size=32 optimizer.lr=1e-3 ema_decay=0.99 trainer.max_steps=${STEPS:-1500}"
    while read -r name settings; do
        wanted "$name" "${@:2}" || continue
        # shellcheck disable=SC2086
        trained "$name" $common $settings
        measured "$name" restoration metrics='[restoration]' n=2 restored="${RESTORED:-500}" levels=2 extractor.steps="${CLASSIFIER:-1500}"
    done <<'LIST'
inpaint dataset=mnist degradation=inpaint T=20
downsample dataset=mnist degradation=downsample degradation.factor=7 T=3
deblur dataset=mnist degradation=gaussian_blur T=20
decolour dataset=cifar10 degradation=decolour T=20
LIST
    ;;
hot_cold)
    common="dataset=mnist network=tiny network.unet.patch=2 trainer.max_steps=${STEPS:-1500}"
    while read -r name grid sampler delta settings; do
        wanted "$name" "${@:2}" || continue
        # shellcheck disable=SC2086
        trained "$name" $common $settings "sampler=$sampler" "sampler.delta=$delta"
        for steps in ${grid//,/ }; do
            measured "$name" "at-$steps" metrics='[distribution]' n="${N:-2000}" \
                "sampler=$sampler" "+sampler.delta=$delta" sampler.steps="$steps"
        done
    done <<'LIST'
noise 6,16,50 ddim 0 model=ddpm
blur_noise 6,16,50 ddim 0 model=ddpm degradation=blur_noise degradation.sigma_max=20
vwd 6 sequential 0.1 model=vwd degradation=black_blur prediction=vxt prior.images=5000
vwd_50 6,16,50 sequential 0.1 model=vwd degradation=black_blur T=50 prediction=vxt prior.images=5000
rissanen 6,16,50 sequential 0.025 model=rissanen T=50 prediction=vxt
blur 6,16,50 sequential 0 model=rissanen T=50 prediction=vxt perturbation.sigma=0
LIST
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 1
    ;;
esac
