"""Runs as jobs of SLURM, through submitit: submitted as one array, and submitted again."""

import json
import logging
import os
import runpy
import sys
from pathlib import Path
from typing import Any, final

import submitit
from submitit.helpers import Checkpointable

from vcd.errors import UserError
from vcd.files import write_text
from vcd.sweeps.jobs import Job
from vcd.sweeps.rows import DEAD, Row

log = logging.getLogger("vcd")
SETTINGS = ".launcher.json"  # in the sweep's folder: what it was last submitted with
SHARED = (
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "mem_gb",
    "nodes",
    "name",
    "stderr_to_stdout",
)


@final
class Training(Checkpointable):
    """The command `python -m vcd.train ...` itself: started again, in another time slice, it goes on where it was."""

    def __call__(self, command: list[str], cwd: str) -> None:
        os.chdir(cwd)
        sys.argv = ["vcd.train", *command]
        try:
            runpy.run_module("vcd.train", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


def submit(jobs: list[Job], *, settings: dict[str, Any], sweep: str) -> None:
    """One job array of all that is to do. settings: those of conf/launcher/slurm.yaml; kept for `vcd.sweep resume`."""
    todo = [job for job in jobs if job.todo]
    if not todo:
        log.warning("there is nothing to submit")
        return
    own = {("" if key in SHARED else "slurm_") + key: value for key, value in settings.items()
           if value is not None and key not in ("submitit_folder", "max_num_timeout")}  # fmt: skip
    try:
        executor = submitit.AutoExecutor(
            settings["submitit_folder"], cluster="slurm", slurm_max_num_timeout=settings["max_num_timeout"],
            slurm_python=os.environ.get("VCD_PYTHON"),  # the command that starts Python on a node, in a container for instance
        )  # fmt: skip
        executor.update_parameters(**own)
        submitted = executor.map_array(Training(), [job.command for job in todo], [job.cwd for job in todo])
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        for job in todo:
            job.mark("failed", error="it could not be submitted")
        reason = " ".join(str(error).split())
        raise UserError(f"launcher=slurm could not submit the runs: {reason}") from error
    for job, started in zip(todo, submitted, strict=True):
        write_text(job.folder / "job", f"{started.job_id}\n")
    write_text(Path(sweep) / SETTINGS, json.dumps(settings, indent=2) + "\n")
    print(
        f"{len(todo)} runs submitted as job {submitted[0].job_id.split('_')[0]}; how they do: python -m vcd.sweep status {sweep}"
    )


def resubmit(sweep: Path, rows: list[Row]) -> int:
    """Submit again, as before, what has ended and is not finished; how many."""
    settings = sweep / SETTINGS
    if not settings.exists():
        raise UserError(
            f"{sweep} was not submitted to SLURM: the same command of vcd.train goes on with what is not finished"
        )
    jobs = [Job(row.folder.resolve(), row.status["command"], row.status["cwd"]) for row in rows
            if row.state in DEAD and row.status.get("command")]  # fmt: skip
    for job in jobs:
        (job.folder / "job").unlink(missing_ok=True)
        job.mark("queued", job=None, host=None, pid=None, error="")
    if jobs:
        submit(jobs, settings=json.loads(settings.read_text()), sweep=str(sweep))
    return len(jobs)
