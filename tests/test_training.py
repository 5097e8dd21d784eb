"""A training in this very process: what it leaves, wherever it is stopped, and what it refuses."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from conftest import TINY
from omegaconf import OmegaConf
from PIL import Image
from test_train import differences

from vcd import __version__, files, identity, stages
from vcd.callbacks.pictures import Pictures
from vcd.errors import UserError
from vcd.runs import RunFolder
from vcd.signals import Listener
from vcd.train import attempt

QUICK = [
    *TINY, "model=vwd", "perturbation=gaussian", "prior=mixture", "prior.images=200", "prior.components=2", "optimizer.lr=0.01", "trainer.accelerator=cpu", "ema_decay=0.9",
    "trainer.enable_progress_bar=false", "data.val_images=30", "trainer.max_steps=10", "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=3", "checkpoint_every=3", "keep_every=3", "scheduler=constant", "scheduler.warmup=2",
]  # fmt: skip

PLAIN = "~callbacks.pictures"  # quicker to finish


@pytest.fixture
def train(compose, tmp_path):
    """train("key=value", ..., folder=Path): the run, trained as `python -m vcd.train` does it, by default in tmp_path/run."""

    def train(*overrides: str, folder: Path | None = None) -> RunFolder:
        cfg = compose(*QUICK, f"run_dir={folder or tmp_path / 'run'}", *overrides)
        run = stages.ready(cfg).open(OmegaConf.to_yaml(cfg, resolve=True))
        with run.held(), Listener() as listener:
            attempt(cfg, run, listener)
            listener.obey()
        return run

    return train


def rows(folder: Path) -> dict[int, set[str]]:
    """metrics.csv: step -> the kinds of numbers that are there, train or val."""
    return {int(row["step"]): {name.split("/")[0] for name, value in row.items() if value and name != "step"}
            for row in files.read_steps(folder / "metrics.csv")}  # fmt: skip


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def unequal(one: Path, other: Path) -> list[str]:
    """What of two finished runs differs, but for the time they took and where they are."""
    names = [{str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} - {"error.txt"} for f in (one, other)]
    found = [f"only in one: {name}" for name in names[0] ^ names[1]]
    for name in sorted(names[0] & names[1]):
        a, b = one / name, other / name
        if name.endswith(".png"):
            same = np.array_equal(pixels(a), pixels(b))
        elif name.endswith(".ckpt"):
            checkpoints = [torch.load(path, weights_only=True) for path in (a, b)]
            for checkpoint in checkpoints:
                del checkpoint["loops"], checkpoint["callbacks"]["Timing"]
                del checkpoint["callbacks"]["RandomState"][
                    "python"
                ]  # beartype, which checks shapes here, draws from it
                del checkpoint["vcd_config"]["run_dir"], checkpoint["vcd_config"]["callbacks"]
            found += [f"{name}: {difference}" for difference in differences(*checkpoints)]
            continue
        elif name == "times.csv":
            same = [[row["step"] for row in files.read_steps(path)] for path in (a, b)]
            same = same[0] == same[1]
        elif name == "status.json":
            said = [json.loads(path.read_text()) for path in (a, b)]
            same = all(said[0][key] == said[1][key] for key in ("state", "identity", "step", "steps", "val_loss"))
        elif name in ("config.yaml", "train.log"):
            continue
        else:
            same = a.read_bytes() == b.read_bytes()
        if not same:
            found.append(name)
    return found


class Signal(L.Callback):
    """A signal to this process when `hook` is reached at step `at`."""

    def __init__(self, hook: str, at: int, by: int = signal.SIGTERM) -> None:
        def send(trainer: L.Trainer, *_: object, **__: object) -> None:
            if trainer.global_step == at and not trainer.sanity_checking:
                os.kill(os.getpid(), by)

        setattr(self, hook, send)


class Told(Pictures):
    """Is told to stop while it draws the last pictures."""

    def draw(self, model, folder, suffix=""):
        if not suffix:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().draw(model, folder, suffix)


class Delete(L.Callback):
    """Deletes the run folder at step `at`, or puts another in its place."""

    def __init__(self, at: int, again: bool) -> None:
        self.at, self.again = at, again

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.at:
            shutil.rmtree(trainer.default_root_dir)
            if self.again:
                os.mkdir(trainer.default_root_dir)


class Diverge(L.Callback):
    """Saves weights that are finite and lead beyond all numbers."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict) -> None:
        for state in ("state_dict", "current_model_state"):
            checkpoint[state]["network.out.bias"] = torch.full_like(checkpoint[state]["network.out.bias"], 3e38)


