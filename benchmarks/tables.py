"""python benchmarks/tables.py: the tables of a day on a GPU, from gpu.py's files into RESULTS.md and benchmarks/RESULTS.md.

Between `<!-- gpu: NAME NAME ... -->` and `<!-- /gpu -->` stand the tables of results/gpu/NAME.json, and nothing by hand.
What was not measured is named; a rehearsal's numbers are refused.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu import WHAT
from measure import markdown

HERE = Path(__file__).resolve().parent
FILES = [HERE.parent / "RESULTS.md", HERE / "RESULTS.md"]
PLACE = re.compile(r"(<!-- gpu: ([\w ]+) -->\n).*?(<!-- /gpu -->)", re.DOTALL)
NONE = "*Not measured: no GPU was to be had.*\n"
Rows = list[dict[str, Any]]


def by_mode(rows: Rows) -> Rows:
    """A row for every size, model and batch: images/s in every mode, and what the best one reaches."""
    found: dict[tuple, dict[str, Any]] = {}
    for row in (row for row in rows if "mode" in row):
        key = (row["what"], row["size"], row["model"], row["batch"])
        cell = found.setdefault(
            key, {"what": row["what"], "size": row["size"], "model": row["model"], "batch": row["batch"] or "published"}
        )
        cell[f"{row['mode']}: images/s"] = row.get("images/s", row.get("error"))
        if "images/s" in row and row["images/s"] >= cell.get("_best", 0):
            cell |= {"_best": row["images/s"]} | {
                name: row.get(name) for name in ("share of the ceiling", "peak MiB", "counted MiB")
            }
    return [{name: value for name, value in cell.items() if not name.startswith("_")} for cell in found.values()]


def tests(rows: Rows) -> Rows:
    return [
        {**row, "which": "; ".join(f"{name} ({why})" for name, why in row.get("which", {}).items())} for row in rows
    ]


SHAPE: dict[str, Callable[[Rows], Rows]] = {"train": by_mode, "sample": by_mode, "compiled": by_mode, "tests": tests}


def section(name: str, results: Path, folder: str) -> str:
    """The table of one result, with its machine and its pictures. ValueError where it is a rehearsal's, or not of a GPU."""
    path = results / f"{name}.json"
    found = json.loads(path.read_text())
    machine = found["machine"]
    if "gpu" not in machine or "rehearsal" in machine:
        raise ValueError(f"{path} is not of a GPU: it is a rehearsal's, whose numbers mean nothing")
    facts = f"{machine['gpu']}, torch {machine['torch']}, Python {machine['python']}, {machine['date']}"
    part = "" if found.get("finished", True) else " Not all of it was measured."
    table = markdown(SHAPE.get(name, list)(found["rows"]))
    pictures = "".join(f"\n![{p.stem}]({folder}/{p.name})\n" for p in sorted(results.glob(f"{name}*.png")))
    return f"### {WHAT[name]}\n\n{facts}; `python benchmarks/gpu.py --only {name}`.{part}\n\n{table}{pictures}\n"


def fill(text: str, results: Path, folder: str) -> str:
    """The text with every marked place filled; folder: of the pictures, as seen from the file."""

    def place(match: re.Match) -> str:
        names = match[2].split()
        there = [name for name in names if (results / f"{name}.json").exists()]
        missing = f"*Not measured: {', '.join(name for name in names if name not in there)}.*\n"
        tables = "".join(section(name, results, folder) for name in there)
        return match[1] + (tables + missing * (len(there) < len(names)) if there else NONE) + match[3]

    return PLACE.sub(place, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=HERE / "results" / "gpu")
    parser.add_argument("files", nargs="*", type=Path, default=FILES)
    options = parser.parse_args()
    try:
        texts = {
            p: fill(p.read_text(), options.results, Path(os.path.relpath(options.results, p.parent)).as_posix())
            for p in options.files
        }
    except ValueError as error:
        sys.exit(f"error: {error}")
    for path, text in texts.items():
        changed = text != path.read_text()
        path.write_text(text)
        print(f"{path}: {'written' if changed else 'as it was'}")


if __name__ == "__main__":
    main()
