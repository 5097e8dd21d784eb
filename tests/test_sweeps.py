"""Sweeps as processes of one machine, and what is known of runs: killed, silent, held, composed."""

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from conftest import ROLLOUT
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from test_slurm import FAST, torch_step
from test_train import SABOTAGE, WARM, kill, one_sentence, only_run

from vcd.cli import CONF
from vcd.errors import UserError
from vcd.files import read_steps
from vcd.identity import digest
from vcd.resolvers import register_resolvers
from vcd.runs import RunFolder
from vcd.sweeps import table
from vcd.sweeps.compositions import Compositions
from vcd.sweeps.rows import code, read
from vcd.sweeps.scheduler import tasks


@pytest.mark.long
def test_processes_run_side_by_side_and_one_that_is_killed_harms_none(command, tmp_path):
    (tmp_path / "sabotage.py").write_text(SABOTAGE)
    kill = "+callbacks.kill={_target_: sabotage.Kill, hook: on_train_batch_start, at: ${seed}}"  # 99 is never reached
    arguments = ["--multirun", "launcher=processes", *FAST, *ROLLOUT, "model.beta=0.5", "seed=7,99"]
    process = command("train", *arguments, kill, cwd=tmp_path)
    assert process.returncode == 1 and "1 of 2 runs did not finish" in process.stderr
    rows = {row.folder.name[-1]: row for row in read(tmp_path / "runs")}
    assert (rows["7"].state, rows["9"].state) == ("failed", "finished") and "SIGKILL" in rows["7"].error
    assert "SIGKILL" in process.stdout and command("sweep", "status", "runs", cwd=tmp_path).returncode == 1
    refused = command("sweep", "resume", "runs", cwd=tmp_path)
    assert refused.returncode == 1 and "the same command of vcd.train" in refused.stderr


