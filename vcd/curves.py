"""The curves of runs, drawn from their metrics.csv."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vcd.files import read_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, str]]
UNITS = {"loss": "loss", "reconstruction_sse": "squared error, summed over pixels", "kl_bits": "KL in bits per step"}


def read(metrics: Path) -> Rows:
    """The rows of a metrics.csv. UserError where it is damaged."""
    return read_steps(metrics)


def draw(metrics: Path, picture: Path) -> Path:
    """Loss, reconstruction, KL and, level by level, where the information enters."""
    from matplotlib.figure import Figure

    rows = read(metrics)
    terms = _terms(rows)
    figure = Figure(figsize=(4 * max(2, len(terms)), 6.5), dpi=110, layout="constrained")
    axes = figure.subplots(2, max(2, len(terms)), squeeze=False)
    for (over_all, by_level), term in zip(axes.T, terms, strict=False):
        _over_all(over_all, {"": rows}, term)
        _by_level(by_level, rows, term)
    for axis in axes.flat:
        axis.set_visible(bool(axis.lines))
    figure.savefig(picture)
    return picture


def panels(runs: Mapping[str, tuple[str, Rows]]) -> Iterator[tuple[str, "Figure"]]:
    """(title, figure) of every term, the runs of one model in one figure: losses of different models have no common
    unit; and for a single run every term by level."""
    from matplotlib.figure import Figure

    for model in dict.fromkeys(model for model, _ in runs.values()):
        group = {name: rows for name, (kind, rows) in runs.items() if kind == model}
        for term in dict.fromkeys(term for rows in group.values() for term in _terms(rows)):
            figure = Figure(figsize=(5, 3.6), layout="constrained")
            _over_all(figure.subplots(), group if len(group) > 1 else {"": next(iter(group.values()))}, term)
            yield f"{model}: {term}", figure
            for name, rows in group.items():
                if any(key.startswith(f"val/{term}/t") for key in _names(rows)):
                    figure = Figure(figsize=(5, 3.6), layout="constrained")
                    _by_level(figure.subplots(), rows, term)
                    yield f"{name if len(runs) > 1 else model}: {term} by level", figure


def _names(rows: Rows) -> list[str]:
    return list(rows[0]) if rows else []


def _terms(rows: Rows) -> list[str]:
    return [term for term in UNITS if f"val/{term}" in _names(rows)]


def curve(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a column, where it has any."""
    points = [(int(r["step"]), float(r[name])) for r in rows if r.get(name)]
    return [p[0] for p in points], [p[1] for p in points]


def _over_all(axis: "Axes", runs: Mapping[str, Rows], term: str) -> None:
    """Training (thin) and validation of every run."""
    for i, (name, rows) in enumerate(runs.items()):
        colours = ("C0", "C1") if len(runs) == 1 else (f"C{i}", f"C{i}")
        axis.plot(
            *curve(rows, f"train/{term}"), color=colours[0], linewidth=0.8, alpha=0.7, label=f"{name} train".strip()
        )
        axis.plot(*curve(rows, f"val/{term}"), color=colours[1], marker=".", label=f"{name} val".strip())
    axis.set(xlabel="step", ylabel=UNITS[term], yscale="linear" if term == "kl_bits" else "log", title=term)
    axis.legend(fontsize=7)


def _by_level(axis: "Axes", rows: Rows, term: str) -> None:
    import matplotlib

    levels = [name for name in _names(rows) if name.startswith(f"val/{term}/t")]
    colours = matplotlib.colormaps["viridis"]
    for i, name in enumerate(levels):
        axis.plot(*curve(rows, name), marker=".", color=colours(i / max(1, len(levels) - 1)), label=name.split("/")[-1])
    axis.set(xlabel="step", ylabel=UNITS[term], title=f"{term} by level (validation)")
    axis.set_yscale("linear" if term == "kl_bits" else "log")
    if 0 < len(levels) <= 16:
        axis.legend(fontsize=7, ncols=2)
