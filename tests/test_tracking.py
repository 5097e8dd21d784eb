"""wandb and TensorBoard, read back from the files that a run really writes without a network."""

import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SHORT, Run
from PIL import Image
from test_train import SABOTAGE, WARM, kill, only_run

from vcd.cli import CONF
from vcd.tracking import evaluated, short

SMALL = [a for a in SHORT if not a.startswith("prior")] + ["prior=independent", *WARM, "logger=both"]


def records(folder: Path) -> list[list[dict]]:
    """Every start of the run in `folder`, the oldest first, as `wandb leet inspect --json` shows it."""
    starts = []
    for start in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        line = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(start)]
        said = subprocess.run(line, capture_output=True, text=True, timeout=120).stdout
        starts.append([json.loads(line) for line in said.splitlines()])
    return starts


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """metrics.csv: step -> what was logged."""
    with open(folder / "metrics.csv", newline="") as file:
        return {
            int(row["step"]): {k: float(v) for k, v in row.items() if v and k != "step"} for row in csv.DictReader(file)
        }


@pytest.fixture(scope="module")
def tracked(command, tmp_path_factory) -> Run:
    """Killed at step 13 and gone on with."""
    cwd = tmp_path_factory.mktemp("tracked")
    (cwd / "sabotage.py").write_text(SABOTAGE)
    command("train", *SMALL, kill("on_train_batch_start", 13), cwd=cwd, WANDB_MODE="offline")
    process = command("train", *SMALL, cwd=cwd, WANDB_MODE="offline")
    assert process.returncode == 0, process.stderr
    return Run(cwd, SMALL, process)


@pytest.mark.long
def test_the_last_wandb_file_holds_the_whole_run(tracked):
    folder = only_run(tracked.cwd)
    *_, last = records(folder)
    history = [r["history"]["item"] for r in last if r["type"] == "history"]
    assert [item["_step"] for item in history] == sorted({*metrics(folder)})
    for item in history:
        for name, value in metrics(folder)[item["_step"]].items():
            assert item[name] == value, name
        assert item["trainer/global_step"] == item["_step"]
    assert [r["exit"].get("exit_code", 0) for r in last if r["type"] == "exit"] == [0]


@pytest.mark.long
def test_wandb_shows_the_very_pixels_with_captions(tracked):
    folder = only_run(tracked.cwd)
    *_, last = records(folder)
    *_, files = sorted(folder.glob("wandb/offline-run-*/files"))
    found = 0
    for item in (r["history"]["item"] for r in last if r["type"] == "history"):
        for name in ("samples", "sequences"):
            if f"{name}.path" in item:
                step = item["_step"] + 1
                assert item[f"{name}.caption"] == f"{name}, step {step}"
                drawn = Image.open(folder / "pictures" / f"{name}-{step:07d}.png")
                assert np.array_equal(np.asarray(Image.open(files / item[f"{name}.path"])), np.asarray(drawn))
                found += 1
    assert found == 4
    (table,) = [r["artifact"] for r in last if r.get("artifact", {}).get("type") == "run_table"]
    contents = {entry["path"]: Path(entry["local_path"]) for entry in table["manifest"]["contents"]}
    assert all(path.is_relative_to(folder) for path in contents.values())  # it is uploaded from there
    document = json.loads(contents["variants.table.json"].read_text())
    row = dict(zip(document["columns"], document["data"][0], strict=True))
    assert (row["variant"], row["seed"], row["steps"]) == ("vwd", 0, 19)
    samples = Image.open(contents[row["samples"]["path"]])
    assert np.array_equal(np.asarray(samples), np.asarray(Image.open(folder / "samples.png")))


@pytest.mark.long
def test_wandb_knows_the_sweep_the_variant_the_config_and_the_code(tracked):
    folder = only_run(tracked.cwd)
    for start in records(folder)[1:]:
        (run,) = [r["run"] for r in start if r["type"] == "run"]
        assert run["run_id"] == (folder / "wandb_id").read_text()
        assert (run["run_group"], run["job_type"], run["tags"]) == ("runs", "vwd", ["digits", "warm"])
        assert (
            "model=vwd" in run["display_name"]
            and "logger" not in run["display_name"]
            and "callbacks" not in run["display_name"]
        )
        config = run["config"]["update"]
        assert config["trainer"]["max_steps"] == 20 and config["run_folder"] == str(folder) and config["seed"] == 0
        (commit,) = [r["environment"]["git"]["commit"] for r in start if "git" in r.get("environment", {})]
        assert len(commit) == 40


