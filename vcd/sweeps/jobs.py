"""From a sweep's lists of overrides to run folders that say they are queued, and back from them to outcomes."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig
from tqdm import tqdm

from vcd import stages
from vcd.files import write_text
from vcd.runs import read_status
from vcd.sweeps import rows

log = logging.getLogger("vcd")


@dataclass
class Job:
    """command: arguments of vcd.train; todo: neither finished nor under way."""

    folder: Path
    command: list[str]
    cwd: str
    todo: bool = True

    def mark(self, state: str, /, **facts: Any) -> None:
        """Change the status of the run from outside."""
        status = read_status(self.folder) | {"state": state, **facts}
        write_text(self.folder / "status.json", json.dumps(status, indent=2) + "\n")


def prepare(
    loader: ConfigLoader, config: DictConfig, overrides: Sequence[Sequence[str]], *, trains: bool = True
) -> list[Job]:
    """A job for every list of overrides; its run folder is made, and says that it is queued.

    trains: whether a stage 1 that is missing is trained here and now.
    """
    own = [s.path for s in config.hydra.runtime.config_sources if s.provider == "command-line"]
    options = [part for path in own for part in ("--config-dir", path)]
    jobs: list[Job] = []
    seen = {row.folder.resolve(): row.state for row in rows.any_of(Path(config.hydra.sweep.dir))}
    for listed in tqdm(overrides, desc="preparing", unit="run", disable=len(overrides) < 20):
        composed = loader.load_sweep_config(config, list(listed))
        run = stages.ready(composed, trains=trains)
        todo = seen.get(run.path) not in ("finished", *rows.UNDER_WAY) and not run.claim().finished
        job = Job(run.path, [*options, *listed, "hydra.mode=RUN"], os.getcwd(), todo)
        if todo:
            (run.path / "job").unlink(missing_ok=True)
            run.set_status("queued", host=None, pid=None, job=None, command=job.command, cwd=job.cwd)
            seen[run.path] = "queued"
        jobs.append(job)
    if idle := [job for job in jobs if not job.todo]:
        log.warning("%d of %d runs are finished or under way: they are left alone", len(idle), len(jobs))
    return jobs


def outcomes(jobs: list[Job]) -> list[JobReturn]:
    """What a sweeper asks of finished runs: the last validation loss, None of those that did not get there."""
    returns = []
    for job in jobs:
        value = read_status(job.folder).get("val_loss")
        returns.append(JobReturn(overrides=job.command, status=JobStatus.COMPLETED, _return_value=value))
    return returns
