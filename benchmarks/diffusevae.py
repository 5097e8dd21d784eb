"""DiffuseVAE on MNIST against its parts at an equal number of training steps: python benchmarks/diffusevae.py OUT [steps] [n].

steps: of both stages together; a third of them is stage 1's. n: samples of every number. What is there already is not
made again, so a larger budget needs another OUT. It prints a table of fcd to held-out images by evaluations.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

OUT = Path(sys.argv[1])
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 1200
N = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
COMMON = ["dataset=mnist", "network=small", "network.unet.patch=2", "scheduler=cosine", "optimizer.lr=2e-3",
          "trainer.enable_progress_bar=false", "callbacks.pictures.n=16", "callbacks.pictures.rows=0", "checkpoint_every=100",
          "data.val_images=256", "trainer.val_check_interval=100000", "batch_size=64"]  # fmt: skip
FEW = {f"{k}": ["sampler=ddim", f"sampler.steps={k}"] for k in (5, 10, 25, 50)}


def command(verb: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", f"vcd.{verb}", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{verb} {' '.join(arguments)}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}")
    return done.stdout


def train(name: str, steps: int, *arguments: str) -> Path:
    """The checkpoint of a run of its own folder."""
    began = time.monotonic()
    command("train", *COMMON, *arguments, f"trainer.max_steps={steps}", f"run_dir={OUT / name}")
    print(f"{name}: trained in {time.monotonic() - began:.0f} s", flush=True)
    return OUT / name / "last.ckpt"


def measure(ckpt: Path, ways: dict[str, list[str]]) -> dict[str, float]:
    found = {}
    for way, arguments in ways.items():
        out = ckpt.with_name(f"metrics-{way}.json")
        if not out.exists():
            command("evaluate", f"ckpt={ckpt}", f"n={N}", "metrics=distribution", f"out={out}", *arguments)
        numbers = json.loads(out.read_text())["metrics"][f"fcd_{N}_heldout"]
        found[way] = numbers["value"]
        print(
            f"{ckpt.parent.name:20} {way:>4}: fcd {numbers['value']:8.3f} (real data {numbers['floor']:.3f})",
            flush=True,
        )
    return found


first = STEPS // 3
vae = train("vae", first, "experiment=vae_digits", "model.beta=2")
told = [f"stage1={vae}"]
table = {"VAE alone": measure(vae, {"1": []})}
for title, name, steps, arguments, ways in (
    ("DDPM alone", "ddpm", STEPS, ["model=ddpm"], FEW),
    ("DiffuseVAE, form 1", "form1", STEPS - first, ["model=diffusevae", *told], FEW),
    ("DiffuseVAE, form 2", "form2", STEPS - first, ["model=diffusevae", "network.unet.shift=true", *told], FEW),
    ("VWD alone", "vwd", STEPS, ["model=vwd"], {"6": []}),
    ("VWD that refines the VAE", "warm", STEPS - first, ["model=vwd", "guess=vae", *told], {"6": []}),
):
    table[title] = measure(train(name, steps, *arguments), ways)
columns = ["1", "5", "6", "10", "25", "50"]
print("\n| evaluations |", " | ".join(columns), "|\n| --- |" + " --- |" * len(columns))
for title, row in table.items():
    print(f"| {title} |", " | ".join(f"{row[c]:.1f}" if c in row else "" for c in columns), "|")
