"""What bench_samplers.py has measured, as a table and as pictures."""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

from vcd import style
from vcd.files import write_text

EVALUATIONS = (6, 10, 20, 50)
SAMPLERS = {  # name -> option, and how many evaluations a step takes; the last step of two takes one
    "DDIM": ("ddim", 1),
    "ancestral": ("ancestral", 1),
    "Euler": ("euler", 1),
    "Heun": ("heun", 2),
    "DPM-Solver++": ("dpm", 1),
    "reverse SDE": ("reverse_sde", 1),
    "predictor-corrector": ("pc", 2),
    "Langevin": ("langevin", 5),
}
OWN = "its own"  # of models whose steps are what they were trained for
FEW = "DPM-Solver++"  # of every model with noise; all the others of the models in --all


class Rows:
    """What was measured, in a file that is written after every row."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def once(self, make: Any, **facts: Any) -> dict[str, Any]:
        """The row of these facts: measured now, or before."""
        key = json.dumps(facts, sort_keys=True)
        if key not in self.known:
            began = time.monotonic()
            self.known[key] = {**facts, **make()}
            self.known[key].setdefault("seconds", round(time.monotonic() - began, 2))
            write_text(self.path, json.dumps(self.known, indent=1) + "\n")
            print(self.known[key], flush=True)
        return self.known[key]

    def of(self, **facts: Any) -> list[dict[str, Any]]:
        return [row for row in self.known.values() if all(row.get(name) == value for name, value in facts.items())]


def table(options: argparse.Namespace, rows: Rows) -> str:
    """Markdown: a line for every model and sampler."""
    head = [f"{b} evaluations" for b in EVALUATIONS]
    lines = [
        "| model | bound | ODE | sampler | " + " | ".join(head) + " | seconds at the last |",
        "|" + " --- |" * (5 + len(head)),
    ]
    for name in options.models:
        facts = {"model": name, "steps": options.steps}
        number = {what: _bits(rows.of(what=what, **facts)) for what in ("bound", "ode")}
        found = rows.of(what="fcd", n=options.n, **facts)
        for i, sampler in enumerate(dict.fromkeys(row["sampler"] for row in found)):
            of = {row["budget"]: row for row in found if row["sampler"] == sampler and row.get("fcd") is not None}
            if not of:
                continue
            if sampler == OWN:
                row = of[None]
                cells = [f"{row['fcd']:.4g} (at {row['evaluations']:g})"] + ["–"] * (len(EVALUATIONS) - 1)
            else:
                cells = [f"{of[b]['fcd']:.4g}" if b in of else "–" for b in EVALUATIONS]
            first = [name, number["bound"], number["ode"]] if i == 0 else ["", "", ""]
            lines.append("| " + " | ".join([*first, sampler, *cells, f"{list(of.values())[-1]['seconds']:g}"]) + " |")
    return "\n".join(lines) + "\n"


def _bits(rows: list[dict[str, Any]]) -> str:
    return f"{rows[0]['bits']:.3f}" if rows and rows[0]["bits"] is not None else "–"


@style.styled()
def picture(options: argparse.Namespace, rows: Rows) -> None:
    """Distance against evaluations: a panel of all samplers for each model that has them, and one of all models."""
    import matplotlib.pyplot as plt

    of = {"what": "fcd", "steps": options.steps, "n": options.n}
    drawn = [name for name in options.all if len({r["sampler"] for r in rows.of(model=name, **of)}) > 1]
    own = [row for row in rows.of(sampler=OWN, **of) if row.get("fcd") is not None]
    lines = -(-len(drawn) // 2)
    figure = plt.figure(figsize=(style.PAGE, 2.3 * lines + 3.7))
    above, below = figure.subfigures(2, 1, height_ratios=[2.3 * lines + 0.7, 3.0])
    panels = list(above.subplots(max(1, lines), 2, squeeze=False, sharey=True).flat)
    for axis in panels[len(drawn) :]:
        axis.remove()
    for axis, name in zip(panels, drawn, strict=False):
        for i, sampler in enumerate(SAMPLERS):
            _line(axis, rows.of(model=name, sampler=sampler, **of), i, sampler)
        _framed(axis, own, f"{name}, every sampler")
    style.legend(above, panels[: len(drawn)])
    axis = below.subplots()
    for i, name in enumerate(options.models):
        _line(axis, rows.of(model=name, sampler=FEW, **of), i, name)
    _framed(axis, own, f"every model, {FEW}")
    style.legend(below, [axis])
    style.save(figure, options.out / "samplers.png", dpi=110)
    plt.close(figure)


def _framed(axis: Any, own: list[dict[str, Any]], what: str) -> None:
    """With the models that have steps of their own, and scales."""
    for marker, row in zip("*P", own, strict=False):
        axis.plot(
            row["evaluations"], row["fcd"], marker, color=style.TEXT, markersize=9, mfc="white", label=row["model"]
        )
    axis.set(xlabel="evaluations of the network", xscale="log")
    axis.set_xticks(EVALUATIONS, [str(b) for b in EVALUATIONS])
    axis.minorticks_off()
    style.logarithmic(axis)
    style.title(axis, "Fréchet distance to held-out images", what)


def _line(axis: Any, rows: list[dict[str, Any]], i: int, label: str) -> None:
    points = sorted((row["evaluations"], row["fcd"]) for row in rows if row.get("fcd") is not None)
    if points:
        colour, dashes = style.line(i)
        axis.plot(*zip(*points, strict=True), color=colour, ls=dashes, marker="o", label=label)


@style.styled()
def terms(options: argparse.Namespace) -> None:
    """VDM's three terms over training, each on its own scale."""
    import matplotlib.pyplot as plt

    path = options.out / f"VDM-{options.steps}" / "metrics.csv"
    if not path.exists():
        return
    with path.open() as file:
        lines = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    for i, (axis, what) in enumerate(zip(axes, ("diffusion", "prior", "reconstruction"), strict=True)):
        points = [(int(line["step"]), float(line[f"val/{what}_bpd"])) for line in lines if line.get(f"val/{what}_bpd")]
        if points:
            axis.plot(*zip(*points, strict=True), color=style.COLOURS[i], marker="o")
        axis.set(xlabel="steps")
        axis.ticklabel_format(axis="y", useOffset=False)
        style.title(axis, "bits per dimension, held out", what)
    style.save(figure, options.out / "vdm_terms.png", dpi=110)
    plt.close(figure)