@pytest.mark.long
def test_sigterm_for_those_who_wait_is_passed_on_to_the_runs(tmp_path):
    arguments = ["--multirun", "launcher=processes", *FAST, *WARM, "trainer.max_steps=1000000", "seed=7,8"]
    waiting = subprocess.Popen([sys.executable, "-m", "vcd.train", *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(going := [row for row in read_if_there(tmp_path / "runs") if row.status.get("step")]) < 2:
        assert waiting.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(60) == 128 + signal.SIGTERM
    assert {(row.state, row.error) for row in read(tmp_path / "runs")} == {("cancelled", "told to stop; saved")}
    for row in going:
        assert torch_step(row.folder) >= row.status["step"]
        with pytest.raises(ProcessLookupError):
            os.kill(row.status["pid"], 0)


def read_if_there(sweep):
    return read(sweep) if any(sweep.glob("*/status.json")) else []


@pytest.mark.long
def test_sigterm_saves_within_the_step_and_the_same_command_goes_on(command, tmp_path):
    (tmp_path / "sabotage.py").write_text(SABOTAGE)
    stopped = command("train", *FAST, *WARM, kill("on_train_batch_start", 14, signal.SIGTERM), cwd=tmp_path)
    folder = only_run(tmp_path)
    assert stopped.returncode == 128 + signal.SIGTERM and "told to stop (SIGTERM): saved" in stopped.stdout
    assert json.loads((folder / "status.json").read_text())["state"] == "preempted" and torch_step(folder) == 15
    resumed = command("train", *FAST, *WARM, cwd=tmp_path)
    assert resumed.returncode == 0 and "resuming at step 15 of 20" in resumed.stdout, resumed.stderr
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [
        4,
        9,
        14,
        19,
    ]  # also that of the step it stopped in


@pytest.mark.long
def test_sigterm_after_the_last_step_begins_no_other_run(command, tmp_path):
    (tmp_path / "sabotage.py").write_text(SABOTAGE)
    arguments = ["--multirun", *FAST, *WARM, "seed=0,1"]
    stopped = command("train", *arguments, kill("on_train_end", 20, signal.SIGTERM), cwd=tmp_path)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    (row,) = read(tmp_path / "runs")
    assert row.status["state"] == "preempted" and torch_step(row.folder) == 20
    finished = command("train", *arguments, cwd=tmp_path)
    assert finished.returncode == 0 and {row.state for row in read(tmp_path / "runs")} == {"finished"}, finished.stderr


@pytest.mark.long
def test_a_search_of_runs_shorter_than_every_interval_finds_their_losses(command, tmp_path):
    free = [
        a for a in FAST if not a.startswith(("optimizer.lr", "ema_decay", "trainer.val_check", "trainer.log_every"))
    ]
    arguments = [*free, "model=ddpm", "T=60", "sweep=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    process = command("train", *arguments, cwd=tmp_path)
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    rows = read(tmp_path / "runs")
    with sqlite3.connect(tmp_path / "runs.db") as study:
        values = [value for (value,) in study.execute("SELECT value FROM trial_values")]
    assert len(rows) == 2 and sorted(values) == sorted(row.status["val_loss"] for row in rows)
    assert {"train/loss", "val/loss"} <= set(read_steps(rows[0].folder / "metrics.csv")[-1])


@pytest.mark.long
def test_a_run_that_is_being_trained_is_not_started_twice(command, tmp_path):
    (tmp_path / "sabotage.py").write_text(SABOTAGE)
    arguments = [
        *FAST,
        *WARM,
        "trainer.enable_progress_bar=false",
        kill("on_train_batch_start", 12).replace("sabotage.Kill", "sabotage.Wait"),
    ]
    line = [sys.executable, "-m", "vcd.train", *arguments]
    with subprocess.Popen(line, cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{CONF.parent}:{tmp_path}"}) as first:
        while not (tmp_path / "waiting").exists():
            time.sleep(0.2)
            assert first.poll() is None
        before = only_run(tmp_path) / "status.json"
        refused = command("train", *arguments, cwd=tmp_path)
        assert f"is being trained already, by process {first.pid} on " in one_sentence(refused)
        assert json.loads(before.read_text())["state"] == "running"
        (tmp_path / "waiting").unlink()
        assert first.wait() == 0
    assert not (only_run(tmp_path) / "lock").exists()


def test_a_run_on_another_host_that_falls_silent_is_taken_for_dead(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    status = folder / "status.json"
    status.write_text(json.dumps({"state": "running", "host": "elsewhere", "pid": 1, "job": None}))
    assert read(tmp_path)[0].state == "running"
    os.utime(status, (time.time() - 720,) * 2)
    (row,) = read(tmp_path)
    assert row.state == "killed" and row.error == "nothing heard from elsewhere for 12 minutes"


def test_a_run_that_is_held_is_heard_of(tmp_path, monkeypatch, compose):
    """And as long as it lives, no other process can hold it."""
    monkeypatch.setattr("vcd.runs.BEAT", 0.05)
    run = RunFolder(run_dir=str(tmp_path / "run"), identity="0123abcd-seed0").open("seed: 0\n")
    with run.held():
        os.utime(tmp_path / "run" / "status.json", (0, 0))
        time.sleep(0.5)
        assert (tmp_path / "run" / "status.json").stat().st_mtime > 0


@pytest.mark.parametrize("evidence", ["started again by SLURM", "silent"])
def test_a_lock_left_behind_by_a_lost_node_does_not_last(tmp_path, monkeypatch, compose, evidence):
    """As NFS keeps it: what counts then is that SLURM has started this very job again, or the silence of the other."""
    run = RunFolder(run_dir=str(tmp_path / "run"), identity="0123abcd-seed0").open("seed: 0\n")
    run.set_status("running", job="7")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, run.path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="is being trained already"), run.held():
            pass
        if evidence == "silent":
            os.utime(run.path / "status.json", (0, 0))
        else:
            monkeypatch.setenv("SLURM_JOB_ID", "7")
        with run.held():
            assert run.status["job"] == "7"
        other.communicate(b"\n")


def test_a_composition_is_what_hydra_makes(tmp_path):
    """Whatever of it are groups, values, deletions or additions."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance()
        loader = hydra.config_loader()
        master = hydra.hydra.compose_config(
            "train", ["launcher=slurm", "hydra.launcher.mem_gb=7", "seed=0,1"], run_mode=RunMode.MULTIRUN
        )
        fast = Compositions(loader)
        for overrides in (
            ["model=vcd", "seed=1", "launcher=slurm"], ["model=vcd", "seed=2", "T=9", "launcher=slurm"],
            ["model=ddpm", "seed=1", "~callbacks.pictures", "+callbacks.x={_target_: a.B}", "launcher=slurm"],
            ["network=small", "network.unet.mults=[1,2,3]", "experiment=vwd_mnist", "launcher=slurm"],
        ):  # fmt: skip
            slow, found = loader.load_sweep_config(master, list(overrides)), fast(master, list(overrides))
            for config in (slow, found):
                del config.hydra.job.override_dirname  # the launchers here have no use for it
            assert OmegaConf.to_container(slow) == OmegaConf.to_container(found)
            with open_dict(slow), open_dict(found):
                assert digest(slow) == digest(found)


def test_a_damaged_file_hides_no_other_run(tmp_path):
    for name, text in (
        ("bad", '{"state": "runn'),
        ("good", '{"state": "finished", "identity": "1-seed0"}'),
        ("odd", "[]"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(text)
    (tmp_path / "good" / "metrics.json").write_text('{"metrics": ')
    rows = read(tmp_path)
    assert [row.state for row in rows] == ["unknown", "finished", "unknown"] and code(rows) == 1
    lines = table.text(rows).splitlines()
    assert "bad/status.json cannot be read" in lines[1] and "odd/status.json is not the status of a run" in lines[3]
    collected = list(csv.DictReader(io.StringIO(table.collect(rows))))
    assert [row["state"] for row in collected] == ["unknown", "finished", "unknown"]
    assert "metrics.json is damaged: vcd.evaluate writes it again" in collected[1]["error"]


def test_tasks_of_an_array_that_never_began_share_a_line():
    assert (
        tasks("12_[0-2,7%4]") == ["12_0", "12_1", "12_2", "12_7"]
        and tasks("12_3") == ["12_3"]
        and tasks("12") == ["12"]
    )


def test_a_folder_that_is_no_sweep_is_one_sentence(command, tmp_path):
    process = command("sweep", "status", "nowhere", cwd=tmp_path)
    assert process.returncode == 1 and process.stderr == "error: nowhere: there is no such folder\n"
    assert command("sweep", "stat", "x", cwd=tmp_path).returncode == 2
