"""What a comparison needs: runs trained under an equal budget and evaluated alike, several at a time."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from vcd import threads
from vcd.callbacks import timing
from vcd.errors import UserError
from vcd.evaluate import place
from vcd.files import write_text
from vcd.sweeps import processes as side_by_side


def train(variants: dict[str, list[str]], common: list[str], runs: Path, processes: int) -> list[Path]:
    """Train every variant by `vcd.train`, several at a time; the folders, in order. UserError naming those that failed."""
    runs.mkdir(parents=True, exist_ok=True)
    logs = {runs / f"{name}.log": [*common, *overrides, f"runs={runs}"] for name, overrides in variants.items()}
    codes = side_by_side.train(logs, processes=processes, sweep=runs)
    last = {log: (log.read_text().strip().splitlines() or [""])[-1] for log in logs}
    if failed := [f"{log.stem} ({last[log]})" for log, code in codes.items() if code]:
        raise UserError(
            f"these runs failed: {'; '.join(failed)}; their logs are in {runs}; the same command goes on with the rest"
        )
    return [Path(last[log].split(maxsplit=1)[1]).parent for log in logs]


def steps_in(
    seconds: float, variants: dict[str, list[str]], common: list[str], probes: Path, processes: int
) -> dict[str, int]:
    """How many steps of every variant `seconds` of training hold: from a probe of 40 steps each, kept for a restart."""
    short = ["trainer.max_steps=40", "trainer.val_check_interval=40", "+trainer.limit_val_batches=0", "trainer.log_every_n_steps=10",
             "callbacks.pictures.n=1"]  # fmt: skip
    others = [o for o in common if not o.startswith("trainer.max_steps=")]
    folders = train(variants, [*others, *short], probes, processes)
    steps = {}
    for name, folder in zip(variants, folders, strict=True):
        (first, began), *_, (last, ended) = timing.read(folder / "times.csv")
        steps[name] = max(1, int(seconds * (last - first) / (ended - began)))
    return steps


def evaluate(folders: list[Path], overrides: list[str], processes: int) -> None:
    """Evaluate every checkpoint that has not been evaluated since it was written, with the same overrides."""

    if missing := [str(folder) for folder in folders if not (folder / "last.ckpt").is_file()]:
        raise UserError(f"{', '.join(missing)}: there is no last.ckpt to evaluate")

    def one(ckpt: Path) -> str | None:
        line = [sys.executable, "-m", "vcd.evaluate", f"ckpt={ckpt}", f"out={place(ckpt)}", *overrides]
        process = subprocess.run(line, capture_output=True, text=True, env=threads.shared(processes))
        bar.update()
        if process.returncode:
            return f"{ckpt} could not be evaluated: {process.stderr.strip().splitlines()[-1]}"
        write_text(_stamp(ckpt), _asked(ckpt, overrides))
        return None

    every = [ckpt for folder in folders for ckpt in (*sorted(folder.glob("step-*.ckpt")), folder / "last.ckpt")]
    todo = [
        c
        for c in every
        if not (place(c).exists() and _stamp(c).exists() and _stamp(c).read_text() == _asked(c, overrides))
    ]
    with tqdm(total=len(todo), desc="evaluating", unit="checkpoint") as bar, ThreadPoolExecutor(processes) as pool:
        first, rest = todo[:1], todo[1:]  # the first one makes what all share: classifier, features of the reference
        failed = [sentence for part in (first, rest) for sentence in pool.map(one, part) if sentence]
    if failed:
        raise UserError("; ".join(failed))


def _stamp(ckpt: Path) -> Path:
    return ckpt.with_name(f".{ckpt.name}.evaluated")


def _asked(ckpt: Path, overrides: list[str]) -> str:
    return json.dumps([overrides, *(os.stat(path).st_mtime_ns for path in (ckpt, place(ckpt)))])
