"""wandb and TensorBoard, read back from the files that a run really writes without a network."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SHORT, Run
from PIL import Image
from test_train import SABOTAGE, WARM, kill, only_run

from vcd.tracking import short

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
        assert (run["run_group"], run["job_type"], run["tags"]) == ("runs", "vwd", ["digits", "black_blur"])
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
