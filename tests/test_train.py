"""`python -m vcd.train`, started as a user starts it: it ends, resumes exactly, refuses and fails in one sentence."""

import csv
import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import SHORT, Run
from omegaconf import OmegaConf

from vcd.cli import explain

SABOTAGE = '''
"""What can happen to a run, as callbacks."""
import os
import resource
import signal
import time

from pytorch_lightning import Callback


class Kill(Callback):
    """kill -9, or another signal, as soon as `hook` is reached at step `at`."""

    def __init__(self, hook, at, by=signal.SIGKILL):
        def kill(trainer, *_, **__):
            if trainer.global_step == at:
                os.kill(os.getpid(), by)

        setattr(self, hook, kill)


class Wait(Callback):
    """At step `at`, until somebody removes the file `waiting`."""

    def __init__(self, hook, at, **_):
        def wait(trainer, *_, **__):
            if trainer.global_step == at:
                open("waiting", "w").close()
                while os.path.exists("waiting"):
                    time.sleep(0.1)

        setattr(self, hook, wait)


class DiskFull(Callback):
    """From step `at` on no file may grow beyond `size` bytes."""

    def __init__(self, at, size):
        self.at, self.size = at, size

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
'''
WARM = ["model=vwd", "perturbation=gaussian", "perturbation.sigma=0.1", "prediction=vxt"]


def kill(hook: str, at: int, by: int = signal.SIGKILL) -> str:
    return f"+callbacks.kill={{_target_: sabotage.Kill, hook: {hook}, at: {at}, by: {int(by)}}}"


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()
    }


def only_run(cwd: Path) -> Path:
    (folder,) = (cwd / "runs").iterdir()
    return folder


def one_sentence(process: subprocess.CompletedProcess) -> str:
    """The error of a failed process: one line, no traceback."""
    assert process.returncode == 1 and "Traceback" not in process.stderr, process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert process.stderr.splitlines()[-1] == line
    return line.removeprefix("error: ")


