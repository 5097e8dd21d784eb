"""python benchmarks/gpu_quality.py --table mnist: how near samples are after so many seconds of training.

The published sizes in bf16; VCD, VWD, DDPM and VDM take their turns. --table colour: the same on 32x32 colour images;
animals: VCD as published for AFHQ on 64x64 animals, for as long as --seconds, going on where it was; data: what these
need is unpacked from --data (see `unpack`).
"""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from kept import UNFINISHED, Kept
from measure import arguments, parse
from PIL import Image
from quality import Plan

from vcd import curves, style
from vcd.callbacks import timing
from vcd.quiet import quiet

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"VCD": ["model=vcd"], "VWD": ["model=vwd"], "DDPM": ["model=ddpm"], "VDM": ["model=vdm"]}


def folder(data: Path, name: str, size: int, T: int) -> list[str]:
    return [
        "dataset=folder",
        f"dataset.path={data / f'{name}.zip'}",
        f"dataset.name={name}",
        f"dataset.size={size}",
        f"dataset.T={T}",
    ]


def sets(data: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> (overrides, network)."""
    return {"mnist": (["dataset=mnist"], "mnist"), "colour": (folder(data, "colour32", 32, 6), "cifar10"),
            "digits": (["dataset=digits", "prior.images=300", "prior.components=2"], "tiny")}  # fmt: skip


def unpack(packed: Path, data: Path) -> list[dict[str, Any]]:
    """MNIST's files, and each set of JPEGs as a zip of train|test/CLASS/NUMBER.jpg.

    packed: a folder that holds mnist/MNIST/raw/*.gz, cifar10/cifar10_jpeg_bytes.npz and animals64/*.npz, where the JPEGs of
    a split lie behind one another in SPLIT_jpeg, beginning at SPLIT_offsets. What is missing is left out.
    """
    rows = []
    for file in sorted(packed.glob("mnist/MNIST/raw/*.gz")):
        (out := data / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        rows.append({"what": file.name, "bytes": shutil.copy(file, out / file.name).stat().st_size})
    for pattern, name in (("cifar10/*_jpeg_bytes.npz", "colour32"), ("animals64/*_jpeg_bytes.npz", "animals64")):
        for file in sorted(packed.glob(pattern)):
            rows += [
                {"what": f"{name}, {split}", "images": n} for split, n in repacked(file, data / f"{name}.zip").items()
            ]
    return rows


def repacked(file: Path, out: Path) -> dict[str, int]:
    out.parent.mkdir(parents=True, exist_ok=True)
    found = {}
    with np.load(file) as packed, zipfile.ZipFile(out, "w") as archive:
        classes = [str(name) for name in packed["classes"]]
        for split in ("train", "val", "test"):
            if f"{split}_jpeg" in packed.files:
                content, at, labels = (
                    packed[f"{split}_jpeg"].tobytes(),
                    packed[f"{split}_offsets"],
                    packed[f"{split}_labels"],
                )
                for i, label in enumerate(labels):
                    archive.writestr(f"{split}/{classes[label]}/{i:05d}.jpg", content[at[i] : at[i + 1]])
                found[split] = len(labels)
    return found


def distances(name: str, options: Any, kept: Kept) -> None:
    """Train and evaluate; `draw` it."""
    overrides, network = sets(options.data)[name]
    common = [
        *overrides,
        f"network={network}",
        f"trainer.precision={options.precision}",
        "optimizer.lr=1e-3",
        *options.overrides,
    ]
    variants = dict(list(MODELS.items())[: options.models])
    plan = Plan(out=options.work / name, data=options.data, variants=variants, common=common, evaluate=["batch_size=500"],
                seconds=options.budget, points=options.points, n=options.n, device=options.device, processes=options.processes)  # fmt: skip
    kept.table["rows"] = plan.run()
    draw(kept.table["rows"], kept.out.with_suffix(".png"))


@style.styled()
def draw(rows: list[dict[str, Any]], picture: Path) -> None:
    """Distance against seconds of training, a line for every model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(style.CARD, 2.8))
    axis = figure.subplots()
    for i, name in enumerate(dict.fromkeys(row["variant"] for row in rows)):
        ours = [row for row in rows if row["variant"] == name]
        colour, dashes = style.line(i)
        axis.plot(
            [r["seconds"] for r in ours],
            [r["fcd of held-out images"] for r in ours],
            color=colour,
            ls=dashes,
            marker="o",
            label=name,
        )
    axis.set(xlabel="seconds of training")
    style.logarithmic(axis)
    style.title(axis, "Fréchet distance to held-out images")
    style.legend(figure, [axis])
    style.save(figure, picture)


def animals(options: Any, kept: Kept) -> None:
    """Train until time is up; then leave samples and curves of what is there so far. Never finished: it goes on."""
    run, small = options.work / "animals", options.rehearse
    line = [sys.executable, "-m", "vcd.train", "experiment=vcd_afhq", f"run_dir={run}", f"data.root={options.data}",
            f"trainer.precision={options.precision}", "trainer.log_every_n_steps=10", "checkpoint_every=500", "trainer.val_check_interval=1000",
            "callbacks.pictures.n=16", "trainer.enable_progress_bar=false",
            *(["dataset=digits", "network=tiny", "T=3", "batch_size=8", "injection=maps", "trainer.log_every_n_steps=2"] if small else folder(options.data, "animals64", 64, 8)),
            *options.overrides]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, env=environment)
    try:
        code = process.wait(timeout=options.budget)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it saves, and goes on from there
        code = process.wait()
    if code not in (0, 143):
        sys.exit(code)
    n = 16 if small else 36
    drawn = options.work / "animals-samples"
    subprocess.run([sys.executable, "-m", "vcd.sample", f"ckpt={run / 'last.ckpt'}", f"n={n}", f"out={drawn}", "png=false", f"rows={min(n, 6)}",
                    f"device={options.device}"], env=environment, check=True)  # fmt: skip
    for name in ("samples", "sequences"):
        picture = Image.open(drawn / f"{name}.png").convert("P", palette=Image.Palette.ADAPTIVE)  # less than 200 KB
        picture.save(kept.out.with_name(f"animals-{name}.png"), optimize=True)
    curves.draw(run / "metrics.csv", kept.out.with_name("animals-curves.png"))
    step, seconds = timing.read(run / "times.csv")[-1]
    kept.table["rows"] = [
        {
            "what": "VCD as published for AFHQ, on animals64",
            "steps": step,
            "seconds": seconds,
            "steps/s": step / seconds,
        }
    ]


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=1)
    parser.add_argument("--table", default="mnist", choices=["data", "mnist", "colour", "digits", "animals"])
    parser.add_argument("--packed", type=Path, help="where the packed images are, for --table data")
    parser.add_argument("--data", type=Path, required=True, help="where data sets are unpacked")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--budget", type=float, default=60, help="seconds of training, of each model")
    parser.add_argument("--points", type=int, default=3, help="checkpoints that are evaluated")
    parser.add_argument("--n", type=int, default=2000, help="samples")
    parser.add_argument("--models", type=int, default=len(MODELS), help="so many of them")
    parser.add_argument("--processes", type=int, default=1, help="evaluations at a time")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument(
        "--rehearse", action="store_true", help="animals: at the size of digits; data: nothing may be there"
    )
    parser.add_argument("overrides", nargs="*", help="of vcd.train, for all")
    parser.set_defaults(out=Path("quality.json"))
    options = parse(parser)
    options.data, options.work = options.data.resolve(), options.work.resolve()
    quiet()
    kept = Kept(f"{options.table} on {options.device}", options.out)
    if options.table == "data":
        kept.table["rows"] = unpack(options.packed, options.data)
        if not kept.table["rows"] and not options.rehearse:
            sys.exit(f"--packed {options.packed} holds no images: see unpack in {Path(__file__).name}")
    elif options.table == "animals":
        animals(options, kept)
        kept.save()
        sys.exit(UNFINISHED)
    else:
        distances(options.table, options, kept)
    kept.finish()


if __name__ == "__main__":
    main()
