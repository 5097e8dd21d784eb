"""Every benchmark runs and writes its table; what it measures is nobody's business here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
QUICK = {
    "bench_train": ["--sizes", "tiny", "--models", "vcd", "ddpm", "--repeats", "1", "--steps", "2"],
    "bench_sample": ["--samplers", "vwd", "bansal, Algorithm 2", "--repeats", "1", "--batch", "2"],
    "bench_degrade": ["--sizes", "28", "--steps", "--repeats", "1", "--batch", "2"],
    "bench_startup": ["--repeats", "1"],
    "bench_memory": ["--sizes"],
    "bench_network": ["--sizes", "tiny", "--repeats", "1", "--batch", "2"],
    "bench_frontier": ["--sets", "digits", "--shapes", "tiny", "--seeds", "0", "1", "--budget", "2", "--n", "300", "--repeats", "1",
                       "--plot", "frontier.png", "prior.images=300", "prior.components=2", "--evaluate", "extractor.steps=100"],
    "bench_scaling": ["--growth", "batch", "--sizes", "--processes", "--repeats", "1", "--steps", "1"],
}  # fmt: skip


def run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    line = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "VCD_DATA": str(cwd / "data")}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


def test_every_benchmark_is_tried():
    assert {path.stem for path in BENCHMARKS.glob("bench_*.py")} == QUICK.keys() | {"bench_reference", "bench_samplers"}


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK)
def test_a_benchmark_prints_a_table_and_writes_it(name, tmp_path):
    process = run(name, *QUICK[name], "--out", str(tmp_path / "table.json"), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["rows"] and found["machine"]["torch"] and found["machine"]["threads"]
    lines = [line for line in process.stdout.splitlines() if line.startswith("|")]
    assert (
        len(lines) >= 2 + len(found["rows"]) and len({line.count("|") for line in lines[: 2 + len(found["rows"])]}) == 1
    )


@pytest.mark.long
def test_a_folder_that_is_no_checkout_is_one_sentence(tmp_path):
    process = run("bench_reference", "--reference", str(tmp_path), cwd=tmp_path)
    assert process.returncode == 1 and "no checkout" in process.stderr and "Traceback" not in process.stderr
