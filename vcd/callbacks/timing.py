"""How long training has taken, over interruptions and resumes."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as L

from vcd import compat, files


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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since, self._last = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            rows = [row for row in read(self.path) if row[0] <= trainer.global_step] if self.path.exists() else []
            with files.explained(self.path):
                files.write_text(self.path, "".join(f"{a},{b}\n" for a, b in [("step", "seconds"), *rows]))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        step = trainer.global_step
        due = step % compat.logging_steps(trainer) == 0 or step == trainer.max_steps
        if trainer.is_global_zero and due and step > self._last:  # a step may be several batches
            self._last = step
            with files.explained(self.path), open(self.path, "a", newline="") as file:
                file.write(f"{step},{self._now():.3f}\n")


def read(path: Path) -> list[tuple[int, float]]:
    """The rows of a times.csv."""
    return [(int(row["step"]), float(row["seconds"])) for row in files.read_steps(path)]