def differences(a, b, path: str = "") -> list[str]:
    """Where two nested structures of plain types and tensors are not equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if not isinstance(b, dict) or list(a) != list(b):
            return [f"{path} (keys)"]
        return [d for key in a for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        if type(a) is not type(b) or len(a) != len(b):
            return [f"{path} (length)"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}/{i}")]
    return [] if type(a) is type(b) and a == b else [f"{path}: {a} != {b}"]


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_ends_by_naming_what_there_is_to_see(trained):
    lines = trained.process.stdout.splitlines()
    found = {}
    for line in reversed(lines):
        name, _, path = line.partition(" ")
        if not Path(path.strip()).is_absolute():
            break
        found[name] = Path(path.strip())
    assert set(found) == {"samples", "sequences", "animation", "curves", "metrics", "checkpoint"}
    assert all(path.is_file() and path.stat().st_size > 0 for path in found.values())
    assert lines[-1].endswith("last.ckpt") and trained.last == found["checkpoint"]
    assert {path.parent for path in found.values()} == {only_run(trained.cwd)}
    assert "20/20" in trained.process.stdout  # the progress bar
    assert "Traceback" not in trained.process.stderr
    assert not [path for path in trained.last.parent.rglob(".*")]  # nothing half written is left


def test_the_same_command_again_says_finished_and_does_nothing(trained, command):
    before = files(trained.last.parent)
    again = command("train", *trained.arguments, cwd=trained.cwd)
    assert again.returncode == 0, again.stderr
    assert "finished" in again.stdout.splitlines()[0]
    assert again.stdout.splitlines()[1:] == trained.process.stdout.splitlines()[-6:]
    after = files(trained.last.parent)
    log = "train.log"  # it may say so, too
    assert {k: v for k, v in after.items() if k != log} == {k: v for k, v in before.items() if k != log}


def test_everything_is_logged_by_name_and_unit(trained):
    with open(trained.last.parent / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    terms = {"loss", "reconstruction_sse", "kl_bits"}
    for stage in ("train", "val"):
        for name in {f"{stage}/{term}" for term in terms} | {
            f"{stage}/{term}/t{t:02}" for term in terms for t in (1, 2, 3)
        }:
            values = [float(row[name]) for row in rows if row[name]]
            assert len(values) == (4 if stage == "train" else 2), name
            assert all(0 <= value < 1e6 for value in values)
    assert [row["val/active_units"] != "" for row in rows].count(True) == 2
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))


def test_the_checkpoint_is_plain_and_holds_raw_and_averaged_weights(trained):
    checkpoint = torch.load(trained.last, weights_only=True)
    averaged, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert checkpoint["global_step"] == 20 and averaged.keys() == raw.keys()
    weights = [name for name in raw if name.startswith(("network.", "encoder."))]
    assert len(weights) > 50
    assert all(averaged[name].isfinite().all() and raw[name].isfinite().all() for name in weights)
    assert sum(not torch.equal(averaged[name], raw[name]) for name in weights) > 0.9 * len(weights)
    distance = max((averaged[name] - raw[name]).abs().max().item() for name in weights)
    assert distance < 0.2  # an average of the last steps, not of something else


def test_the_run_folder_says_how_it_was_made(trained, compose):
    folder = trained.last.parent
    config = OmegaConf.load(folder / "config.yaml")
    assert config.trainer.max_steps == 20 and config.model.perturbation.warmup == 4
    checkpoint = torch.load(trained.last, weights_only=True)
    plain = OmegaConf.to_container(config)
    assert next(value for value in checkpoint.values() if isinstance(value, dict) and "dataset" in value) == plain
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "finished" and status["identity"].endswith("-seed0")


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warm(command, tmp_path_factory) -> Run:
    """VWD, as `trained`."""
    cwd, arguments = tmp_path_factory.mktemp("warm"), [*SHORT, *WARM]
    process = command("train", *arguments, cwd=cwd)
    assert process.returncode == 0, process.stderr
    return Run(cwd, arguments, process)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["trained", "warm"])
@pytest.mark.parametrize(
    ("hook", "at"),
    [
        ("on_train_batch_start", 13),  # between two checkpoints
        ("on_validation_batch_start", 10),  # in a validation, which is begun again
        ("on_validation_batch_start", 20),  # in the last one
        ("on_train_end", 20),  # all steps done, nothing fitted or drawn yet
    ],
)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(request, command, tmp_path, model, hook, at):
    straight = request.getfixturevalue(model)
    (tmp_path / "sabotage.py").write_text(SABOTAGE)
    killed = command("train", *straight.arguments, kill(hook, at), cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = only_run(tmp_path)
    saved = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    resumed = command("train", *straight.arguments, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming at step {saved} of 20" in resumed.stdout and saved in (10, 20)
    assert "fitting the prior of last.ckpt" in resumed.stdout and "/?" not in resumed.stdout  # the bars
    assert saved == 20 or re.search(r"training: +50%.* 10/20", resumed.stdout)
    assert only_run(tmp_path) == folder and folder.name == straight.last.parent.name

    expected, found = (torch.load(path, weights_only=True) for path in (straight.last, folder / "last.ckpt"))
    for key in (
        "current_model_state",
        "state_dict",
        "averaging_state",
        "optimizer_states",
        "lr_schedulers",
        "global_step",
    ):
        assert not differences(expected[key], found[key], key)
    random = [{k: v for k, v in c["callbacks"].items() if "Random" in k} for c in (expected, found)]
    assert len(random[0]) == 1 and not differences(*random)
    rows, whole = ((f / "metrics.csv").read_text().splitlines() for f in (folder, straight.last.parent))
    assert rows == whole
    status, other = (json.loads((f / "status.json").read_text()) for f in (folder, straight.last.parent))
    assert status["val_loss"] == other["val_loss"]
    for picture in ("samples.png", "sequences.png", "sequences.gif"):
        assert (folder / picture).read_bytes() == (straight.last.parent / picture).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "at"),
    [
        pytest.param(["trainer.max_steps=11", "checkpoint_every=7"], 8, id="saved between two reports"),
        pytest.param(
            ["trainer.max_steps=8", "checkpoint_every=5", "trainer.accumulate_grad_batches=2"], 6, id="accumulation"
        ),
        pytest.param(
            ["trainer.max_steps=11", "checkpoint_every=7", "level_sampler=importance", "level_sampler.history=2"],
            9,
            id="levels by their losses",
        ),
    ],
)
def test_resuming_is_exact_wherever_the_checkpoint_falls(command, tmp_path, changes, at):
    """Also the rows of metrics.csv that hold steps from before and after it; and never amid the batches of one step."""
    arguments = [a for a in [*SHORT, *WARM, *changes] if not a.startswith("prior")] + ["prior=independent"]
    folders = []
    for name in ("straight", "killed"):
        cwd = tmp_path / name
        cwd.mkdir()
        (cwd / "sabotage.py").write_text(SABOTAGE)
        if name == "killed":
            assert command("train", *arguments, kill("on_train_batch_start", at), cwd=cwd).returncode == -signal.SIGKILL
        process = command("train", *arguments, cwd=cwd)
        assert process.returncode == 0, process.stderr
        folders.append(only_run(cwd))
    expected, found = (torch.load(folder / "last.ckpt", weights_only=True) for folder in folders)
    assert ("DegradationDataModule" in expected) == any("importance" in change for change in changes)
    for key in ("current_model_state", "state_dict", "optimizer_states", "DegradationDataModule"):
        assert not differences(expected.get(key), found.get(key), key)
    rows = [(folder / "metrics.csv").read_text() for folder in folders]
    assert rows[0] == rows[1]


# --- what goes wrong on the way ---------------------------------------------------------------------------------------


WILD = ["trainer.gradient_clip_val=null", "scheduler=constant", "scheduler.warmup=0", "checkpoint_every=1"]


def finite(last: Path) -> bool:
    checkpoint = torch.load(last, weights_only=True)
    return all(
        v.isfinite().all() for state in ("state_dict", "current_model_state") for v in checkpoint[state].values()
    )


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_with_a_finite_checkpoint(command, tmp_path):
    sentence = one_sentence(command("train", *SHORT, *WARM, *WILD, "optimizer.lr=1e30", cwd=tmp_path))
    assert "no longer finite" in sentence and "optimizer.lr" in sentence
    assert finite(only_run(tmp_path) / "last.ckpt")


@pytest.mark.long
def test_weights_that_are_not_finite_are_never_saved(command, tmp_path):
    """The loss of the step that makes them infinite is still finite."""
    descent = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "optimizer.lr=3e38"]
    sentence = one_sentence(command("train", *SHORT, *WARM, *WILD, *descent, cwd=tmp_path))
    assert "no longer finite" in sentence
    last = only_run(tmp_path) / "last.ckpt"
    assert not last.exists() or finite(last)


@pytest.mark.long
@pytest.mark.parametrize(
    "size", [65536, 512]
)  # too little for a checkpoint; too little for the next rows of metrics.csv
def test_a_full_disk_costs_nothing_that_was_saved(command, tmp_path, size):
    (tmp_path / "sabotage.py").write_text(SABOTAGE)
    full = f"+callbacks.full={{_target_: sabotage.DiskFull, at: 12, size: {size}}}"
    sentence = one_sentence(command("train", *SHORT, *WARM, full, cwd=tmp_path))
    folder = only_run(tmp_path)
    if size == 65536:
        assert str(folder / "last.ckpt") in sentence and "previous one is kept" in sentence
    assert "space" in sentence and "run the same command again" in sentence
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 10
    assert (folder / "last.ckpt").stat().st_size > 65536
    assert not list(folder.glob(".*"))
    resumed = command("train", *SHORT, *WARM, cwd=tmp_path)
    assert resumed.returncode == 0 and "resuming at step 10 of 20" in resumed.stdout, resumed.stderr


def test_the_run_folder_of_another_configuration_is_refused(trained, command, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.last.parent, folder)
    before = files(folder)
    for other in ("model.beta=7", "seed=1"):
        process = command("train", *trained.arguments, other, f"run_dir={folder}", cwd=tmp_path)
        assert f"run_dir={folder} belongs to another configuration" in one_sentence(process)
    after = files(folder)
    assert {k: v for k, v in after.items() if k != "train.log"} == {k: v for k, v in before.items() if k != "train.log"}


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (["T=0"], "T=0: the number of levels must be a whole number of at least 1"),
        (["network.encoder.latent=0"], "network.encoder.latent=0: "),
        (["network.unet.heads=3"], "network.unet.heads=3 does not divide"),
        (["network.unet.attention=[9]"], "network.unet.attention=[9]: there is no resolution 9; 0 to 1 exist"),
        (["network.unet.mults=[1,1,1,1,1]"], "network.unet.mults=[1, 1, 1, 1, 1] halves the image more often"),
        (["degradation=pixelate", "T=8"], "T=8: 8x8 images can be pixelated to 7 levels only"),
        (["degradation=black_blur", "prediction=eps"], "prediction=eps needs Gaussian noise"),
        (["perturbation=rollout", "perturbation.p=1.5"], "perturbation.p=1.5 is a probability"),
        (["perturbation=gaussian", "perturbation.sigma=-0.5"], "perturbation.sigma=-0.5 is a standard deviation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_that_do_not_fit_are_one_sentence(compose, arguments, beginning):
    from vcd import training

    cfg = compose(*SHORT, *arguments)
    with pytest.raises(Exception) as caught:
        training.build(cfg)
    assert explain(caught.value, "train").startswith(beginning)
