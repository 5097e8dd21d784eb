"""Sweeps on a real SLURM: told to stop, killed, cancelled, misconfigured, resumed, of several processes, searched by Optuna."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cluster import Cluster
from conftest import SHORT
from test_train import SABOTAGE, WARM, differences, only_run

from vcd.sweeps.rows import UNDER_WAY, read

FAST = [a for a in SHORT if not a.startswith("prior")] + ["prior=independent"]
LONGER = [*[a for a in FAST if not a.startswith(("trainer.max_steps", "trainer.val_check"))], *WARM,
          "trainer.val_check_interval=100", "callbacks.pictures.n=1"]  # fmt: skip
LAUNCH = [
    "launcher=slurm",
    "hydra.launcher.mem_gb=4",
    "hydra.launcher.timeout_min=20",
    "hydra.launcher.array_parallelism=2",
]
GREEDY = '''
class Greedy(Callback):
    """Takes `gigabytes` of memory at the first step of seed `seed`."""

    def __init__(self, gigabytes, seed, of):
        self.bytes = gigabytes * 2**30 if seed == of else 0

    def on_train_start(self, *_):
        self.kept = [bytearray(os.urandom(1)) * self.bytes]
        import time
        time.sleep(30 if self.bytes else 0)
'''


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Skipped only where the packages cannot be had."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "dev", port=27817)
    if (process := cluster("install")).returncode:
        pytest.skip(f"no SLURM here: {process.stdout.strip().splitlines()[-1]}")
    process = cluster("start")
    assert process.returncode == 0, process.stdout
    yield cluster
    cluster("stop")


@pytest.fixture
def sweep(command, cluster, tmp_path):
    """sweep("train", "key=value", ...) and sweep("sweep", "status", "runs"), in a folder of this test, with this SLURM."""
    (tmp_path / "sabotage.py").write_text(SABOTAGE + GREEDY)

    def run(verb: str, *arguments: str):
        return command(verb, *arguments, cwd=tmp_path, **cluster.environment, WANDB_MODE="offline")

    yield run
    cluster("run", "scancel", "-u", "root")


def at_step(seed: int, step: int):
    return lambda rows: rows[seed].state == "running" and rows[seed].status.get("step", 0) >= step


def all_done(rows) -> bool:
    return not any(row.state in UNDER_WAY for row in rows.values())


def history(folder: Path) -> list[list[dict]]:
    """What every offline start of wandb holds, the oldest first."""
    starts = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [[r["history"]["item"] for r in records(start) if r["type"] == "history"] for start in starts]


def records(start: Path) -> list[dict]:
    """As `wandb leet inspect --json` shows them."""
    line = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(start)]
    said = subprocess.run(line, capture_output=True, text=True, timeout=120).stdout
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_preempted_twice_and_requeued_equals_uninterrupted_bit_for_bit(sweep, cluster, command, tmp_path):
    """By SIGUSR2, submitit requeues; by `scontrol requeue` (SIGTERM), SLURM does. One wandb run, with no step missing."""
    arguments = [*LONGER, "trainer.max_steps=1200", "checkpoint_every=10000", "logger=wandb"]
    process = sweep("train", "--multirun", *arguments, *LAUNCH, "seed=3")
    assert process.returncode == 0, process.stderr
    row = cluster.until(tmp_path / "runs", at_step(3, 5))[3]
    cluster.signal(row.job, signal.SIGUSR2)
    saved = [torch_step(cluster.until(tmp_path / "runs", lambda rows: rows[3].state == "preempted")[3].folder)]
    cluster.until(tmp_path / "runs", at_step(3, saved[0] + 5))
    cluster("run", "scontrol", "requeue", row.job)
    saved.append(torch_step(cluster.until(tmp_path / "runs", lambda rows: rows[3].state == "preempted")[3].folder))
    assert 5 <= saved[0] < saved[1] < 1200
    row = cluster.until(tmp_path / "runs", all_done)[3]
    assert row.state == "finished", (row.status, row.error)
    assert sweep("sweep", "status", "runs").returncode == 0

    other = tmp_path / "straight"
    other.mkdir()
    straight = command("train", *arguments, "seed=3", cwd=other, WANDB_MODE="offline")
    assert straight.returncode == 0, straight.stderr
    expected, found = (torch.load(f / "last.ckpt", weights_only=True) for f in (only_run(other), row.folder))
    for key in ("current_model_state", "state_dict", "averaging_state", "optimizer_states", "global_step"):
        assert not differences(expected[key], found[key], key)
    assert (only_run(other) / "metrics.csv").read_text() == (row.folder / "metrics.csv").read_text()

    starts = history(row.folder)
    assert len(starts) == 3  # every start wrote a file of its own, under one id
    assert {p.name.split("-")[-1] for p in row.folder.glob("wandb/offline-run-*")} == {
        (row.folder / "wandb_id").read_text()
    }
    whole = history(only_run(other))[0]
    assert (
        [item["_step"] for item in starts[-1]]
        == [item["_step"] for item in whole]
        == sorted({i["_step"] for i in whole})
    )
    for mine, theirs in zip(starts[-1], whole, strict=True):
        for name in theirs:
            if name.startswith(("train/", "val/")):
                assert mine[name] == theirs[name], name
    exits = [
        [r["exit"].get("exit_code", 0) for r in records(p) if r["type"] == "exit"]
        for p in sorted(row.folder.glob("wandb/offline-run-*/*.wandb"))
    ]
    assert exits[0] == [1] and exits[2] == [0]  # finished; SIGTERM ends wandb's own process as well


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", [["hydra.launcher.tasks_per_node=2"], ["hydra.launcher.nodes=2", "trainer.num_nodes=2", "trainer.devices=1"]],
                         ids=["one node", "two nodes"])  # fmt: skip
def test_several_processes_of_one_job_are_preempted_and_go_on_bit_for_bit(sweep, cluster, command, tmp_path, where):
    arguments = [*LONGER, "trainer.max_steps=200", "checkpoint_every=1000", "seed=3", "trainer=ddp"]
    setup = "hydra.launcher.setup=['export MASTER_ADDR=127.0.0.1']"  # dev1 is a name for SLURM only
    process = sweep("train", "--multirun", *arguments, *LAUNCH, *where, setup)
    assert process.returncode == 0, process.stderr
    row = cluster.until(tmp_path / "runs", at_step(3, 5))[3]
    cluster.signal(row.job, signal.SIGUSR2)
    saved = torch_step(cluster.until(tmp_path / "runs", lambda rows: rows[3].state == "preempted")[3].folder)
    row = cluster.until(tmp_path / "runs", all_done)[3]
    assert row.state == "finished" and 5 <= saved < 200, (row.status, row.error)
    assert f"resuming at step {saved} of 200" in (row.folder / "train.log").read_text()

    other = tmp_path / "straight"
    other.mkdir()
    straight = command("train", *arguments, cwd=other)
    assert straight.returncode == 0, straight.stderr
    expected, found = (torch.load(f / "last.ckpt", weights_only=True) for f in (only_run(other), row.folder))
    for key in ("current_model_state", "state_dict", "averaging_state", "optimizer_states", "global_step"):
        assert not differences(expected[key], found[key], key)
    assert (only_run(other) / "metrics.csv").read_text() == (row.folder / "metrics.csv").read_text()


def torch_step(folder: Path) -> int:
    return torch.load(folder / "last.ckpt", weights_only=True)["global_step"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_cancelled_and_out_of_memory_are_explained_and_resumed(sweep, cluster, tmp_path):
    greedy = "+callbacks.greedy={_target_: sabotage.Greedy, gigabytes: 6, seed: ${seed}, of: 2}"
    arguments = [*LONGER, "trainer.max_steps=300", "checkpoint_every=20", greedy, "hydra.launcher.array_parallelism=4"]
    process = sweep("train", "--multirun", *LAUNCH, *arguments, "seed=0,1,2,4")
    assert process.returncode == 0 and "4 runs submitted" in process.stdout, process.stderr
    runs = tmp_path / "runs"
    rows = cluster.until(runs, at_step(0, 25))
    kill_training(rows[0])
    rows = cluster.until(runs, lambda rows: rows[1].state == "running")
    cluster("run", "scancel", rows[1].job)
    rows = cluster.until(runs, all_done)
    assert {seed: row.state for seed, row in rows.items()} == {0: "killed", 1: "cancelled", 2: "killed", 4: "finished"}
    status = sweep("sweep", "status", "runs")
    assert status.returncode == 1 and "1 finished" in status.stdout
    again = sweep("sweep", "resume", "runs")
    assert again.returncode == 0 and "3 runs submitted" in again.stdout, again.stderr
    rows = cluster.until(runs, lambda rows: rows[0].state == rows[1].state == "finished")
    assert "resuming at step" in (rows[0].folder / "train.log").read_text()
    collected = sweep("sweep", "collect", "runs")
    with open(runs / "runs.csv", newline="") as file:
        table = {row["seed"]: row for row in csv.DictReader(file)}
    assert collected.returncode in (1, 3) and table["0"]["state"] == "finished" and float(table["0"]["val_loss"]) > 0
    assert len({row["variant"] for row in table.values()}) == 1


def kill_training(row) -> None:
    os.kill(row.status["pid"], signal.SIGKILL)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_node_that_disappears_costs_what_was_not_saved(sweep, cluster, tmp_path):
    arguments = [*LONGER, "trainer.max_steps=800", "checkpoint_every=10"]
    assert sweep("train", "--multirun", *LAUNCH, *arguments, "seed=0").returncode == 0
    cluster.until(tmp_path / "runs", at_step(0, 20))
    cluster("lose")
    cluster.until(tmp_path / "runs", lambda rows: rows[0].state != "running")  # SLURM puts it back into the queue
    cluster("return")
    row = cluster.until(tmp_path / "runs", all_done)[0]
    assert row.state == "finished", row.error
    assert "resuming at step" in (row.folder / "train.log").read_text()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_cannot_run_leaves_the_rest_alone(sweep, cluster, tmp_path):
    """A bad value, a loss that is not finite, missing data and too few processes: each with its sentence and its traceback."""
    lr = "optimizer.lr=0.003,1e30"
    calm = ["trainer.gradient_clip_val=null", "network.unet.heads=1,3"]
    process = sweep("train", "--multirun", *LAUNCH, *FAST, *WARM, *calm, lr, "seed=0")
    assert process.returncode == 0, process.stderr
    missing = sweep("train", "--multirun", *LAUNCH, *FAST, *WARM, "dataset=folder", "dataset.path=nowhere", "seed=1")
    assert missing.returncode == 0, missing.stderr
    alone = sweep("train", "--multirun", *LAUNCH, *FAST, *WARM, "trainer=ddp", "seed=2")
    assert alone.returncode == 0, alone.stderr
    runs = tmp_path / "runs"
    cluster.until(runs, all_done)
    states = {path.parent: json.loads(path.read_text()) for path in runs.glob("*/status.json")}
    finished = [s for s in states.values() if s["state"] == "finished"]
    errors = sorted(s["error"] for s in states.values() if s["state"] == "failed")
    assert len(finished) == 1 and len(errors) == 5, states
    assert sum("set hydra.launcher.tasks_per_node=2" in e for e in errors) == 1
    assert (
        sum("heads=3" in e for e in errors) == 2
        and sum("no longer finite" in e for e in errors) == 1
        and "nowhere" in "".join(errors)
    )
    assert all(
        "Traceback" in (folder / "error.txt").read_text() for folder, s in states.items() if s["state"] == "failed"
    )
    assert sweep("sweep", "status", "runs").returncode == 1


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_search_waits_for_its_trials_and_goes_on_with_the_study(sweep, cluster, command, tmp_path):
    """Each trial in a job of its own, which VCD_PYTHON starts as a container would."""
    inside = tmp_path / "inside"
    inside.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/started\nexec "$@"\n')
    inside.chmod(0o755)
    free = [a for a in FAST if not a.startswith(("optimizer.lr", "ema_decay"))]
    arguments = [*free, "model=ddpm", "T=60", "sweep=optuna", *LAUNCH, "hydra.sweeper.n_trials=2"]
    environment = {**cluster.environment, "VCD_PYTHON": f"{inside} {sys.executable}"}
    for trials in (2, 4):
        process = command("train", *arguments, cwd=tmp_path, **environment)
        assert process.returncode == 0, process.stderr
        rows = read(tmp_path / "runs")
        assert len(rows) == trials and {row.state for row in rows} == {"finished"}
        assert len((tmp_path / "started").read_text().splitlines()) == trials
        with sqlite3.connect(tmp_path / "runs.db") as study:
            values = [value for (value,) in study.execute("SELECT value FROM trial_values")]
        assert sorted(values) == sorted(row.status["val_loss"] for row in rows)
