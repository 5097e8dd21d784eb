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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vcd import checkpoints, figures
from vcd import curves as metric_curves
from vcd.callbacks import timing
from vcd.errors import UserError
from vcd.evaluate import place
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


def _times(folder: Path) -> list[tuple[int, float]]:
    """(step, seconds) of training; empty where it was not noted."""
    return timing.read(folder / "times.csv") if (folder / "times.csv").exists() else []


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


def steps_in(seconds: float, variants: dict[str, list[str]], common: list[str], probes: Path, processes: int) -> dict[str, int]:
    """How many steps of every variant `seconds` of training hold: from a probe of 40 steps each, kept for a restart."""
    short = ["trainer.max_steps=40", "trainer.val_check_interval=40", "+trainer.limit_val_batches=0", "trainer.log_every_n_steps=10",
             "callbacks.pictures.n=1"]  # fmt: skip
    others = [o for o in common if not o.startswith("trainer.max_steps=")]
    folders = train(variants, [*others, *short], probes, processes)
    steps = {}
    for name, folder in zip(variants, folders, strict=True):
        (first, began), *_, (last, ended) = timing.read(folder / "times.csv")
        steps[name] = max(1, int(seconds * (last - first) / (ended - began)))
    return steps


def evaluate(folders: list[Path], overrides: list[str], processes: int) -> None:
    """Evaluate every checkpoint that has not been evaluated since it was written, with the same overrides."""

    if missing := [str(folder) for folder in folders if not (folder / "last.ckpt").is_file()]:
        raise UserError(f"{', '.join(missing)}: there is no last.ckpt to evaluate")

    def one(ckpt: Path) -> str | None:
        line = [sys.executable, "-m", "vcd.evaluate", f"ckpt={ckpt}", *overrides]
        process = subprocess.run(line, capture_output=True, text=True)
        bar.update()
        if process.returncode:
            return f"{ckpt} could not be evaluated: {process.stderr.strip().splitlines()[-1]}"
        _stamp(ckpt).write_text(_asked(ckpt, overrides))
        return None

    every = [ckpt for folder in folders for ckpt in (*sorted(folder.glob("step-*.ckpt")), folder / "last.ckpt")]
    todo = [c for c in every if not (place(c).exists() and _stamp(c).exists() and _stamp(c).read_text() == _asked(c, overrides))]
    with tqdm(total=len(todo), desc="evaluating", unit="checkpoint") as bar, ThreadPoolExecutor(processes) as pool:
        first, rest = todo[:1], todo[1:]  # the first one makes what all share: classifier, features of the reference
        failed = [sentence for part in (first, rest) for sentence in pool.map(one, part) if sentence]
    if failed:
        raise UserError("; ".join(failed))


def _stamp(ckpt: Path) -> Path:
    return ckpt.with_name(f".{ckpt.name}.evaluated")


def _asked(ckpt: Path, overrides: list[str]) -> str:
    return json.dumps([overrides, *(os.stat(path).st_mtime_ns for path in (ckpt, place(ckpt)))])


def read(folder: Path) -> Run:
    """The run in `folder`. UserError when it was not evaluated."""
    if not (folder / "metrics.json").is_file():
        raise UserError(f"{folder} has no metrics.json: python -m vcd.evaluate ckpt={folder / 'last.ckpt'} first, or give evaluate=[...]")
    found = json.loads((folder / "metrics.json").read_text())
    subject = found["subject"]
    if "model" not in subject:
        raise UserError(f"{folder}/metrics.json is of a folder of images, not of a run: there is no model to compare")
    if times := _times(folder):
        subject["training_seconds"] = times[-1][1]
    return Run(folder, found["metrics"], subject)


def group(runs: list[Run]) -> list[Variant]:
    """Runs whose configurations differ in the seed only are one variant, named by its model, or its folder where that
    is not enough."""
    keys: dict[str, list[Run]] = {}
    for run in {run.folder.resolve(): run for run in runs}.values():  # a run named twice is no second seed
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
            if number["value"] is not None:  # it was not finite
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
    """Every metric, and the validation loss, against images seen and against seconds of training.

    Metrics have as many points as checkpoints were kept (keep_every) and evaluated.
    """
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[str, int, list[float], list[float], list[float]]]] = {}  # what -> (name, colour, seen, seconds, value)
    for i, variant in enumerate(variants):
        for run in variant.runs:
            each = run.subject["images_seen"] / max(1, run.subject["steps"])
            times = _times(run.folder)

            def add(what: str, steps: list[int], values: list[float], i=i, variant=variant, each=each, times=times) -> None:
                seconds = [_interpolated(step, *zip(*times, strict=True)) for step in steps] if times else []
                lines.setdefault(what, []).append((variant.name, i, [step * each for step in steps], seconds, values))

            history = _history(run)
            for metric in dict.fromkeys(name for _, metrics in history for name in metrics):
                points = [(step, metrics[metric]["value"]) for step, metrics in history
                          if metric in metrics and metrics[metric]["value"] is not None]  # fmt: skip
                add(metric, [p[0] for p in points], [p[1] for p in points])
            if (run.folder / "metrics.csv").exists():
                steps, losses = metric_curves.curve(metric_curves.read(run.folder / "metrics.csv"), "val/loss")
                add(f"validation loss of {variant.name}", [step + 1 for step in steps], losses)
    figure = Figure(figsize=(11, 2.8 * len(lines)), layout="constrained")
    for axes, (what, runs) in zip(figure.subplots(len(lines), 2, squeeze=False), lines.items(), strict=True):
        for axis, at, label in ((axes[0], 2, "images seen"), (axes[1], 3, "seconds of training")):
            for run in runs:
                if run[at]:
                    axis.plot(run[at], run[4], marker=".", color=f"C{run[1]}", label=run[0])
            axis.set(xlabel=label, ylabel=what)
        axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)
    return path


def _history(run: Run) -> list[tuple[int, dict[str, Any]]]:
    """(step, metrics) of every evaluated checkpoint of the run, in order."""
    found = [json.loads(path.read_text()) for path in run.folder.glob("metrics*.json")]
    return sorted(((f["subject"]["steps"], f["metrics"]) for f in found), key=lambda pair: pair[0])


def _interpolated(step: int, at: tuple[int, ...], seconds: tuple[float, ...]) -> float:
    import numpy as np

    return float(np.interp(step, at, seconds))
