"""python benchmarks/bench_startup.py: seconds to --help, to the first training step, and what the imports cost."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import arguments, parse, report

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, until: str | None = None) -> float:
    """Seconds until the process ends, or says `until`."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"})  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        if until and until in line:
            took = time.perf_counter() - began
            process.kill()
            process.wait()
            return took
    if process.wait() or until:
        sys.exit(f"{' '.join(command)} went wrong:\n{''.join(said[-5:])}")
    return time.perf_counter() - began


def imports(module: str) -> list[tuple[str, float]]:
    """The packages whose import costs most, what they import included: [(name, seconds), ...]."""
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"], cwd=ROOT, capture_output=True, text=True
    ).stderr
    found: dict[str, float] = {}
    for line in said.splitlines():
        if match := re.match(r"import time:\s+\d+ \|\s+(\d+) \|\s+(\S+)$", line):
            found[match[2]] = max(found.get(match[2], 0.0), int(match[1]) / 1e6)
    packages = {
        name: took for name, took in found.items() if name.count(".") == 0 or name in ("torch._dynamo", "scipy.signal")
    }
    return sorted(packages.items(), key=lambda item: -item[1])[:12]


def main() -> None:
    options = parse(arguments(__doc__, repeats=3))
    train = (sys.executable, "-m", "vcd.train")
    with tempfile.TemporaryDirectory() as folder:
        first = (
            *train,
            f"runs={folder}",
            "trainer.max_steps=2",
            "trainer.log_every_n_steps=1",
            "+callbacks.said._target_=benchmarks.first.FirstStep",
        )
        calls = {
            "python -c 'import torch'": lambda: run(sys.executable, "-c", "import torch"),
            "python -m vcd.train --help": lambda: run(*train, "--help"),
            "python -m vcd.train, to the end of the first step": lambda: run(*first, until="the first step is done"),
        }
        rows = []
        for name, call in calls.items():
            taken = [call() for _ in range(options.repeats)]
            rows.append({"what": name, "seconds": statistics.median(taken)})
            for path in Path(folder).iterdir():
                subprocess.run(["rm", "-rf", path], check=True)
    report("Starting", rows, options.out)
    report("Imports of pytorch_lightning (a package includes what it imports first)",
           [{"package": name, "seconds": took} for name, took in imports("pytorch_lightning")], None)  # fmt: skip


if __name__ == "__main__":
    main()
