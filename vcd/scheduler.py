"""What SLURM knows of jobs, by its own commands; nothing where there is no SLURM."""

import shutil
import subprocess

from vcd.errors import UserError


def queue() -> dict[str, str]:
    """Jobs that wait or run, of this user: id (12, or 12_3 of an array) -> PENDING, RUNNING, COMPLETING, ..."""
    if shutil.which("squeue") is None:
        return {}
    lines = _ask("squeue", "--noheader", "--array", "--me", "--format=%i|%T").splitlines()
    return dict(line.split("|") for line in lines)


def ended(jobs: list[str]) -> dict[str, str]:
    """How jobs that left the queue ended: id -> COMPLETED, CANCELLED, OUT_OF_MEMORY, ...; empty where nothing keeps account."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    found = {}
    asked = [part for job in jobs for part in ("-j", job)]
    for line in _ask("sacct", "--parsable2", "-o", "JobID,State,NodeList", *asked).splitlines()[1:]:
        job, state, *_ = line.split("|")
        if state:
            found[job] = state.split()[0]  # "CANCELLED by 1000"
    return found


def cancel(jobs: list[str]) -> None:
    """scancel."""
    if jobs:
        _ask("scancel", *jobs)


def _ask(*line: str) -> str:
    process = subprocess.run(line, capture_output=True, text=True)
    if process.returncode:
        raise UserError(f"{line[0]} does not answer: {' '.join(process.stderr.split()) or 'no reason given'}")
    return process.stdout
