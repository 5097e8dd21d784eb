"""A real SLURM of two nodes, both on this machine, for the tests, by scripts/slurm.sh."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from vcd.cli import CONF
from vcd.sweeps.rows import Row, read

SCRIPT = CONF.parent / "scripts" / "slurm.sh"


class Cluster:
    """Its state is in `folder`. As an environment: what a command needs to find it."""

    def __init__(self, folder: Path, port: int):
        self.folder = folder
        self.own = {"SLURM_DEV": str(folder), "SLURM_DEV_PORT": str(port), "SLURM_DEV_NODES": "2",
                    "SLURM_CONF": str(folder / "slurm.conf")}  # fmt: skip
        self.environment = {**self.own, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

    def __call__(self, verb: str, *arguments: str) -> subprocess.CompletedProcess:
        """bash scripts/slurm.sh VERB ARGUMENTS."""
        line = ["bash", str(SCRIPT), verb, *arguments]
        with open(self.folder.with_suffix(".log"), "a+") as said:  # daemons keep what they are given: no pipe
            process = subprocess.run(line, env={**os.environ, **self.own}, stdout=said, stderr=said, timeout=600)
        text = self.folder.with_suffix(".log").read_text()
        return subprocess.CompletedProcess(line, process.returncode, text, text)

    def rows(self, sweep: Path) -> dict[int | str, Row]:
        """The runs of a sweep, by their seeds, or by their folders where several have one seed."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            found = read(sweep)
        finally:
            os.environ.clear()
            os.environ.update(before)
        rows = {int(row.folder.name.rpartition("seed")[2]): row for row in found}
        return rows if len(rows) == len(found) else {row.folder.name: row for row in found}

    def until(self, sweep: Path, what: Callable[[dict], bool], seconds: float = 240) -> dict:
        """Wait until `what` is true of the rows."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rows = self.rows(sweep)
            if what(rows):
                return rows
            time.sleep(0.3)
        raise AssertionError({seed: (row.state, row.status, row.error) for seed, row in rows.items()})

    def signal(self, job: str, signum: signal.Signals) -> None:
        self("run", "scancel", f"--signal={signum.name.removeprefix('SIG')}", job)
