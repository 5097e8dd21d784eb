"""python benchmarks/bench_scaling.py: what a training step costs as images, levels and batches grow, and in two processes.

Several GPUs are reckoned on paper, from the bytes that a step really hands over, as counted here: all of them after the
backward pass, none behind it, so the efficiencies are lower bounds.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_train import Subject
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from measure import arguments, parse, save, show
from torch import distributed
from variants import SIZES, config, data, model

from vcd import style
from vcd.callbacks import timing
from vcd.quiet import quiet

NETWORK = ["dataset=cifar10", "network=small", "model=vwd"]
SWEEPS = {  # what grows -> (models, values, overrides of each value)
    "image size": (["vwd"], (16, 32, 64, 128), [*NETWORK, "dataset.size={}", "batch_size=8"]),
    "T": (["vcd as published", "vcd", "vwd", "ddpm"], (6, 24, 96, 200), ["dataset=digits", "T={}"]),
    "batch": (["vcd", "vwd", "ddpm"], (8, 32, 128, 512), ["dataset=digits", "batch_size={}"]),
}
MODELS = {
    "vcd": ["model=vcd"],
    "vcd as published": ["model=vcd", "perturbation=rollout_published", "perturbation.p_warmup=0.125"],
    "vwd": ["model=vwd"],
    "ddpm": ["model=ddpm", "sampler.steps=null"],
}
WIRES = {  # how many GPUs, and bytes a second of the slowest link of their ring: assumptions, of usual machines
    "8 of a node, 200 GB/s": (8, 200e9),
    "4 nodes of 8, 50 GB/s": (32, 50e9),
    "4 nodes of 8, 12.5 GB/s": (32, 12.5e9),
}


def growth(what: str, steps: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """A row for every value: milliseconds a step of every model, medians over rounds in which all take their turn."""
    models, values, overrides = SWEEPS[what]
    subjects = {}
    for value in values:
        for name in models:
            cfg = config(*[o.format(value) for o in overrides if o != "model=vwd"], *MODELS[name])
            subjects[value, name] = Subject(cfg, model(cfg, device))
    for _ in range(repeats):
        for subject in subjects.values():
            subject.train(steps, "gpu" if device.startswith("cuda") else "cpu")
    rows = []
    for value in values:
        taken = {name: statistics.median(subjects[value, name].steps) for name in models}
        rows.append({what: value, **{f"{name} ms": 1e3 * took for name, took in taken.items()}})
        if what == "batch":
            rows[-1] |= {f"{name} images/s": value / took for name, took in taken.items()}
    return rows


def processes(overrides: list[str], repeats: int) -> list[dict[str, Any]]:
    """One process of two threads, and two of one, of `vcd.train` with the same total batch, taking turns."""
    ddp = ["trainer=ddp", "trainer.accelerator=cpu"]
    ways: dict[str, tuple[int, list[str]]] = {
        "one process, 1 thread": (1, []), "one process, 2 threads": (2, []), "two processes, 1 thread each": (1, ddp),
    }  # fmt: skip
    taken: dict[str, list[float]] = {way: [] for way in ways}
    common = ["trainer.max_steps=30", "trainer.log_every_n_steps=10", "trainer.val_check_interval=30", "prior=independent",
              "+trainer.limit_val_batches=0", "callbacks.pictures.n=1", "trainer.enable_progress_bar=false", "checkpoint_every=1000"]  # fmt: skip
    for _ in range(repeats):
        for way, (threads, more) in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                line = [
                    sys.executable,
                    "-m",
                    "vcd.train",
                    *overrides,
                    *more,
                    *common,
                    f"threads={threads}",
                    f"run_dir={folder}/run",
                ]
                subprocess.run(line, cwd=folder, check=True, capture_output=True)
                (first, began), *_, (last, ended) = timing.read(Path(folder) / "run" / "times.csv")
            taken[way].append((ended - began) / (last - first))
    alone = statistics.median(taken["one process, 1 thread"])
    return [
        {"how": way, "ms a step": 1e3 * statistics.median(t), "times": alone / statistics.median(t)}
        for way, t in taken.items()
    ]


class Objective(torch.nn.Module):
    def __init__(self, of: torch.nn.Module):
        super().__init__()
        self.of = of

    def forward(self, batch) -> torch.Tensor:
        return self.of.losses(batch).total


def handed_over(size: str) -> int:
    """Bytes of gradients that a step of VWD gives to the others, counted where DistributedDataParallel sends them."""
    cfg = config(*SIZES[size], "model=vwd", "batch_size=2")
    of = model(cfg)
    module = data(cfg, of, 1)
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    together = torch.nn.parallel.DistributedDataParallel(Objective(of))
    sent: list[int] = []

    def count(_: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent.append(bucket.buffer().nbytes)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    together.register_comm_hook(None, count)
    together(batch).backward()
    return sum(sent)


def on_paper(sizes: list[str], milliseconds: tuple[int, ...] = (10, 30, 100)) -> list[dict[str, Any]]:
    """Share of the time spent on computing, for steps that take so many milliseconds on a GPU alone (ring all-reduce)."""
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    rows = []
    for size in sizes:
        volume = handed_over(size)
        for wires, (n, rate) in WIRES.items():
            exchange = 2 * (n - 1) / n * volume / rate
            shares = {f"step of {ms} ms": f"{100 * ms / (ms + 1e3 * exchange):.0f} %" for ms in milliseconds}
            rows.append(
                {"size": size, "MB a step": volume / 1e6, "GPUs": wires, "exchange ms": 1e3 * exchange, **shares}
            )
    distributed.destroy_process_group()
    return rows


@style.styled()
def draw(tables: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    """A plot for each of what grows, a colour for each model."""
    figure = Figure(figsize=(style.PAGE, 2.8))
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    names = list(dict.fromkeys(key for rows in tables.values() for key in rows[0] if key.endswith(" ms")))
    for axis, (what, rows) in zip(axes, tables.items(), strict=True):
        x = [row[what] for row in rows]
        for name in (name for name in names if name in rows[0]):
            colour, dashes = style.line(names.index(name))
            y = [row[name] for row in rows]
            axis.plot(x, y, color=colour, ls=dashes, marker="o", label=name.removesuffix(" ms"))
        axis.set(xscale="log", xlabel=what)
        axis.set_xticks(x, [str(value) for value in x])
        axis.xaxis.set_minor_locator(NullLocator())
        style.logarithmic(axis)
        style.title(axis, "ms per step")
    style.legend(figure, axes)
    style.save(figure, picture)


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=2)
    parser.add_argument("--steps", type=int, default=3, help="a round")
    parser.add_argument("--growth", nargs="*", default=list(SWEEPS), choices=SWEEPS)
    parser.add_argument(
        "--sizes", nargs="*", default=["mnist", "cifar10", "afhq"], choices=SIZES, help="for several GPUs"
    )
    parser.add_argument("--processes", nargs="*", default=["dataset=digits", "network=mnist", "model=vwd", "batch_size=64"],
                        help="overrides of vcd.train for two processes; none: left out")  # fmt: skip
    parser.add_argument("--plot", type=Path)
    options = parse(parser)
    quiet()
    grown = {what: growth(what, options.steps, options.repeats, options.device) for what in options.growth}
    tables = dict(grown)
    if options.processes:
        tables["processes"] = processes(options.processes, options.repeats)
    if options.sizes:
        tables["GPUs, on paper"] = on_paper(options.sizes)
    for what, rows in tables.items():
        show(f"A training step and its {what}", rows)
    save("Scaling", [{"table": what, **row} for what, rows in tables.items() for row in rows], options.out)
    if options.plot:
        draw(grown, options.plot)


if __name__ == "__main__":
    main()
