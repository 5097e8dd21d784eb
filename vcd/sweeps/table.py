"""Runs of a sweep side by side: for the terminal, and as runs.csv."""

import csv
import io
import json
from pathlib import Path

from vcd.errors import UserError
from vcd.sweeps.rows import Row


def names(rows: list[Row]) -> list[str]:
    """The overrides in which the runs differ, or the folder."""
    commands = [[o for o in row.status.get("command", []) if not o.startswith("hydra.")] for row in rows]
    common = set.intersection(*(set(c) for c in commands if c)) if any(commands) else set()
    return [" ".join(o for o in c if o not in common) or row.folder.name for c, row in zip(commands, rows, strict=True)]


def text(rows: list[Row]) -> str:
    """For the terminal: a line a run, and how many there are of each state."""
    cells = [("run", "state", "progress", "ETA", "loss", "host", "job", "folder", "error")]
    for name, row in zip(names(rows), rows, strict=True):
        step, steps, loss = row.status.get("step", 0), row.status.get("steps"), row.status.get("loss")
        progress = f"{step}/{steps} {100 * step // max(1, steps)}%" if steps else ""
        left = "" if row.seconds_left is None else duration(row.seconds_left)
        cells.append((name, row.state, progress, left, "" if loss is None else f"{loss:.4g}", row.status.get("host") or "",
                      row.job or "", row.folder.name, row.error))  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(("finished", *states)))
    longest = max((row.seconds_left or 0 for row in rows), default=0)
    return "\n".join(
        [*lines, f"{len(rows)} runs: {counts}" + (f"; those running need {duration(longest)}" if longest else "")]
    )


def duration(seconds: float) -> str:
    """3d4h, 2h05m, 3m20s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d{h}h" if days else f"{h}h{m:02}m" if h else f"{m}m{s:02}s"


def collect(rows: list[Row]) -> str:
    """runs.csv: a line a run, with its variant (all but the seed), its state, losses and what vcd.evaluate measured."""
    measured, damaged = zip(*(_metrics(row.folder) for row in rows), strict=True)
    numbers = list(dict.fromkeys(name for metrics in measured for name in metrics))
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(
        ("folder", "variant", "seed", "overrides", "state", "step", "steps", "loss", "val_loss", *numbers, "error")
    )
    for name, row, metrics, wrong in zip(names(rows), rows, measured, damaged, strict=True):
        variant, _, seed = row.status.get("identity", "").rpartition("-seed")
        facts = (row.status.get(key) for key in ("step", "steps", "loss", "val_loss"))
        writer.writerow(
            (
                row.folder.name,
                variant,
                seed,
                name,
                row.state,
                *facts,
                *(metrics.get(n, "") for n in numbers),
                row.error or wrong,
            )
        )
    return buffer.getvalue()


def finished(table: Path) -> list[Path]:
    """The folders of the finished runs in a runs.csv. UserError where there are none."""
    if not table.is_file():
        raise UserError(f"{table}: there is no such file; python -m vcd.sweep collect {table.parent} writes it")
    with open(table, newline="") as file:
        found = [table.parent / row["folder"] for row in csv.DictReader(file) if row["state"] == "finished"]
    if not found:
        raise UserError(f"{table} has no finished runs")
    return found


def _metrics(folder: Path) -> tuple[dict[str, float | None], str]:
    """What vcd.evaluate measured, and what is wrong with the file that says so."""
    path = folder / "metrics.json"
    try:
        return {name: number["value"] for name, number in json.loads(path.read_text())["metrics"].items()}, ""
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, f"{path} is damaged: vcd.evaluate writes it again"
