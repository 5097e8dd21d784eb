"""python benchmarks/bench_samplers.py --out DIR: quality against evaluations of the network, for every sampler.

Trains all models with one network and one budget, then measures bits per dimension and, for every sampler that serves
a model, the Fréchet distance of samples to held-out images at several budgets of evaluations. What is there already is
not done again, so an interrupted call goes on where it stopped; other --steps or --n are other rows. Needs VCD_DATA.
"""

import argparse
import csv
import json
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

from vcd import checkpoints, style
from vcd.cli import CONF
from vcd.errors import UserError
from vcd.files import write_text
from vcd.identity import register_resolvers
from vcd.metrics.cached import cached
from vcd.metrics.evaluation import some
from vcd.metrics.families.distribution import frechet
from vcd.metrics.samples import draw
from vcd.models.base import Diffusion
from vcd.quiet import quiet
from vcd.randomness import PerImage

MODELS = {
    "DDPM eps": ["model=ddpm", "prediction=eps"],
    "DDPM v": ["model=ddpm", "prediction=v"],
    "DDPM x0": ["model=ddpm", "prediction=x0"],
    "EDM": ["model=ddpm", "schedule=edm", "T=200", "prediction=edm", "level_sampler=log_normal",
            "degradation.continuous=true"],
    "VE": ["model=ddpm", "schedule=ve", "T=200", "prediction=eps"],
    "VDM": ["model=vdm"],
    "VCD": ["model=vcd"],
    "VWD": ["model=vwd"],
}  # fmt: skip
EVALUATIONS = (6, 10, 20, 50)
SAMPLERS = {  # name -> option, and how many evaluations a step takes; the last step of two takes one
    "DDIM": ("ddim", 1),
    "ancestral": ("ancestral", 1),
    "Euler": ("euler", 1),
    "Heun": ("heun", 2),
    "DPM-Solver++": ("dpm", 1),
    "reverse SDE": ("reverse_sde", 1),
    "predictor-corrector": ("pc", 2),
    "Langevin": ("langevin", 5),
}
OWN = "its own"  # of models whose steps are what they were trained for
FEW = "DPM-Solver++"  # of every model with noise; all the others of the models in --all


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


# --- rows -------------------------------------------------------------------------------------------------------------


