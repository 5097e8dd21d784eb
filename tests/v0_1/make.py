"""Make the runs of version 0.1 that later versions must load, sample and resume; see README.md.

    git worktree add ../v0.1 5a5799e
    python tests/v0_1/make.py ../v0.1

Trains in a temporary folder with the code of that worktree and writes beside this file.
"""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
COMMON = [
    "runs=runs", "data.root=data", "dataset=digits", "batch_size=16", "network.unet.dim=2", "network.unet.mults=[1]",
    "network.unet.attention=[]", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.enable_progress_bar=false",
    "trainer.max_steps=60", "trainer.val_check_interval=60", "trainer.log_every_n_steps=20", "ema_decay=0.9",
    "optimizer.lr=0.02", "scheduler=constant", "scheduler.warmup=2", "callbacks.pictures.n=2", "callbacks.pictures.rows=1",
]  # fmt: skip
SMALL = ["~callbacks.random_state"]  # nothing goes on from there
STEPS = ["T=3", "network.encoder.dim=4", "network.encoder.latent=2"]
LATENT = [*STEPS, "prior=mixture", "prior.components=2", "prior.images=64"]
ROLLOUT = ["perturbation=rollout", "perturbation.warmup=10"]
FINISHED = {
    "vcd": ["model=vcd", *LATENT, *ROLLOUT, "injection=emb_concat"],
    "vwd": ["model=vwd", *LATENT, "injection=maps", "~callbacks.ema"],
    "ddpm_residual": ["model=ddpm", "T=20", "prediction=residual", "sampler.steps=5"],
    "ddpm_x0": ["model=ddpm", "T=20", "prediction=x0", "sampler.steps=5", "sampler.eta=1.0"],
    "bansal": ["model=bansal", "T=6"],
    "rissanen": ["model=rissanen", "T=6", "start.images=8"],
    "vcd_gaussian": ["model=vcd", *STEPS, "prior=shared", "perturbation=gaussian", "injection=start"],
    "vwd_black_noise": ["model=vwd", *LATENT, "degradation=black_noise", "injection=bottleneck"],
    "vwd_rollout": ["model=vwd", *LATENT, *ROLLOUT, "injection=emb_add"],
    "vcd_none": ["model=vcd", *LATENT, "perturbation=none", "prediction=vxt", "injection=emb_concat"],
}  # fmt: skip
OFTEN = ["trainer.max_steps=40", "trainer.val_check_interval=20", "trainer.log_every_n_steps=5", "checkpoint_every=10"]
UNFINISHED = {
    "vcd_unfinished": ["model=vcd", *LATENT, *ROLLOUT, "injection=emb_concat", *OFTEN],
    "ddpm_unfinished": ["model=ddpm", "T=20", "sampler.steps=5", *OFTEN],
}


def line(verb: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"vcd.{verb}", *arguments]


def pack(path: Path, packed: Path) -> None:
    packed.write_bytes(lzma.compress(path.read_bytes(), preset=9))


def weights(ckpt: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The averaged and the raw weights."""
    checkpoint = torch.load(ckpt, weights_only=True)
    return {part: checkpoint[part] for part in ("state_dict", "current_model_state")}


def main(code: Path) -> None:
    work = Path(tempfile.mkdtemp())
    environment = {**os.environ, "PYTHONPATH": str(code.resolve()), "OMP_NUM_THREADS": "1"}
    where = {"cwd": work, "env": environment}
    samples = {}

    def sample(name: str) -> None:
        asked = ["n=8", "seed=3", "png=false", "rows=0", "device=cpu"]
        subprocess.run(line("sample", f"ckpt=runs/{name}/last.ckpt", f"out={name}", *asked), check=True, **where)
        samples[name] = np.load(work / name / "samples.npy")

    for name, arguments in FINISHED.items():
        subprocess.run(line("train", *COMMON, *SMALL, *arguments, f"run_dir=runs/{name}"), check=True, **where)
        sample(name)
        pack(work / f"runs/{name}/last.ckpt", HERE / f"{name}.ckpt.xz")

    for name, arguments in UNFINISHED.items():
        train = line("train", *COMMON, *arguments)
        folder, whole, kept = work / "runs" / name, work / "runs" / f"{name}_at_once", HERE / name
        process = subprocess.Popen([*train, f"run_dir=runs/{name}"], **where)
        while not (folder / "last.ckpt").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        kept.mkdir(exist_ok=True)
        for file in ("config.yaml", "metrics.csv"):
            shutil.copyfile(folder / file, kept / file)
        status = json.loads((folder / "status.json").read_text())
        status |= {"cwd": ".", "host": "localhost", "pid": 1}  # what belongs to the machine
        (kept / "status.json").write_text(json.dumps(status, indent=2) + "\n")
        pack(folder / "last.ckpt", kept / "last.ckpt.xz")
        sample(name)
        subprocess.run([*train, f"run_dir=runs/{name}"], check=True, **where)  # it goes on
        subprocess.run([*train, f"run_dir=runs/{whole.name}"], check=True, **where)
        end, expected = (weights(path / "last.ckpt") for path in (folder, whole))
        assert all(torch.equal(value, expected[part][key]) for part in end for key, value in end[part].items())
        torch.save(end, work / "final.pt")
        pack(work / "final.pt", kept / "final.pt.xz")
    np.savez_compressed(HERE / "samples.npz", **samples)
    shutil.rmtree(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
