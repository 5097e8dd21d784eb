"""What was measured of every run, in one table; refused where the protocols differ."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcd import files
from vcd.callbacks import timing
from vcd.errors import UserError

RENAMED = {"levels_an_image": "levels_per_image"}  # in protocols of version 0.1
FACTS = {"parameters": "parameters", "images_seen": "images seen", "training_seconds": "training s",
         "images_per_second": "samples/s", "evaluations_per_sample": "evaluations"}  # fmt: skip


@dataclass
class Run:
    """An evaluated run folder."""

    folder: Path
    metrics: dict[str, dict[str, Any]]  # a Number by its name
    subject: dict[str, Any]

    @property
    def times(self) -> list[tuple[int, float]]:
        """(step, seconds) of training; empty where it was not noted."""
        return timing.read(self.folder / "times.csv") if (self.folder / "times.csv").exists() else []


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


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def read(folder: Path, leave_out: Sequence[str] = ()) -> Run:
    """The run in `folder`, without the metrics whose names begin like one of `leave_out`. UserError when it was not evaluated."""
    if not (folder / "metrics.json").is_file():
        raise UserError(
            f"{folder} has no metrics.json: python -m vcd.evaluate ckpt={folder / 'last.ckpt'} first, or give evaluate=[...]"
        )
    found = files.read_metrics(folder / "metrics.json")
    subject = found["subject"]
    if "model" not in subject:
        raise UserError(f"{folder}/metrics.json is of a folder of images, not of a run: there is no model to compare")
    metrics = {name: number for name, number in found["metrics"].items() if not name.startswith(tuple(leave_out))}
    for number in metrics.values():
        number["protocol"] = {RENAMED.get(key, key): value for key, value in number["protocol"].items()}
    run = Run(folder, metrics, subject)
    if run.times:
        subject["training_seconds"] = run.times[-1][1]
    return run


def group(runs: list[Run], called: Mapping[Path, str] | None = None) -> list[Variant]:
    """Runs whose configurations differ in the seed only are one variant, named by its model; where that is not enough, by
    what its first folder is called in `called`, or by that folder."""
    keys: dict[str, list[Run]] = {}
    for run in {run.folder.resolve(): run for run in runs}.values():  # a run named twice is no second seed
        keys.setdefault(_configuration(run.folder), []).append(run)
    models = [group[0].subject["model"] for group in keys.values()]
    called = called or {}
    folders = [group[0].folder for group in keys.values()]
    stems = [folder.resolve().name.rpartition("-seed") for folder in folders]
    told_apart = [called.get(folder) or stem or name for folder, (stem, _, name) in zip(folders, stems, strict=True)]
    names = [m if models.count(m) == 1 else name for m, name in zip(models, told_apart, strict=True)]
    return [Variant(name, group) for name, group in zip(names, keys.values(), strict=True)]


def _configuration(folder: Path) -> str:
    """What runs that differ in the seed only have in common; the folder itself where it does not say."""
    status = folder / "status.json"
    return (
        json.loads(status.read_text())["identity"].rpartition("-seed")[0] if status.exists() else str(folder.resolve())
    )


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
                writer.writerow(
                    (row, column, statistics.fmean(values), std, len(values), _or_nothing(table.floors.get(column)))
                )
    return buffer.getvalue()


def _or_nothing(value: float | None) -> float | str:
    return "" if value is None or math.isnan(value) else value


def latex(table: Table) -> str:
    """The table for a paper, with booktabs."""
    rows = [
        [cell.replace("_", r"\_").replace("±", r"$\pm$") for cell in row] for row in zip(*table.cells(), strict=True)
    ]
    lines = [" & ".join(row) + r" \\" for row in rows]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return f"\\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}\n{body}\n\\end{{tabular}}\n"
