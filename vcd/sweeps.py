"""A folder of runs: how each of them is doing, by its status.json and by what SLURM says of its job."""

import contextlib
import csv
import io
import json
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcd import scheduler
from vcd.errors import UserError

UNDER_WAY = ("queued", "running", "preempted")
DEAD = ("failed", "killed", "cancelled")  # what `resume` starts again


@dataclass
class Row:
    """One run. state: queued, running, preempted (and queued again), finished, failed, killed or cancelled."""

    folder: Path
    state: str
    status: dict[str, Any]
    error: str

    @property
    def job(self) -> str | None:
        return self.status.get("job")

    @property
    def seconds_left(self) -> float | None:
        """Of training, while it runs."""
        step, steps, each = (self.status.get(key) for key in ("step", "steps", "seconds_per_step"))
        return None if self.state != "running" or each is None else (steps - step) * each


def read(sweep: Path) -> list[Row]:
    """Every run folder in `sweep`, by name. UserError where there are none."""
    if not sweep.is_dir():
        raise UserError(f"{sweep}: there is no such folder")
    statuses = {path.parent: json.loads(path.read_text()) for path in sorted(sweep.glob("*/status.json"))}
    if not statuses:
        raise UserError(f"{sweep} holds no run folders")
    for folder, status in statuses.items():
        if status.get("job") is None and (folder / "job").exists():  # submitted, and not yet started
            status["job"] = (folder / "job").read_text().strip()
    jobs = [s["job"] for s in statuses.values() if s["state"] in UNDER_WAY and s.get("job")]
    queue = scheduler.queue() if jobs else {}
    gone = scheduler.ended([job for job in jobs if job not in queue])
    return [_row(folder, status, queue, gone) for folder, status in statuses.items()]


def _row(folder: Path, status: dict[str, Any], queue: dict[str, str], gone: dict[str, str]) -> Row:
    state, job, error = status["state"], status.get("job"), status.get("error", "")
    if state in UNDER_WAY and job:
        if queue.get(job) == "PENDING":
            state = "preempted" if state in ("running", "preempted") else "queued"
        elif job not in queue:
            how = gone.get(job, "no longer in the queue")
            saved = state == "preempted"
            state = "cancelled" if saved or how == "CANCELLED" else "killed"
            error = f"job {job}: {how}" + (" (saved)" if saved else "")
    elif state == "running" and status.get("host") == socket.gethostname() and not _alive(status["pid"]):
        state, error = "killed", f"process {status['pid']} is gone"
    elif state == "preempted":
        state, error = "cancelled", "told to stop; saved"
    return Row(folder, state, status, error)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def code(rows: list[Row]) -> int:
    """0: all finished; 1: some need you; 3: the rest is under way."""
    states = {row.state for row in rows}
    return 1 if states & set(DEAD) else 3 if states & set(UNDER_WAY) else 0


def names(rows: list[Row]) -> list[str]:
    """The overrides in which the runs differ, or the folder."""
    commands = [[o for o in row.status.get("command", []) if not o.startswith("hydra.")] for row in rows]
    common = set.intersection(*(set(c) for c in commands if c)) if any(commands) else set()
    return [" ".join(o for o in c if o not in common) or row.folder.name for c, row in zip(commands, rows, strict=True)]


def table(rows: list[Row]) -> str:
    """For the terminal: a line a run, and how many there are of each state."""
    cells = [("run", "state", "progress", "ETA", "loss", "host", "job", "folder", "error")]
    for name, row in zip(names(rows), rows, strict=True):
        step, steps, loss = (row.status.get(key) for key in ("step", "steps", "loss"))
        progress = f"{step}/{steps} {100 * step // max(1, steps)}%" if steps else ""
        left = "" if row.seconds_left is None else duration(row.seconds_left)
        cells.append((name, row.state, progress, left, "" if loss is None else f"{loss:.4g}", row.status.get("host") or "",
                      row.job or "", row.folder.name, row.error))  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(("finished", *states)))
    longest = max((row.seconds_left or 0 for row in rows), default=0)
    return "\n".join([*lines, f"{len(rows)} runs: {counts}" + (f"; those running need {duration(longest)}" if longest else "")])


def duration(seconds: float) -> str:
    """3d4h, 2h05m, 3m20s."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d{h}h" if days else f"{h}h{m:02}m" if h else f"{m}m{s:02}s"


def cancel(rows: list[Row]) -> list[Row]:
    """End what is under way; those that were. Runs that are running save themselves first, if their grace allows it."""
    ending = [row for row in rows if row.state in UNDER_WAY]
    scheduler.cancel([row.job for row in ending if row.job])
    for row in ending:
        if not row.job and row.state == "running" and row.status.get("host") == socket.gethostname():
            with contextlib.suppress(ProcessLookupError):
                os.kill(row.status["pid"], signal.SIGTERM)
    return ending


def collect(rows: list[Row]) -> str:
    """runs.csv: a line a run, with its variant (all but the seed), its state, losses and what vcd.evaluate measured."""
    measured = [_metrics(row.folder) for row in rows]
    numbers = list(dict.fromkeys(name for metrics in measured for name in metrics))
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("folder", "variant", "seed", "overrides", "state", "step", "steps", "loss", "val_loss", *numbers, "error"))
    for name, row, metrics in zip(names(rows), rows, measured, strict=True):
        variant, _, seed = row.status["identity"].rpartition("-seed")
        facts = (row.status.get(key) for key in ("step", "steps", "loss", "val_loss"))
        writer.writerow((row.folder.name, variant, seed, name, row.state, *facts, *(metrics.get(n, "") for n in numbers), row.error))
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


def _metrics(folder: Path) -> dict[str, float | None]:
    path = folder / "metrics.json"
    return {name: number["value"] for name, number in json.loads(path.read_text())["metrics"].items()} if path.exists() else {}


def wait(sweep: Path, folders: set[Path] | None = None, every: float = 10.0) -> list[Row]:
    """Until nothing of it (or of `folders`) is under way."""
    while True:
        rows = [row for row in read(sweep) if folders is None or row.folder.resolve() in folders]
        if not any(row.state in UNDER_WAY for row in rows):
            return rows
        time.sleep(every)
