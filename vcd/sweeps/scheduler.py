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
    found: dict[str, str] = {}
    asked = [part for array in dict.fromkeys(job.partition("_")[0] for job in jobs) for part in ("-j", array)]
    for line in _ask("sacct", "--parsable2", "-o", "JobID,State,NodeList", *asked).splitlines()[1:]:
        listed, state, *_ = line.split("|")
        if state:
            found |= dict.fromkeys(tasks(listed), state.split()[0])  # "CANCELLED by 1000"
    return {job: found[job] for job in jobs if job in found}


def tasks(listed: str) -> list[str]:
    """The jobs a line is about: those of an array that never began share one, 12_[0-2,7%4]."""
    array, bracket, inside = listed.rstrip("]").partition("_[")
    if not bracket:
        return [listed]
    ranges = [part.partition("-") for part in inside.partition("%")[0].split(",")]
    return [f"{array}_{i}" for first, _, last in ranges for i in range(int(first), int(last or first) + 1)]


def cancel(jobs: list[str]) -> None:
    """scancel."""
    if jobs:
        _ask("scancel", *jobs)


def _ask(*line: str) -> str:
    process = subprocess.run(line, capture_output=True, text=True)
    if process.returncode:
        raise UserError(f"{line[0]} does not answer: {' '.join(process.stderr.split()) or 'no reason given'}")
    return process.stdout
