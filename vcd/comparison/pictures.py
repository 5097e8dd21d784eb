"""Runs side by side, drawn: samples under the same seeds, and every metric over training."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vcd import checkpoints, figures, style
from vcd import curves as metric_curves
from vcd.comparison.table import Run, Variant
from vcd.curves import Panel
from vcd.errors import UserError
from vcd.metrics import results
from vcd.randomness import PerImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def picture(
    variants: list[Variant], path: Path, *, n: int, seed: int, device: str, trust: Collection[str] = ()
) -> Path:
    """Samples of every variant under the same seeds, a row each."""
    rows = []
    for variant in variants:
        model, _ = checkpoints.load(variant.runs[0].folder / "last.ckpt", device, trust=trust)
        rows.append(model.space.decode(model.sample(PerImage(seed, range(n), model.device), keep=2).x0).cpu())
    if len({row.shape for row in rows}) > 1:
        raise UserError("these runs make images of different sizes: their samples do not fit into one picture")
    return figures.sheet(path, [("", torch.stack(rows))], rows=[v.name for v in variants])


@dataclass
class Curve:
    """A metric of one run over its training."""

    run: Run
    label: str
    look: tuple[str, str]  # colour and dashes
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
        if not (times := self.run.times):
            return None
        return np.interp(self.steps, [step for step, _ in times], [at for _, at in times]).tolist()


def curves(variants: list[Variant]) -> dict[str, list[Curve]]:
    """Every metric, and the validation loss, over training, where it was measured more than once: its curves, a run each.

    Metrics have as many points as checkpoints were kept (keep_every) and evaluated.
    """
    found: dict[str, list[Curve]] = {}
    for i, variant in enumerate(variants):
        for run in variant.runs:
            for what, steps, values in _measured(run, variant.name):
                found.setdefault(what, []).append(Curve(run, variant.name, style.line(i), steps, values))
    return {what: lines for what, lines in found.items() if any(len(line.steps) > 1 for line in lines)}


def draw(found: dict[str, list[Curve]], path: Path) -> Path:
    """The curves against images seen and against seconds of training, a row a metric."""
    from matplotlib.figure import Figure

    with style.styled():
        figure = Figure(figsize=(style.PAGE, 0.5 + 2.2 * max(1, len(found))))
        axes = figure.subplots(max(1, len(found)), 2, squeeze=False)
        for (left, right), (what, lines) in zip(axes, found.items(), strict=False):
            _plot(left, lines, what, "seen")
            _plot(right, lines, what, "seconds")
            style.title(left, _unit(lines, what), what)
        for axis in axes.flat:
            axis.set_visible(bool(axis.lines))
        style.legend(figure, axes[:, 0])
        style.save(figure, path)
    return path


def panels(found: dict[str, list[Curve]]) -> Iterator[Panel]:
    """The curves against images seen, each a picture of its own."""
    from matplotlib.figure import Figure

    for what, lines in found.items():
        with style.styled():
            figure = Figure(figsize=(style.CARD, 2.9))
            axis = figure.subplots()
            _plot(axis, lines, what, "seen")
            style.title(axis, _unit(lines, what))
            style.legend(figure, [axis])
            picture = style.png(figure)
        yield Panel(what, picture)


def _plot(axis: "Axes", lines: list[Curve], what: str, against: str) -> None:
    """Every run a line; those of one variant share their colour and their entry in the legend."""
    for line in lines:
        if x := getattr(line, against):
            colour, dashes = line.look
            axis.plot(x, line.values, color=colour, ls=dashes, marker=".", label=line.label)
    if axis.lines and (floor := _number(lines, what).get("floor")) is not None:
        axis.axhline(floor, color=style.TEXT, linewidth=1, linestyle=(0, (1, 2)), label="real images")
    axis.set(xlabel={"seen": "images seen", "seconds": "seconds of training"}[against])
    style.counts(axis)


def _number(lines: list[Curve], what: str) -> dict[str, Any]:
    """The metric as metrics.json has it; empty for a loss."""
    return next((line.run.metrics[what] for line in lines if what in line.run.metrics), {})


def _unit(lines: list[Curve], what: str) -> str:
    if not (number := _number(lines, what)):
        return "mean over images"
    better = number.get("better", "neither")
    words = [number.get("unit") or "", "" if better == "neither" else f"{better} is better"]
    return ", ".join(word for word in words if word) or " "


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
    found = [results.read(path) for path in run.folder.glob("metrics*.json")]
    return sorted(((f["subject"]["steps"], f["metrics"]) for f in found), key=lambda pair: pair[0])
