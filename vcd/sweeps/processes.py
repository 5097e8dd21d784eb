"""Runs as processes of this machine, several at a time."""

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from vcd import threads
from vcd.errors import UserError
from vcd.runs import read_status
from vcd.sweeps import rows, table
from vcd.sweeps.jobs import Job

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.2f} of {total:.0f} runs [{elapsed}<{remaining}]"


def train(commands: Mapping[Path, Sequence[str]], *, processes: int, sweep: Path) -> dict[Path, int]:
    """`vcd.train` with every command, `processes` at a time; exit codes. What they print is added to the files named.

    Threads and GPUs are shared out. The bar moves within runs, by what their folders in `sweep` say. SIGTERM is passed
    on: the runs save and stop. (Ctrl-C reaches them anyway.)
    """
    gpus = _gpus()
    under_way: set[subprocess.Popen] = set()
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(processes):
        slots.put(slot)

    def one(printed: Path, command: Sequence[str]) -> int:
        slot = slots.get()
        environment = threads.shared(processes)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        line = [sys.executable, "-m", "vcd.train", *command, "trainer.enable_progress_bar=false"]
        with open(printed, "a") as file:
            process = subprocess.Popen(line, env=environment, stdout=file, stderr=subprocess.STDOUT)
        under_way.add(process)
        code = process.wait()
        under_way.remove(process)
        slots.put(slot)
        return code

    def stop(signum: int, frame: object) -> None:
        for process in list(under_way):
            process.send_signal(signum)
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    with tqdm(total=len(commands), desc="training", bar_format=BAR) as bar, ThreadPoolExecutor(processes) as pool:
        futures = {printed: pool.submit(one, printed, command) for printed, command in commands.items()}
        try:
            while wait(futures.values(), timeout=2).not_done:
                bar.n = sum(future.done() for future in futures.values()) + _under_way(sweep)
                bar.refresh()
        except (KeyboardInterrupt, SystemExit) as stopped:
            pool.shutdown(cancel_futures=True)
            raise SystemExit(stopped.code if isinstance(stopped, SystemExit) else 128 + signal.SIGINT) from None
        finally:
            signal.signal(signal.SIGTERM, before)
        bar.n = len(futures)
    return {printed: future.result() for printed, future in futures.items()}


def _under_way(sweep: Path) -> float:
    """How much of the runs that are running is done, in runs."""
    running = [row.status for row in rows.any_of(sweep) if row.state == "running"]
    return sum((status["step"] / status["steps"] for status in running if status.get("steps")), 0.0)


def _gpus() -> list[str]:
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [part for part in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if part]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True).stdout
    except OSError:
        return []
    return [str(i) for i, _ in enumerate(listed.splitlines())]


def run(jobs: list[Job], *, processes: int, strict: bool) -> None:
    """Every job that is to do; what it prints is in terminal.txt of its folder. Prints the table at the end.

    strict: UserError where some did not finish.
    """
    todo = {job.folder / "terminal.txt": job for job in jobs if job.todo}
    sweep = jobs[0].folder.parent
    for printed, code in train(
        {printed: job.command for printed, job in todo.items()}, processes=processes, sweep=sweep
    ).items():
        job = todo[printed]
        if code < 0:
            job.mark("failed", error=f"killed by {signal.Signals(-code).name}")
        elif code and read_status(job.folder).get("state") == "queued":
            job.mark("failed", error=f"it did not start: see {printed}")
    mine = [row for row in rows.read(sweep) if row.folder.resolve() in {job.folder for job in jobs}]
    print(table.text(mine))
    if strict and (bad := [row for row in mine if row.state != "finished"]):
        raise UserError(f"{len(bad)} of {len(mine)} runs did not finish: the same command goes on with them")