def send(hook: str, at: int, by: int = signal.SIGTERM) -> str:
    return f"+callbacks.send={{_target_: test_training.Signal, hook: {hook}, at: {at}, by: {int(by)}}}"


# --- what it leaves ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_last_step_is_logged_and_validated_wherever_the_intervals_fall(train):
    run = train()
    assert rows(run.path) == {2: {"train"}, 3: {"val"}, 5: {"train"}, 7: {"val"}, 8: {"train"}, 9: {"train", "val"}}
    last = files.read_steps(run.path / "metrics.csv")[-1]
    assert run.status["val_loss"] == float(last["val/loss"])
    drawn = {path.name for path in (run.path / "pictures").iterdir()}
    assert drawn == {f"{name}-{step:07d}.png" for name in ("samples", "sequences") for step in (4, 8, 10)}


def test_a_run_shorter_than_every_interval_has_a_loss_and_needs_no_pictures(train):
    run = train("trainer.max_steps=2", "trainer.val_check_interval=250", "trainer.log_every_n_steps=50", "~callbacks.pictures",
                "checkpoint_every=200", "keep_every=null")  # fmt: skip
    assert run.finished and run.status["val_loss"] > 0 and rows(run.path) == {1: {"train", "val"}}
    assert [name for name, _ in run.results()] == ["curves", "metrics", "checkpoint"]


@pytest.mark.long
def test_intervals_are_in_steps_also_where_a_step_is_several_batches(train):
    run = train("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3", "trainer.max_steps=7")
    assert rows(run.path) == {2: {"train", "val"}, 5: {"train", "val"}, 6: {"train", "val"}}


@pytest.mark.parametrize(("pairs", "batch", "batches"), [(30, "null", 2), (6, 3, 2)])
def test_validation_has_as_many_images_as_are_asked_for(train, compose, pairs, batch, batches):
    from vcd import training
    from vcd.training import datamodule

    cfg = compose(*QUICK, f"data.val_images={pairs}", f"data.val_batch_size={batch}", "data.root=nowhere")
    loader = datamodule(cfg, training.build(cfg)).val_dataloader()
    assert len(loader) == batches and sum(len(b["t"]) for b in loader) == pairs


def test_version_and_identity_are_noted(train, compose, tmp_path):
    run = train(PLAIN, "trainer.max_steps=1")
    assert run.status["vcd_version"] == __version__ and run.status["identity"] == identity.stored(run.path)
    assert torch.load(run.last, weights_only=True)["vcd_version"] == __version__


def test_a_model_that_diverges_is_finished_without_prior_and_pictures(train, caplog):
    run = train("trainer.max_steps=1", "+callbacks.diverge={_target_: test_training.Diverge}")
    assert run.finished and not (run.path / "samples.png").exists()
    assert "no pictures: 4 of 4 images are not finite" in caplog.text
    assert "the prior of last.ckpt stays standard normal: 500 of 500 latents are not finite" in caplog.text


# --- stopped ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(compose, tmp_path_factory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    cfg = compose(*QUICK, f"run_dir={folder}")
    run = stages.ready(cfg).open(OmegaConf.to_yaml(cfg, resolve=True))
    with run.held(), Listener() as listener:
        attempt(cfg, run, listener)
    assert torch.load(run.last, weights_only=True)["state_dict"]["prior.weights"].numel()  # it is fitted
    return folder


