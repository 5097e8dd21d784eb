"""How long training has taken, over interruptions and resumes."""

import csv
import time
from pathlib import Path

import pytorch_lightning as L

from vcd.errors import UserError


class Timing(L.Callback):
    """times.csv: a row of `step` and `seconds` whenever metrics are logged; validation and pictures are included.

    The seconds travel in the checkpoint, so that a resumed run counts on from where it resumed.
    """

    def __init__(self, *, path: Path):
        self.path, self.seconds = path, 0.0
        self._since: float | None = None  # when this start began
        self._last = 0  # the step of the last row

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._now()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seconds = state["seconds"]

    def _now(self) -> float:
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def on_train_start(self, trainer, pl_module) -> None:
        self._since, self._last = time.monotonic(), trainer.global_step
        if not trainer.is_global_zero:
            return
        rows = []
        if trainer.global_step and self.path.exists():
            rows = [row for row in read(self.path) if row[0] <= trainer.global_step]
        self._write("w", [("step", "seconds"), *rows])

    def on_train_batch_end(self, trainer, *_) -> None:
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0 or step == trainer.max_steps
        if trainer.is_global_zero and due and step > self._last:  # a step may be several batches
            self._last = step
            self._write("a", [(step, f"{self._now():.3f}")])

    def _write(self, mode: str, rows: list[tuple]) -> None:
        try:
            with open(self.path, mode, newline="") as file:
                csv.writer(file).writerows(rows)
        except OSError as error:
            raise UserError(
                f"could not write {self.path} ({error.strerror}): free some space and run the same command again"
            ) from error


def read(path: Path) -> list[tuple[int, float]]:
    """The rows of a times.csv."""
    with open(path, newline="") as file:
        return [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(file)]
