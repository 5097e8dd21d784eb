"""From a sweep's list of overrides to runs: as processes of this machine, or as jobs of SLURM."""

import copy
import json
import logging
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from vcd import sweeps
from vcd.errors import UserError
from vcd.runs import RunFolder, write_atomically

log = logging.getLogger("vcd")
SETTINGS = ".launcher.json"  # in the sweep's folder: what it was last submitted with
SHARED = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout")


@dataclass
class Job:
    """command: arguments of vcd.train; todo: neither finished nor under way."""

    folder: Path
    command: list[str]
    cwd: str
    todo: bool = True


def prepare(loader: ConfigLoader, config: DictConfig, overrides: Sequence[Sequence[str]]) -> list[Job]:
    """A job for every list of overrides; its run folder is made, and says that it is queued."""
    own = [s.path for s in config.hydra.runtime.config_sources if s.provider == "command-line"]
    options = [part for path in own for part in ("--config-dir", path)]
    jobs: list[Job] = []
    before = HydraConfig.instance().cfg
    known = {row.folder.resolve(): row.state for row in _rows(Path(config.hydra.sweep.dir))}
    for listed in tqdm(overrides, desc="preparing", unit="run", disable=len(overrides) < 20):  # a quarter of a second each
        whole = loader.load_sweep_config(config, list(listed))
        HydraConfig.instance().set_config(whole)
        cfg = copy.deepcopy(whole)
        with open_dict(cfg):
            del cfg["hydra"]
        run = RunFolder(cfg)
        job = Job(run.path, [*options, *listed, "hydra.mode=RUN"], os.getcwd())
        twice = any(run.path == other.folder for other in jobs)
        job.todo = not twice and known.get(run.path) not in ("finished", *sweeps.UNDER_WAY) and not run.open().finished
        if job.todo:
            run.set_status("queued", host=None, pid=None, job=None, command=job.command, cwd=job.cwd)
        jobs.append(job)
    HydraConfig.instance().cfg = before
    if idle := [job for job in jobs if not job.todo]:
        log.warning("%d of %d runs are finished or under way: they are left alone", len(idle), len(jobs))
    return jobs


def _rows(sweep: Path) -> list[sweeps.Row]:
    return sweeps.read(sweep) if any(sweep.glob("*/status.json")) else []


def mark(job: Job, state: str, /, **facts: Any) -> None:
    """Change the status of a run from outside."""
    path = job.folder / "status.json"
    write_atomically(path, json.dumps(json.loads(path.read_text()) | {"state": state, **facts}, indent=2) + "\n")


def run_processes(jobs: list[Job], *, processes: int, strict: bool) -> None:
    """Every job in a process of its own, `processes` at a time; what they print is in terminal.txt of their folders.

    Threads and GPUs are shared out. strict: UserError at the end where some did not finish.
    """
    todo, gpus = [job for job in jobs if job.todo], _gpus()
    threads = str(max(1, len(os.sched_getaffinity(0)) // processes))
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(processes):
        slots.put(slot)

    def one(job: Job) -> None:
        slot = slots.get()
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        line = [sys.executable, "-m", "vcd.train", *job.command, "trainer.enable_progress_bar=false"]
        with open(job.folder / "terminal.txt", "a") as file:
            code = subprocess.run(line, cwd=job.cwd, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
        if code < 0:
            mark(job, "failed", error=f"killed by {signal.Signals(-code).name}")
        elif code and json.loads((job.folder / "status.json").read_text())["state"] == "queued":
            mark(job, "failed", error=f"it did not start: see {job.folder / 'terminal.txt'}")
        bar.update()
        slots.put(slot)

    with tqdm(total=len(todo), desc="runs", unit="run") as bar, ThreadPoolExecutor(processes) as pool:
        try:
            list(pool.map(one, todo))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    rows = [row for row in sweeps.read(jobs[0].folder.parent) if row.folder.resolve() in {job.folder for job in jobs}]
    print(sweeps.table(rows))
    if strict and (bad := [row for row in rows if row.state != "finished"]):
        raise UserError(f"{len(bad)} of {len(rows)} runs did not finish: the same command goes on with them")


def _gpus() -> list[str]:
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [part for part in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if part]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True).stdout
    except OSError:
        return []
    return [str(i) for i, _ in enumerate(listed.splitlines())]


def submit(jobs: list[Job], *, settings: dict[str, Any], sweep: str) -> None:
    """One job array of all that is to do. settings: those of conf/launcher/slurm.yaml; kept for `vcd.sweep resume`."""
    import submitit

    from vcd.job import Training

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
            mark(job, "failed", error="it could not be submitted")
        reason = " ".join(str(error).split())
        raise UserError(f"launcher=slurm could not submit the runs: {reason}") from error
    for job, started in zip(todo, submitted, strict=True):
        write_atomically(job.folder / "job", f"{started.job_id}\n")
    write_atomically(Path(sweep) / SETTINGS, json.dumps(settings, indent=2) + "\n")
    print(f"{len(todo)} runs submitted as job {submitted[0].job_id.split('_')[0]}; how they do: python -m vcd.sweep status {sweep}")


def resubmit(sweep: Path, rows: list[sweeps.Row]) -> int:
    """Submit again, as before, what has ended and is not finished; how many."""
    settings = sweep / SETTINGS
    if not settings.exists():
        raise UserError(f"{sweep} was not submitted to SLURM: the same command of vcd.train goes on with what is not finished")
    jobs = [Job(row.folder.resolve(), row.status["command"], row.status["cwd"]) for row in rows
            if row.state in sweeps.DEAD and row.status.get("command")]  # fmt: skip
    for job in jobs:
        mark(job, "queued", job=None, host=None, pid=None, error="")
    if jobs:
        submit(jobs, settings=json.loads(settings.read_text()), sweep=str(sweep))
    return len(jobs)


def wait(jobs: list[Job]) -> None:
    """Until none of them is under way."""
    sweeps.wait(jobs[0].folder.parent, {job.folder for job in jobs})


def outcomes(jobs: list[Job]) -> list[JobReturn]:
    """What a sweeper asks of finished runs: the last validation loss, None of those that did not get there."""
    returns = []
    for job in jobs:
        value = json.loads((job.folder / "status.json").read_text()).get("val_loss")
        returns.append(JobReturn(overrides=job.command, status=JobStatus.COMPLETED, _return_value=value))
    return returns