@pytest.mark.parametrize(
    ("hook", "at", "saved"),
    [
        ("on_train_batch_start", 3, 4),  # before a step that a validation follows
        pytest.param("teardown", 10, 10, marks=pytest.mark.long),
        pytest.param("on_train_batch_start", 4, 5, marks=pytest.mark.long),  # before a step: it is done, and saved
        pytest.param("on_train_batch_end", 8, 8, marks=pytest.mark.long),
        pytest.param("on_validation_batch_start", 4, 4, marks=pytest.mark.long),
        pytest.param("on_validation_epoch_end", 8, 8, marks=pytest.mark.long),
        pytest.param("on_train_batch_start", 9, 10, marks=pytest.mark.long),  # before the last step
        pytest.param("on_validation_end", 10, 10, marks=pytest.mark.long),
        pytest.param("on_train_end", 10, 10, marks=pytest.mark.long),
    ],
)
def test_told_to_stop_it_saves_and_goes_on_as_if_nothing_had_been(train, straight, tmp_path, hook, at, saved):
    """SIGTERM, wherever it comes."""
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        train(send(hook, at))
    assert stop.value.code == 128 + signal.SIGTERM
    assert json.loads((folder / "status.json").read_text())["state"] == "preempted"
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == saved
    assert train().finished and not unequal(straight, folder)


@pytest.mark.long
def test_told_to_stop_at_the_very_end_it_repeats_the_end(train, straight, tmp_path):
    told = "callbacks.pictures._target_=test_training.Told"
    with pytest.raises(SystemExit) as stop:
        train(told)
    assert stop.value.code == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "preempted"
    assert train().finished and not unequal(straight, tmp_path / "run")


@pytest.mark.parametrize(
    ("hook", "saved"),
    [("on_save_checkpoint", 6), pytest.param("on_train_batch_start", 7, marks=pytest.mark.long)],
)
def test_ctrl_c_cancels_with_everything_saved(train, straight, tmp_path, hook, saved):
    """Also when it comes during a save, which is then finished first."""
    with pytest.raises(SystemExit) as stop:
        train(send(hook, 6, signal.SIGINT))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert stop.value.code == 128 + signal.SIGINT and status["state"] == "cancelled" and "error" not in status
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == saved
    assert train().finished and not unequal(straight, tmp_path / "run")


def test_what_follows_a_finished_run_is_not_begun(train):
    """SIGTERM when all is done: the run is finished, and the process, which may have others to train, ends."""
    before = signal.getsignal(signal.SIGTERM)

    class Late(RunFolder):
        def set_status(self, state: str, **facts: object) -> None:
            super().set_status(state, **facts)
            if state == "finished":
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr("vcd.stages.RunFolder", Late)
        train(PLAIN, "trainer.max_steps=1")
    assert stop.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_between_any_two_writes_it_goes_on_as_if_nothing_had_been(train, straight, tmp_path, monkeypatch):
    """The folder as it is after every write is what `kill -9` may leave there."""
    states: dict[tuple[str, ...], Path] = {}
    replace = os.replace

    def watched(source, target, **options) -> None:
        replace(source, target, **options)
        run = tmp_path / "run"
        key = tuple(
            str(files_of.read_bytes()) for files_of in (run / "last.ckpt", run / "metrics.csv") if files_of.exists()
        )
        if run in Path(target).parents and key not in states:
            states[key] = shutil.copytree(run, tmp_path / f"state{len(states)}")

    monkeypatch.setattr(os, "replace", watched)
    train()
    monkeypatch.setattr(os, "replace", replace)
    assert len(states) > 12
    for state in states.values():
        shutil.rmtree(tmp_path / "run")
        state.rename(tmp_path / "run")
        assert train().finished and not unequal(straight, tmp_path / "run"), state.name


