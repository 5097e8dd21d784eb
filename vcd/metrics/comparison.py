"""Runs side by side: what was measured, in one table, refused where the protocols differ."""

import csv
import io
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vcd import checkpoints, figures
from vcd import curves as metric_curves
from vcd.callbacks import timing
from vcd.errors import UserError
from vcd.randomness import PerImage

FACTS = {"parameters": "parameters", "images_seen": "images seen", "training_seconds": "training s",
         "images_per_second": "samples/s", "evaluations_per_sample": "evaluations"}  # fmt: skip


@dataclass
class Run:
    """An evaluated run folder."""

    folder: Path
    metrics: dict[str, dict[str, Any]]  # name -> the Number of the suite
    subject: dict[str, Any]


@dataclass
class Variant:
    """Runs that differ in their seed only."""

    name: str
    runs: list[Run]


@dataclass
class Table:
    """Rows of variants; every cell a list of values over seeds, empty where nothing was measured."""

    rows: list[str]
    columns: list[str]
    values: dict[tuple[str, str], list[float]]
    floors: dict[str, float | None]
    notes: list[str] = field(default_factory=list)

    def cell(self, row: str, column: str) -> str:
        values = self.values.get((row, column), [])
        if not values:
            return ""
        mean = _short(statistics.fmean(values))
        return f"{mean} ± {_short(statistics.stdev(values))}" if len(values) > 1 else mean

    def cells(self) -> list[list[str]]:
        """Header, a row a variant, and the floor of real images."""
        lines = [["", *self.columns], *([row, *(self.cell(row, c) for c in self.columns)] for row in self.rows)]
        if any(floor is not None for floor in self.floors.values()):
            floors = [self.floors.get(c) for c in self.columns]
            lines.append(["real images", *("" if f is None else _short(f) for f in floors)])
        return lines


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def train(variants: dict[str, list[str]], common: list[str], runs: Path, processes: int) -> list[Path]:
    """Train every variant by `vcd.train`, several at a time; the folders, in order. UserError naming those that failed."""
    runs.mkdir(parents=True, exist_ok=True)

    def one(name: str) -> Path | str:
        line = [sys.executable, "-m", "vcd.train", *common, *variants[name], f"runs={runs}", "trainer.enable_progress_bar=false"]
        with open(runs / f"{name}.log", "w") as file:
            code = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT).returncode
        last = (runs / f"{name}.log").read_text().strip().splitlines()[-1:]
        bar.update()
        return Path(last[0].split(maxsplit=1)[1]).parent if code == 0 else f"{name} ({' '.join(last)})"

    with tqdm(total=len(variants), desc="training", unit="run") as bar, ThreadPoolExecutor(processes) as pool:
        results = list(pool.map(one, variants))
    if failed := [result for result in results if isinstance(result, str)]:
        raise UserError(f"these runs failed: {'; '.join(failed)}; their logs are in {runs}; the same command goes on with the rest")
    return results


def evaluate(folders: list[Path], overrides: list[str]) -> None:
    """Evaluate what has not been evaluated since its checkpoint was written, by `vcd.evaluate` with the same overrides."""
    for folder in tqdm(folders, desc="evaluating", unit="run"):
        stamp, asked = folder / ".evaluated", json.dumps([overrides, os.stat(folder / "last.ckpt").st_mtime_ns])
        if (folder / "metrics.json").exists() and stamp.exists() and stamp.read_text() == asked:
            continue
        line = [sys.executable, "-m", "vcd.evaluate", f"ckpt={folder / 'last.ckpt'}", *overrides]
        process = subprocess.run(line, capture_output=True, text=True)
        if process.returncode:
            raise UserError(f"{folder} could not be evaluated: {process.stderr.strip().splitlines()[-1]}")
        stamp.write_text(asked)


def read(folder: Path) -> Run:
    """The run in `folder`. UserError when it was not evaluated."""
    if not (folder / "metrics.json").is_file():
        raise UserError(f"{folder} has no metrics.json: python -m vcd.evaluate ckpt={folder / 'last.ckpt'} first, or give evaluate=[...]")
    found = json.loads((folder / "metrics.json").read_text())
    subject = found["subject"]
    if (folder / "times.csv").exists():
        subject["training_seconds"] = timing.read(folder / "times.csv")[-1][1]
    return Run(folder, found["metrics"], subject)


def group(runs: list[Run]) -> list[Variant]:
    """Runs whose configurations differ in the seed only are one variant, named by its model, or its folder where that
    is not enough."""
    keys: dict[str, list[Run]] = {}
    for run in runs:
        keys.setdefault(run.folder.resolve().name.rpartition("-seed")[0] or str(run.folder), []).append(run)
    models = [group[0].subject["model"] for group in keys.values()]
    names = [m if models.count(m) == 1 else k for m, k in zip(models, keys, strict=True)]
    return [Variant(name, group) for name, group in zip(names, keys.values(), strict=True)]


