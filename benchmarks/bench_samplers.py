"""python benchmarks/bench_samplers.py --out DIR: quality against evaluations of the network, for every sampler.

Trains all models with one network and one budget, then measures bits per dimension and, for every sampler that serves
a model, the Fréchet distance of samples to held-out images at several budgets of evaluations. What is there already is
not done again, so an interrupted call goes on where it stopped; other --steps or --n are other rows. Needs VCD_DATA.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sampler_rows import EVALUATIONS, FEW, OWN, SAMPLERS, Rows, picture, table, terms

from vcd import checkpoints
from vcd.cli import CONF
from vcd.errors import UserError
from vcd.files import write_text
from vcd.metrics.cached import cached
from vcd.metrics.evaluation import some
from vcd.metrics.families.distribution import frechet
from vcd.metrics.samples import draw
from vcd.models.base import Diffusion
from vcd.predictions import gaussian
from vcd.quiet import quiet
from vcd.randomness import PerImage
from vcd.resolvers import register_resolvers

MODELS = {
    "DDPM eps": ["model=ddpm", "prediction=eps"],
    "DDPM v": ["model=ddpm", "prediction=v"],
    "DDPM x0": ["model=ddpm", "prediction=x0"],
    "EDM": ["model=ddpm", "schedule=edm", "T=200", "prediction=edm", "level_sampler=log_normal",
            "degradation.continuous=true"],
    "VE": ["model=ddpm", "schedule=ve", "T=200", "prediction=eps"],
    "VDM": ["model=vdm"],
    "VCD": ["model=vcd", "degradation=black_blur"],
    "VWD": ["model=vwd", "degradation=black_blur"],
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs, rows and pictures")
    parser.add_argument("--steps", type=int, default=2000, help="of training, 64 images each")
    parser.add_argument("--n", type=int, default=1000, help="samples of every row")
    parser.add_argument("--bits", type=int, default=64, help="held-out images for bits per dimension")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--all", nargs="*", default=["DDPM v", "EDM", "VE", "VDM"], help="models of which every sampler is measured"
    )
    parser.add_argument("--common", nargs="+", default=["network=small"], help="overrides of all trainings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draw", action="store_true", help="table and pictures of what there is, and no more")
    return parser.parse_args()


# --- train ------------------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace, name: str) -> Path:
    """The checkpoint of a model; vcd.train says so itself where there is nothing left to do."""
    folder = options.out / f"{name.replace(' ', '_')}-{options.steps}"
    every = max(1, options.steps // 10)
    command = [
        sys.executable, "-m", "vcd.train", "dataset=mnist", *options.common, *MODELS[name], f"threads={options.threads}",
        f"run_dir={folder}", f"trainer.max_steps={options.steps}", f"trainer.val_check_interval={every}",
        f"checkpoint_every={every}", "data.val_images=500", "trainer.enable_progress_bar=false", "~callbacks.pictures",
    ]  # fmt: skip
    began = time.monotonic()
    if not (folder / "done").exists():
        subprocess.run(command, check=True)
        write_text(folder / "done", f"{time.monotonic() - began:.0f}\n")
    return folder / "last.ckpt"


# --- measure ----------------------------------------------------------------------------------------------------------


class Counted:
    """Counts the evaluations of a network, in calls of a batch."""

    def __init__(self, network: torch.nn.Module):
        self.calls = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


def sampler_for(name: str, evaluations: int, degradation: Any) -> Any:
    """A sampler of about so many evaluations, no more; UserError where it cannot."""
    option, each = SAMPLERS[name]
    steps = (evaluations + 1) // 2 if each == 2 else (evaluations - 1) // each if each > 2 else evaluations
    node = compose("sample", [f"sampler={option}"]).sampler
    node.steps = min(steps, degradation.T)
    if "repeats" in node:  # steps of 0.3 of the variance of the level's noise: more than 2 diverge
        signal, noise = gaussian(degradation).at(torch.ones(1, dtype=torch.int64))
        node.repeats, node.rate = each, 0.3 * float((noise / signal) ** 2)
    return instantiate(node)


def fcd(model: Diffusion, n: int, features: torch.Tensor, extractor: Any, counted: Counted) -> dict[str, Any]:
    began, counted.calls = time.monotonic(), 0
    images, finite = draw(model, 0, range(n), min(n, 250), show=False)
    seconds, calls = time.monotonic() - began, counted.calls / -(-n // min(n, 250))
    own, _ = extractor.features(images, "the samples")
    distance = round(frechet(own, features), 2) if finite.all() else None
    return {"fcd": distance, "evaluations": calls, "finite": round(finite.float().mean().item(), 4),
            "seconds": round(seconds, 1)}  # fmt: skip


def bits(model: Diffusion, images: torch.Tensor, indices: range) -> dict[str, Any]:
    found = model.bound(model.space.encode(images), PerImage(0, indices))
    number = None if found is None else found.numbers.get("bits_per_dim")
    parts = {} if found is None else found.curves.get("bound", {})
    return {"bits": None if number is None else number.value, "T": model.degradation.T, "parts": parts,
            "protocol": {} if found is None else found.protocol}  # fmt: skip


def measure(options: argparse.Namespace, rows: Rows, name: str, ckpt: Path, data: dict[str, Any]) -> None:
    model, _ = checkpoints.load(ckpt)
    facts, counted, own = {"model": name, "steps": options.steps}, Counted(model.network), model.sampler
    some_images = data["held_out"].balanced(options.bits)
    rows.once(lambda: bits(model, some_images, range(options.bits)), what="bound", images=options.bits, **facts)

    def ode() -> dict[str, Any]:
        images = some_images[:32]
        found = model.likelihood(images, PerImage(0, range(len(images))), steps=35)
        return {"bits": None if found is None else found.mean().item()}

    rows.once(ode, what="ode", images=32, **facts)
    whole = {"what": "fcd", "n": options.n, **facts}
    if not hasattr(model, "likelihood") or model.has_latents:
        rows.once(
            lambda: fcd(model, options.n, data["features"], data["extractor"], counted),
            sampler=OWN,
            budget=None,
            **whole,
        )
        return
    for sampler in SAMPLERS if name in options.all else [FEW]:
        for budget in EVALUATIONS:

            def row(sampler: str = sampler, budget: int = budget) -> dict[str, Any]:
                try:
                    model.sampler = sampler_for(sampler, budget, model.degradation)
                    model.sampler.check(model.degradation, model.prediction)
                except UserError as error:
                    return {"refused": str(error)}
                return fcd(model, options.n, data["features"], data["extractor"], counted)

            rows.once(row, sampler=sampler, budget=budget, **whole)
    model.sampler = own


def load_data(folder: Path, n: int) -> dict[str, Any]:
    """Held-out images and their features, and the distance of n training images to them."""
    cfg = compose("evaluate", ["dataset=mnist"])
    data = instantiate(OmegaConf.to_container(cfg.dataset.source, resolve=True))
    extractor, held_out = instantiate(cfg.extractor).ready(data), data.load("val")

    def make() -> dict[str, torch.Tensor]:
        images = data.load("train").images
        real, _ = extractor.features(images[some(len(images), n, seed=0)], "training images")
        return {"features": extractor.features(held_out.images, "the held-out images")[0], "real": real}

    kept = cached(folder / f"features-{n}.pt", make)
    floor = round(frechet(kept["real"], kept["features"]), 2)
    return {"held_out": held_out, "features": kept["features"], "extractor": extractor, "floor": floor}


def main() -> None:
    options = arguments()
    matplotlib.use("Agg")
    quiet()
    torch.set_num_threads(options.threads)
    register_resolvers()
    rows = Rows(options.out / "rows.json")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        if not options.draw:
            data = load_data(options.out, options.n)
            rows.once(lambda: {"fcd": data["floor"]}, what="floor", n=options.n)
            for name in options.models:
                measure(options, rows, name, train(options, name), data)
    (options.out / "table.md").write_text(table(options, rows))
    picture(options, rows)
    terms(options)
    print(table(options, rows))


if __name__ == "__main__":
    main()
