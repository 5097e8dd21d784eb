"""A folder of runs: how each of them is doing, by its status.json and by what SLURM says of its job."""

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcd.errors import UserError
from vcd.runs import SILENCE, read_status, silence
from vcd.sweeps import scheduler

UNDER_WAY = ("queued", "running", "preempted")
DEAD = ("failed", "killed", "cancelled")  # what `resume` starts again
UNKNOWN = "unknown"  # its status.json is damaged


@dataclass
class Row:
    """One run. state: queued, running, preempted (and queued again), finished, failed, killed, cancelled or unknown."""

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
        each = self.status.get("seconds_per_step")
        return None if self.state != "running" or each is None else (self.status["steps"] - self.status["step"]) * each


def read(sweep: Path) -> list[Row]:
    """Every run folder in `sweep`, by name. UserError where there are none."""
    if not sweep.is_dir():
        raise UserError(f"{sweep}: there is no such folder")
    rows = any_of(sweep)
    if not rows:
        raise UserError(f"{sweep} holds no run folders")
    return rows


def any_of(sweep: Path) -> list[Row]:
    """Every run folder in `sweep`, by name; none where there is no sweep."""
    statuses = {path.parent: _status(path.parent) for path in sorted(sweep.glob("*/status.json"))}
    for folder, status in statuses.items():
        if status["state"] == "queued" and (folder / "job").exists():  # submitted, and not yet started
            status["job"] = (folder / "job").read_text().strip()
    jobs = [s["job"] for s in statuses.values() if s["state"] in UNDER_WAY and s.get("job")]
    queue = scheduler.queue() if jobs else {}
    gone = scheduler.ended([job for job in jobs if job not in queue])
    return [_row(folder, status, queue, gone) for folder, status in statuses.items()]


def _status(folder: Path) -> dict[str, Any]:
    try:
        return read_status(folder)
    except UserError as error:  # one damaged file hides no other run
        return {"state": UNKNOWN, "error": str(error)}


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
    elif state == "running" and status.get("host") != socket.gethostname() and (silent := silence(folder)) > SILENCE:
        state, error = "killed", f"nothing heard from {status.get('host')} for {silent / 60:.0f} minutes"
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
    return 1 if states & {*DEAD, UNKNOWN} else 3 if states & set(UNDER_WAY) else 0


def cancel(rows: list[Row]) -> list[Row]:
    """End what is under way; those that were. Runs that are running save themselves first, if their grace allows it."""
    ending = [row for row in rows if row.state in UNDER_WAY]
    scheduler.cancel([row.job for row in ending if row.job])
    for row in ending:
        if not row.job and row.state == "running" and row.status.get("host") == socket.gethostname():
            with contextlib.suppress(ProcessLookupError):
                os.kill(row.status["pid"], signal.SIGTERM)
    return ending


def wait(sweep: Path, folders: set[Path] | None = None, every: float = 10.0) -> list[Row]:
    """Until nothing of it (or of `folders`) is under way."""
    while True:
        rows = [row for row in read(sweep) if folders is None or row.folder.resolve() in folders]
        if not any(row.state in UNDER_WAY for row in rows):
            return rows
        time.sleep(every)
