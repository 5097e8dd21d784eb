"""Runs side by side, drawn: samples under the same seeds, and every metric over training."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vcd import checkpoints, figures, files
from vcd import curves as metric_curves
from vcd.comparison.table import Run, Variant
from vcd.errors import UserError
from vcd.randomness import PerImage


def picture(variants: list[Variant], path: Path, *, n: int, seed: int, device: str) -> Path:
    """Samples of every variant under the same seeds, a row each."""
    rows = []
    for variant in variants:
        model, _ = checkpoints.load(variant.runs[0].folder / "last.ckpt", device)
        rows.append(model.sample(PerImage(seed, range(n), model.device), keep=2).x0.cpu())
    if len({row.shape for row in rows}) > 1:
        raise UserError("these runs make images of different sizes: their samples do not fit into one picture")
    return figures.sheet(path, [("", torch.stack(rows))], [str(i) for i in range(n)], [v.name for v in variants])


@dataclass
class Curve:
    """A metric of one run over its training."""

    run: Run
    label: str
    color: str
    steps: list[int]
    values: list[float]

    @property
    def seen(self) -> list[float]:
        """Images, at every point."""
        each = self.run.subject["images_seen"] / max(1, self.run.subject["steps"])
        return [step * each for step in self.steps]

    @property
    def seconds(self) -> list[float] | None:
        """Of training, at every point; None where they were not noted."""
        return np.interp(self.steps, *zip(*self.run.times, strict=True)).tolist() if self.run.times else None


def curves(variants: list[Variant], path: Path) -> Path:
    """Every metric, and the validation loss, against images seen and against seconds of training.

    Metrics have as many points as checkpoints were kept (keep_every) and evaluated.
    """
    from matplotlib.figure import Figure

    found: dict[str, list[Curve]] = {}
    for i, variant in enumerate(variants):
        for run in variant.runs:
            for what, steps, values in _measured(run, variant.name):
                label = variant.name if run is variant.runs[0] else "_"  # one entry in the legend for all seeds
                found.setdefault(what, []).append(Curve(run, label, f"C{i}", steps, values))
    figure = Figure(figsize=(11, 2.8 * len(found)), layout="constrained")
    for (left, right), (what, lines) in zip(figure.subplots(len(found), 2, squeeze=False), found.items(), strict=True):
        for line in lines:
            left.plot(line.seen, line.values, marker=".", color=line.color, label=line.label)
            if line.seconds:
                right.plot(line.seconds, line.values, marker=".", color=line.color)
        if (
            floor := next((r.metrics[what]["floor"] for v in variants for r in v.runs if what in r.metrics), None)
        ) is not None:
            for axis in (left, right):
                axis.axhline(floor, color="gray", linestyle=":", label="real images")
        left.set(xlabel="images seen", ylabel=what)
        right.set(xlabel="seconds of training", ylabel=what)
        left.legend(fontsize=7)
    figure.savefig(path, dpi=80)
    return path


def _measured(run: Run, name: str) -> Iterator[tuple[str, list[int], list[float]]]:
    """(metric, steps, values) of every metric over the evaluated checkpoints, and of the validation loss."""
    history = _history(run)
    for metric in dict.fromkeys(name for _, metrics in history for name in metrics):
        points = [(step, metrics[metric]["value"]) for step, metrics in history if metric in metrics]
        points = [point for point in points if point[1] is not None]  # it was not finite
        yield metric, [step for step, _ in points], [value for _, value in points]
    if (run.folder / "metrics.csv").exists():
        steps, losses = metric_curves.curve(metric_curves.read(run.folder / "metrics.csv"), "val/loss")
        yield f"validation loss of {name}", [step + 1 for step in steps], losses


def _history(run: Run) -> list[tuple[int, dict[str, Any]]]:
    """(step, metrics) of every evaluated checkpoint of the run, in order."""
    found = [files.read_metrics(path) for path in run.folder.glob("metrics*.json")]
    return sorted(((f["subject"]["steps"], f["metrics"]) for f in found), key=lambda pair: pair[0])
