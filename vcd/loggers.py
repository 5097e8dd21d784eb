"""metrics.csv: one file a run, which grows over interruptions and resumes."""

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from vcd.files import atomic, explained, read_steps


class CSVMetrics(Logger):
    """One row a step: `step` and every metric that was logged there. Rows after the resumed step are dropped.

    (Lightning's own CSVLogger deletes what it finds in its folder, and so forgets what came before a resume.)
    """

    def __init__(self, *, path: Path):
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, float]] = {}
        self._columns: dict[str, None] = {"step": None}
        self._written = 0  # rows of the file that are up to date
        self._stale = True  # the file has to be written whole

    def resume(self, step: int, report: dict[str, float]) -> None:
        """Take over the rows of the first `step` steps, and what a checkpoint has to report, which may be missing there."""
        if self.path.exists():
            for row in read_steps(self.path):
                if (at := int(row["step"])) < step:
                    self._add(at, {k: float(v) for k, v in row.items() if v and k != "step"})
        if report:
            self._add(step - 1, report)

    def _add(self, step: int, metrics: dict[str, float]) -> None:
        new = metrics.keys() - self._columns.keys()
        self._stale |= bool(new) or step in list(self._rows)[: self._written]
        self._columns.update(dict.fromkeys(sorted(new)))
        self._rows.setdefault(step, {}).update(metrics)

    def before(self, step: int) -> dict[int, dict[str, float]]:
        """What was logged in the first `step` steps."""
        return {at: dict(row) for at, row in self._rows.items() if at < step}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config stands in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._add(int(step or 0), {k: float(v) for k, v in metrics.items() if k != "epoch"})

    @rank_zero_only
    def save(self) -> None:
        """Append the new rows; rewrite the file, atomically, when there are new columns or changed rows."""
        rows = [{"step": step, **self._rows[step]} for step in sorted(self._rows)]
        with explained(self.path):
            self._write(rows)
        self._stale, self._written = False, len(rows)

    def _write(self, rows: list[dict]) -> None:
        if self._stale or not self.path.exists():
            with atomic(self.path) as temporary, open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, list(self._columns))
                writer.writeheader()
                writer.writerows(rows)
        elif len(rows) > self._written:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, list(self._columns)).writerows(rows[self._written :])

    def finalize(self, status: str) -> None:
        """Whatever was logged is written already."""