@pytest.mark.long
def test_tensorboard_holds_the_same_numbers_and_pixels(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = only_run(tracked.cwd)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    for name in ("train/loss", "val/loss", "val/kl_bits/t02"):
        expected = {step: row[name] for step, row in metrics(folder).items() if name in row}
        assert {e.step: e.value for e in events.Scalars(name)} == pytest.approx(expected, rel=1e-6)
    for event in events.Images("samples"):
        drawn = Image.open(folder / "pictures" / f"samples-{event.step + 1:07d}.png").convert("RGB")
        shown = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
        assert np.array_equal(np.asarray(shown), np.asarray(drawn))
    assert {event.step for event in events.Images("samples")} == {9, 19}


FOUND = {
    "subject": {"ckpt": "last.ckpt", "n": 60},
    "metrics": {
        "fcd_60": {"value": 1.5, "floor": 0.5, "better": "lower", "unit": "", "protocol": {"n": 60, "split": "train"}},
        "psnr_prior": {"value": None, "floor": None, "better": "higher", "unit": "dB", "protocol": {"levels": [1, 2]}},
    },
    "curves": {"spectrum": {"data": [1.0] * 1000}},
}


@pytest.mark.long
def test_an_evaluation_lands_in_the_run_with_its_protocol_and_loses_nothing(tracked, tmp_path):
    """Offline: one more start of the same run, which is whole again, as the last start of a run always is."""
    trained = only_run(tracked.cwd)
    folder = Path(shutil.copytree(trained, tmp_path / "moved" / trained.name, symlinks=True))
    before = records(folder)
    code = f"from pathlib import Path; from vcd.tracking import evaluated; evaluated(Path({str(folder)!r}), {FOUND!r})"
    environment = {**os.environ, "WANDB_MODE": "offline"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=CONF.parent, capture_output=True, text=True
    )
    assert said.returncode == 0 and "Run summary" not in said.stderr, said.stderr

    *earlier, last = records(folder)
    assert earlier == before
    (run,), (then,) = ([r["run"] for r in start if r["type"] == "run"] for start in (last, before[-1]))
    assert run["run_id"] == (folder / "wandb_id").read_text()
    for key in ("project", "display_name", "run_group", "job_type", "tags"):
        assert run[key] == then[key] or key == "run_group" and run[key] == "moved", key  # its group is where it lies
    assert run["config"]["update"]["trainer"] == then["config"]["update"]["trainer"]

    summary: dict = {}
    for update in (r["summary"]["update"] for r in last if r["type"] == "summary"):
        summary |= update
    assert summary["fcd_60"] == 1.5 and summary["psnr_prior"] is None
    assert summary["evaluation"] == {key: FOUND[key] for key in ("subject", "metrics")}
    history = {item["_step"]: item for item in (r["history"]["item"] for r in last if r["type"] == "history")}
    for step, row in metrics(folder).items():
        assert {name: history[step][name] for name in row} == row
    assert sum("samples.path" in item for item in history.values()) == 2
    assert [r for r in last if r.get("artifact", {}).get("type") == "run_table"]
    assert [r["exit"].get("exit_code", 0) for r in last if r["type"] == "exit"] == [0]


def test_without_wandb_an_evaluation_leaves_nothing_behind(tmp_path):
    assert evaluated(tmp_path, FOUND) is False and not list(tmp_path.iterdir())


LEET = Path(__file__).parent.parent / "scripts" / "wandb_leet.sh"


def test_the_script_for_the_terminal_says_what_it_needs(tmp_path):
    for arguments, code, words in (([], 2, "usage:"), ([str(tmp_path)], 1, "logger=wandb"), (["nowhere"], 2, "usage:")):
        said = subprocess.run(["bash", str(LEET), *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert said.returncode == code and words in said.stderr and said.stdout == ""


def test_the_script_for_the_terminal_takes_the_last_start_of_every_run(tmp_path):
    starts = {
        "a": ["offline-run-20261201_100000-aa", "run-20261202_100000-aa"],
        "b": ["offline-run-20261201_090000-bb"],
    }
    for run, names in starts.items():
        for name in names:
            (tmp_path / run / "wandb" / name).mkdir(parents=True)
        (tmp_path / run / "wandb_id").write_text(name[-2:])
    for folder, runs in ((tmp_path, "ab"), (tmp_path / "a", "a")):
        said = subprocess.run(["bash", str(LEET), str(folder), "--list"], capture_output=True, text=True)
        assert said.stdout.splitlines() == [str(tmp_path / run / "wandb" / starts[run][-1]) for run in runs]


@pytest.mark.long
def test_wandb_leet_shows_the_curves_of_a_folder_of_runs(tracked, tmp_path):
    """In a terminal of its own, as a user sees it."""
    links = tmp_path / "links"
    links.mkdir()
    pid, terminal = pty.fork()
    if pid == 0:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.environ.update(HOME=str(tmp_path), TMPDIR=str(links), TERM="xterm-256color", PATH=path)
        os.execvp("bash", ["bash", str(LEET), str(tracked.cwd / "runs")])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    shown, end, left = "", time.monotonic() + 60, 0
    try:
        while not left and time.monotonic() < end:
            if "train/loss" in shown:
                os.write(terminal, b"q")
            if select.select([terminal], [], [], 0.5)[0]:
                with contextlib.suppress(OSError):  # it has gone
                    shown += os.read(terminal, 65536).decode(errors="replace")
            left, _ = os.waitpid(pid, os.WNOHANG)
    finally:
        if not left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
    assert "train/loss" in shown
    assert left and not [path for path in links.iterdir() if path.is_dir()]


@pytest.mark.long
def test_wandb_is_finished_when_a_run_fails(command, tmp_path):
    wild = ["trainer.gradient_clip_val=null", "optimizer.lr=1e30", "logger=wandb"]
    process = command("train", *SMALL, *wild, cwd=tmp_path, WANDB_MODE="offline")
    assert process.returncode == 1
    (only,) = records(only_run(tmp_path))
    assert [r["exit"]["exit_code"] for r in only if r["type"] == "exit"] == [1]
    script = Path(__file__).parent.parent / "scripts" / "wandb_sync.sh"
    said = subprocess.run(["bash", str(script), "runs", "--list"], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 1 and "1 of 1 starts are still to be uploaded" in said.stdout


def test_names_say_what_sets_a_run_apart():
    overrides = ["model=vcd", "launcher=slurm", "runs=friday", "data.root=x", "callbacks.pictures.n=4", "+trainer.limit_val_batches=2",
                 "logger=wandb", "trainer.devices=2", "seed=1", "~optimizer.betas"]  # fmt: skip
    assert short(overrides) == "model=vcd +trainer.limit_val_batches=2 seed=1 ~optimizer.betas"