def table(variants: list[Variant]) -> Table:
    """Metrics and facts of every variant. UserError when one metric was measured by different protocols."""
    runs = [(variant.name, run) for variant in variants for run in variant.runs]
    metrics = list(dict.fromkeys(name for _, run in runs for name in run.metrics))
    values: dict[tuple[str, str], list[float]] = {}
    floors: dict[str, float | None] = {}
    for metric in metrics:
        found = [(name, run, run.metrics[metric]) for name, run in runs if metric in run.metrics]
        first = found[0]
        for other in found[1:]:
            if differ := different(first[2]["protocol"], other[2]["protocol"]):
                raise UserError(f"{metric} was measured differently for {first[1].folder.name} and {other[1].folder.name} "
                                f"({', '.join(differ)}): evaluate them alike")  # fmt: skip
        floors[metric] = first[2]["floor"]
        for name, _, number in found:
            values.setdefault((name, metric), []).append(number["value"])
    for fact, title in FACTS.items():
        for name, run in runs:
            if run.subject.get(fact) is not None:
                values.setdefault((name, title), []).append(float(run.subject[fact]))
    facts = [title for title in FACTS.values() if any(key[1] == title for key in values)]
    return Table([v.name for v in variants], [*metrics, *facts], values, floors)


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Which keys of two protocols differ, with both values."""
    return [f"{key}: {a.get(key)} and {b.get(key)}" for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]


def markdown(table: Table) -> str:
    """The table for a README: one row a metric, for there are more of them than of variants."""
    rows = list(zip(*table.cells(), strict=True))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]]) + "\n"


def plain(table: Table) -> str:
    """The table as CSV: mean, deviation and number of seeds of every variant and column."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("variant", "metric", "mean", "std", "seeds", "floor"))
    for row in table.rows:
        for column in table.columns:
            if values := table.values.get((row, column)):
                std = statistics.stdev(values) if len(values) > 1 else ""
                writer.writerow((row, column, statistics.fmean(values), std, len(values), _or_nothing(table.floors.get(column))))
    return buffer.getvalue()


def _or_nothing(value: float | None) -> float | str:
    return "" if value is None or math.isnan(value) else value


def latex(table: Table) -> str:
    """The table for a paper, with booktabs."""
    rows = [[cell.replace("_", r"\_").replace("±", r"$\pm$") for cell in row] for row in zip(*table.cells(), strict=True)]
    lines = [" & ".join(row) + r" \\" for row in rows]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return f"\\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}\n{body}\n\\end{{tabular}}\n"


def picture(variants: list[Variant], path: Path, *, n: int, seed: int, device: str) -> Path:
    """Samples of every variant under the same seeds, a row each."""
    rows = []
    for variant in variants:
        model, _ = checkpoints.load(variant.runs[0].folder / "last.ckpt", device)
        rows.append(model.sample(PerImage(seed, range(n), model.device), most=2).x0.cpu())
    if len({row.shape for row in rows}) > 1:
        raise UserError("these runs make images of different sizes: their samples do not fit into one picture")
    return figures.sheet(path, [("", torch.stack(rows))], [str(i) for i in range(n)], [v.name for v in variants])


def curves(variants: list[Variant], path: Path) -> Path:
    """The validation loss of every run against images seen and, where it is known, against seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6 * len(variants)), layout="constrained")
    for axes, variant in zip(figure.subplots(len(variants), 2, squeeze=False), variants, strict=True):
        for run in variant.runs:
            steps, losses = metric_curves.curve(metric_curves.read(run.folder / "metrics.csv"), "val/loss")
            each = run.subject["images_seen"] / max(1, run.subject["steps"])
            label = f"seed {run.subject['training_seed']}"
            axes[0].plot([(step + 1) * each for step in steps], losses, marker=".", label=label)
            if (run.folder / "times.csv").exists():
                times = timing.read(run.folder / "times.csv")
                at, seconds = zip(*times, strict=True)
                seconds = [_interpolated(step + 1, at, seconds) for step in steps]
                axes[1].plot(seconds, losses, marker=".", label=label)
        axes[0].set(xlabel="images seen", ylabel=f"{variant.name}\nvalidation loss", yscale="log")
        axes[1].set(xlabel="seconds of training", yscale="log")
        axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    return path


def _interpolated(step: int, at: tuple[int, ...], seconds: tuple[float, ...]) -> float:
    import numpy as np

    return float(np.interp(step, at, seconds))