def test_a_changed_interval_moves_no_row(train, tmp_path):
    """A checkpoint from before a validation that is no longer due when the run goes on."""
    with pytest.raises(SystemExit):
        train(PLAIN, send("on_validation_batch_start", 4))
    run = train(PLAIN, "trainer.val_check_interval=7")
    assert rows(run.path) == {2: {"train"}, 5: {"train"}, 6: {"val"}, 8: {"train"}, 9: {"train", "val"}}


# --- refused, deleted, damaged ----------------------------------------------------------------------------------------


def test_a_run_that_is_refused_leaves_no_folder(train, tmp_path):
    with pytest.raises(Exception, match="number of levels"):
        train("T=0")
    assert not (tmp_path / "run").exists()


def test_the_folder_of_somebody_else_is_not_filled(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="run_dir=.*run holds other files, and no run of vcd: choose another run_dir"):
        train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="run_dir=.*file is a file: choose another run_dir"):
        train(folder=tmp_path / "file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train.log").write_text("of a start that was refused")
    assert train(PLAIN, "trainer.max_steps=1", folder=tmp_path / "empty").finished


@pytest.mark.parametrize("again", [False, True])
def test_a_run_folder_that_is_deleted_is_not_a_full_disk(train, tmp_path, again):
    delete = f"+callbacks.delete={{_target_: test_training.Delete, at: 4, again: {again}}}"
    with pytest.raises(UserError, match="run was deleted while it was being trained, and with it all that was saved"):
        train(delete)
    assert not (tmp_path / "run").exists() or not [*(tmp_path / "run").iterdir()]


@pytest.mark.long
def test_what_killed_processes_left_half_written_is_swept_away(train, tmp_path):
    with pytest.raises(SystemExit):
        train(send("on_train_batch_start", 4))
    for left in ("last.ckpt.123", "status.json.4", "pictures/samples-0000004.png.4"):
        path = tmp_path / "run" / left
        path.with_name(f"{files.PREFIX}{path.name}").write_text("half")
    run = train()
    assert not list(run.path.rglob(".*"))


def test_a_damaged_status_is_mended_by_the_same_command(train, tmp_path, caplog):
    train(PLAIN, "trainer.max_steps=1")
    (tmp_path / "run" / "status.json").write_text('{"state": "fini')
    run = train(PLAIN, "trainer.max_steps=1")
    assert run.finished and "status.json cannot be read" in caplog.text


def test_the_traceback_of_a_failure_goes_when_the_run_is_finished(compose, tmp_path):
    run = RunFolder(run_dir=str(tmp_path / "run"), identity="0123abcd-seed0").open("seed: 0\n")
    run.set_status("running", step=3)
    run.fail(ValueError("of a failure"), None)
    run.set_status("running")
    assert "of a failure" in (run.path / "error.txt").read_text()
    run.set_status("finished")
    assert run.finished and not (run.path / "error.txt").exists()


def test_damaged_metrics_are_one_sentence(train, tmp_path):
    with pytest.raises(SystemExit):
        train(send("on_train_batch_start", 4))
    for damaged in (b"step,train/loss\n2,abc\n3,1.0\n", b"step,train/loss\n2\n", b"a\n1\n", b"\xff\xfe\n"):
        (tmp_path / "run" / "metrics.csv").write_bytes(damaged)
        with pytest.raises(UserError, match=r"metrics.csv (is damaged in line \d|cannot be read)"):
            train()


def test_a_line_that_was_not_finished_does_not_count(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"step,train/loss\r\n2,1.5\r\n5,1e-")
    assert files.read_steps(tmp_path / "metrics.csv") == [{"step": "2", "train/loss": "1.5"}]


class Untyped(L.Callback):
    """A user's own callback, whose parameters have no types."""

    def __init__(self, word) -> None:
        self.word = word


def test_a_callback_of_ones_own_needs_no_types(compose):
    from vcd import schema

    schema.check_parts(compose(*QUICK, "+callbacks.mine={_target_: test_training.Untyped, word: hello}"))
