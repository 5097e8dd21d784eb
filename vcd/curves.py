"""The curves of runs, drawn from their metrics.csv."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vcd import style
from vcd.files import read_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Rows = list[dict[str, str]]
UNITS = {
    "loss": "mean over images",
    "reconstruction_sse": "squared error, summed over pixels",
    "kl_bits": "KL in bits per step",
}


class Panel(NamedTuple):
    """A plot of its own: what it shows, as PNG, and whether that is by level."""

    title: str
    picture: bytes
    by_level: bool = False


def read(metrics: Path) -> Rows:
    """The rows of a metrics.csv. UserError where it is damaged."""
    return read_steps(metrics)


@style.styled()
def draw(metrics: Path, picture: Path) -> Path:
    """Loss, reconstruction and KL, a row each: over all on the left, level by level, where the information enters, on
    the right."""
    from matplotlib.figure import Figure

    rows = read(metrics)
    terms = _terms(rows)
    figure = Figure(figsize=(style.PAGE, 0.4 + 2.4 * max(1, len(terms))))
    axes = figure.subplots(max(1, len(terms)), 2, squeeze=False)
    for (left, right), term in zip(axes, terms, strict=False):
        _over_all(figure, left, {"": rows}, term)
        style.title(left, UNITS[term], term)
        _by_level(figure, right, {"": rows}, term)
        style.title(right, UNITS[term], f"{term} by level")
    for axis in axes.flat:
        axis.set_visible(bool(axis.lines))
    style.legend(figure, axes[:, 0])
    style.save(figure, picture)
    return picture


def panels(runs: Mapping[str, tuple[str, Rows]]) -> Iterator[Panel]:
    """Every term, the runs of one model in one plot: losses of different models have no common unit; and for a single
    run every term by level. runs: name -> (model, rows)."""
    for model in dict.fromkeys(model for model, _ in runs.values()):
        group = {name: rows for name, (kind, rows) in runs.items() if kind == model}
        for term in dict.fromkeys(term for rows in group.values() for term in _terms(rows)):
            yield Panel(f"{model}: {term}", _alone(_over_all, group, term))
            for name, rows in group.items():
                if any(key.startswith(f"val/{term}/t") for key in _names(rows)):
                    title = f"{name if len(group) > 1 else model}: {term} by level"
                    yield Panel(title, _alone(_by_level, {name: rows}, term), by_level=True)


@style.styled()
def _alone(plot: Callable, runs: Mapping[str, Rows], term: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(style.CARD, 2.9))
    axis = figure.subplots()
    plot(figure, axis, runs, term)
    style.title(axis, UNITS[term])
    style.legend(figure, [axis])
    return style.png(figure)


def _names(rows: Rows) -> list[str]:
    return list(rows[0]) if rows else []


def _terms(rows: Rows) -> list[str]:
    return [term for term in UNITS if f"val/{term}" in _names(rows)]


def curve(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a column, where it has any."""
    points = [(int(r["step"]), float(r[name])) for r in rows if r.get(name)]
    return [p[0] for p in points], [p[1] for p in points]


def _over_all(figure: "Figure | SubFigure", axis: "Axes", runs: Mapping[str, Rows], term: str) -> None:
    """Training (thin) and validation of every run."""
    several = len(runs) > 1
    for i, (name, rows) in enumerate(runs.items()):
        colour, dashes = style.line(i)
        axis.plot(
            *curve(rows, f"val/{term}"), color=colour, ls=dashes, marker=".", label=name if several else "validation"
        )
    for i, rows in enumerate(runs.values()):
        colour, dashes = style.line(i if several else 1)
        name = "training (thin)" if several else "training"
        axis.plot(*curve(rows, f"train/{term}"), color=colour, ls=dashes, linewidth=0.8, label=name)
    axis.set(xlabel="training step")
    style.counts(axis)
    if term != "kl_bits":
        style.logarithmic(axis)


def _by_level(figure: "Figure | SubFigure", axis: "Axes", runs: Mapping[str, Rows], term: str) -> None:
    """Validation of one run, a line for every level or group of levels."""
    (rows,) = runs.values()
    names = [name for name in _names(rows) if name.startswith(f"val/{term}/t")]
    colours = style.levels(len(names))
    for i, name in enumerate(names):
        axis.plot(*curve(rows, name), color=colours(i), ls="-", marker=".")
    axis.set(xlabel="training step")
    style.counts(axis)
    if term != "kl_bits":
        style.logarithmic(axis)
    if names:
        style.scale_of_levels(figure, [axis], [_level(name) for name in names])


def _level(name: str) -> str:
    """val/loss/t03 -> 3; val/loss/t013-024 -> 13-24."""
    return "-".join(str(int(t)) for t in name.rpartition("/t")[2].split("-"))
