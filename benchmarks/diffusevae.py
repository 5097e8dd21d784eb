"""DiffuseVAE against its parts at an equal number of training steps: python benchmarks/diffusevae.py OUT [steps] [n].

steps: of both stages together; a third of them is stage 1's. n: samples of every number; 0 trains alone. --set animals64
--path FOLDER: three classes of 64x64 animals, FOLDER/train|val/CLASS, instead of MNIST. What is there already is not made
again, so a larger budget needs another OUT. It prints a table of fcd to held-out images by evaluations, and draws
OUT/samples.png.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

import vcd
from vcd import figures, refining
from vcd.randomness import PerImage

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out", type=Path)
parser.add_argument("steps", type=int, nargs="?", default=1200)
parser.add_argument("n", type=int, nargs="?", default=1000)
parser.add_argument("--set", choices=["mnist", "animals64"], default="mnist")
parser.add_argument("--path", type=Path, help="of animals64")
options = parser.parse_args()
if options.set == "animals64" and options.path is None:
    parser.error("--set animals64 needs --path FOLDER, which holds train/ and val/ with a folder for each class")

COMMON = ["network=small", "scheduler=cosine", "optimizer.lr=2e-3", "batch_size=64", "checkpoint_every=100",
          "trainer.enable_progress_bar=false", "callbacks.pictures.n=16", "callbacks.pictures.rows=1",
          "data.val_images=256", "trainer.val_check_interval=100000"]  # fmt: skip
FEW = {f"{k}": ["sampler=ddim", f"sampler.steps={k}"] for k in (5, 10, 25, 50)}
if options.set == "mnist":
    COMMON += ["dataset=mnist", "network.unet.patch=2"]
    STAGE1, MEASURED = ["model.beta=2"], list[str]()
    T: dict[str, list[str]] = {"6": []}  # of model=vwd
else:
    COMMON += ["dataset=folder", f"dataset.path={options.path}", "dataset.name=animals64", "network.unet.patch=4",
               "prior.images=4000"]  # fmt: skip
    STAGE1 = ["model.beta=4", "network.encoder.latent=64"]
    MEASURED = ["extractor.steps=600", "extractor.batch_size=64"]
    T = {"8": []}


def command(verb: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", f"vcd.{verb}", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{verb} {' '.join(arguments)}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}")
    return done.stdout


def train(name: str, steps: int, *arguments: str) -> Path:
    """The checkpoint of a run of its own folder."""
    began = time.monotonic()
    command("train", *COMMON, *arguments, f"trainer.max_steps={steps}", f"run_dir={options.out / name}")
    print(f"{name}: trained in {time.monotonic() - began:.0f} s", flush=True)
    return options.out / name / "last.ckpt"


def measure(ckpt: Path, ways: dict[str, list[str]]) -> dict[str, float]:
    found = {}
    for way, arguments in ways.items() if options.n else ():
        out = ckpt.with_name(f"metrics-{way}.json")
        if not out.exists():
            command(
                "evaluate",
                f"ckpt={ckpt}",
                f"n={options.n}",
                "metrics=distribution",
                f"out={out}",
                *MEASURED,
                *arguments,
            )
        numbers = json.loads(out.read_text())["metrics"][f"fcd_{options.n}_heldout"]
        found[way] = numbers["value"]
        print(
            f"{ckpt.parent.name:20} {way:>4}: fcd {numbers['value']:8.3f} (real data {numbers['floor']:.3f})",
            flush=True,
        )
    return found


first = options.steps // 3
second = options.steps - first
vae = train("vae", first, "experiment=vae_digits", *STAGE1)
told = [f"stage1={vae}"]
table, drawn = {"VAE alone": measure(vae, {"1": []})}, []
for title, folder, steps, arguments, ways in (
    ("DDPM alone", "ddpm", options.steps, ["model=ddpm"], FEW),
    ("DiffuseVAE, form 1", "form1", second, ["model=diffusevae", *told], FEW),
    ("DiffuseVAE, form 2", "form2", second, ["model=diffusevae", "network.unet.shift=true", *told], FEW),
    ("VWD that refines the VAE", "warm", second, ["model=vwd", "degradation=black_blur", "guess=vae", *told], T),
    ("VWD alone", "vwd", options.steps, ["model=vwd", "degradation=black_blur"], T),
):
    ckpt = train(folder, steps, *arguments)
    table[title] = measure(ckpt, ways)
    drawn.append((title, ckpt, ways))
if not options.n:
    raise SystemExit
columns = sorted({way for row in table.values() for way in row}, key=int)
print("\n| evaluations |", " | ".join(columns), "|\n| --- |" + " --- |" * len(columns))
for title, row in table.items():
    print(f"| {title} |", " | ".join(f"{row[c]:.1f}" if c in row else "" for c in columns), "|")

rows, numbers = [], PerImage(0, range(12))
for title, ckpt, ways in drawn:
    model = vcd.load(ckpt).model
    if title == "DiffuseVAE, form 1":
        guesses = refining.guesses(model, refining.draw(model, numbers.take()))
        rows.append(("the guess", model.space.decode(guesses)))
    for way in sorted({min(ways, key=int), max(ways, key=int)}, key=int):
        model.sampler.steps = int(way)
        rows.append((f"{title}, {way}", model.space.decode(model.sample(numbers.take(), keep=2).x0)))
names, images = zip(*rows, strict=True)
print(figures.sheet(options.out / "samples.png", [("", torch.stack(images), None, names)]))