class Rows:
    """What was measured, in a file that is written after every row."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def once(self, make: Any, **facts: Any) -> dict[str, Any]:
        """The row of these facts: measured now, or before."""
        key = json.dumps(facts, sort_keys=True)
        if key not in self.known:
            began = time.monotonic()
            self.known[key] = {**facts, **make()}
            self.known[key].setdefault("seconds", round(time.monotonic() - began, 2))
            write_text(self.path, json.dumps(self.known, indent=1) + "\n")
            print(self.known[key], flush=True)
        return self.known[key]

    def of(self, **facts: Any) -> list[dict[str, Any]]:
        return [row for row in self.known.values() if all(row.get(name) == value for name, value in facts.items())]


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


def sampler_for(name: str, evaluations: int, T: int) -> Any:
    """A sampler of about so many evaluations, no more; UserError where it cannot."""
    option, each = SAMPLERS[name]
    steps = (evaluations + 1) // 2 if each == 2 else (evaluations - 1) // each if each > 2 else evaluations
    node = compose("sample", [f"sampler={option}"]).sampler
    node.steps = min(steps, T)
    if "repeats" in node:
        node.repeats, node.rate = each, 1e-3
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
                    model.sampler = sampler_for(sampler, budget, model.degradation.T)
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


# --- show -------------------------------------------------------------------------------------------------------------


def table(options: argparse.Namespace, rows: Rows) -> str:
    """Markdown: a line for every model and sampler."""
    head = [f"{b} evaluations" for b in EVALUATIONS]
    lines = [
        "| model | bound | ODE | sampler | " + " | ".join(head) + " | seconds at the last |",
        "|" + " --- |" * (5 + len(head)),
    ]
    for name in options.models:
        facts = {"model": name, "steps": options.steps}
        number = {what: _bits(rows.of(what=what, **facts)) for what in ("bound", "ode")}
        found = rows.of(what="fcd", n=options.n, **facts)
        for i, sampler in enumerate(dict.fromkeys(row["sampler"] for row in found)):
            of = {row["budget"]: row for row in found if row["sampler"] == sampler and row.get("fcd") is not None}
            if not of:
                continue
            if sampler == OWN:
                row = of[None]
                cells = [f"{row['fcd']:.4g} (at {row['evaluations']:g})"] + ["–"] * (len(EVALUATIONS) - 1)
            else:
                cells = [f"{of[b]['fcd']:.4g}" if b in of else "–" for b in EVALUATIONS]
            first = [name, number["bound"], number["ode"]] if i == 0 else ["", "", ""]
            lines.append("| " + " | ".join([*first, sampler, *cells, f"{list(of.values())[-1]['seconds']:g}"]) + " |")
    return "\n".join(lines) + "\n"


def _bits(rows: list[dict[str, Any]]) -> str:
    return f"{rows[0]['bits']:.3f}" if rows and rows[0]["bits"] is not None else "–"


@style.styled()
def picture(options: argparse.Namespace, rows: Rows) -> None:
    """Distance against evaluations: a panel of all samplers for each model that has them, and one of all models."""
    import matplotlib.pyplot as plt

    drawn = [
        name
        for name in options.all
        if len({r["sampler"] for r in rows.of(model=name, what="fcd", steps=options.steps, n=options.n)}) > 1
    ]
    own = [
        row for row in rows.of(what="fcd", sampler=OWN, steps=options.steps, n=options.n) if row.get("fcd") is not None
    ]
    figure = plt.figure(figsize=(3.6 * (len(drawn) + 1), 5.2))
    panels: dict[str, list[tuple[str, dict[str, Any]]]] = {
        name: [(sampler, {"model": name, "sampler": sampler}) for sampler in SAMPLERS] for name in drawn
    }
    panels[f"all models, {FEW}"] = [(name, {"model": name, "sampler": FEW}) for name in options.models]
    for part, (what, lines) in zip(figure.subfigures(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axis = part.subplots()
        for i, (label, facts) in enumerate(lines):
            _line(axis, rows.of(what="fcd", steps=options.steps, n=options.n, **facts), i, label)
        for marker, row in zip("*P", own, strict=False):
            axis.plot(
                row["evaluations"], row["fcd"], marker, color=style.TEXT, markersize=9, mfc="white", label=row["model"]
            )
        axis.set(xlabel="evaluations of the network", xscale="log")
        axis.set_xticks(EVALUATIONS, [str(b) for b in EVALUATIONS])
        axis.minorticks_off()
        style.logarithmic(axis)
        style.title(axis, "fcd to held-out images", what)
        style.legend(part, [axis])
    style.save(figure, options.out / "samplers.png", dpi=110)
    plt.close(figure)


def _line(axis: Any, rows: list[dict[str, Any]], i: int, label: str) -> None:
    points = sorted((row["evaluations"], row["fcd"]) for row in rows if row.get("fcd") is not None)
    if points:
        colour, dashes = style.line(i)
        axis.plot(*zip(*points, strict=True), color=colour, ls=dashes, marker="o", label=label)


@style.styled()
def terms(options: argparse.Namespace) -> None:
    """VDM's three terms over training, each on its own scale."""
    import matplotlib.pyplot as plt

    path = options.out / f"VDM-{options.steps}" / "metrics.csv"
    if not path.exists():
        return
    with path.open() as file:
        lines = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    for i, (axis, what) in enumerate(zip(axes, ("diffusion", "prior", "reconstruction"), strict=True)):
        points = [(int(line["step"]), float(line[f"val/{what}_bpd"])) for line in lines if line.get(f"val/{what}_bpd")]
        if points:
            axis.plot(*zip(*points, strict=True), color=style.COLOURS[i], marker="o")
        axis.set(xlabel="steps")
        axis.ticklabel_format(axis="y", useOffset=False)
        style.title(axis, "bits per dimension, held out", what)
    style.save(figure, options.out / "vdm_terms.png", dpi=110)
    plt.close(figure)


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
