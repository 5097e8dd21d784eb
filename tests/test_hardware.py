"""What training takes and what it is given: memory that is counted, precision that is chosen."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SHORT, TINY
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

from vcd import checkpoints, hardware, memory, training
from vcd.batch import Degraded
from vcd.callbacks.compiled import compile_in_place
from vcd.cli import CONF
from vcd.errors import UserError
from vcd.models.base import Losses

pytestmark = pytest.mark.usefixtures("seed")


def batch_of(model, n: int, channels: int = 1, size: int = 8) -> Degraded:
    D, x0 = model.degradation, torch.rand(n, channels, size, size) * 2 - 1
    t = torch.full((n,), D.T)
    s, eps = model.prediction.level(t), D.draw(x0)
    return Degraded(x0, t, s, D(x0, t, eps), D(x0, s, eps), eps, torch.zeros(n, dtype=torch.long))


@pytest.fixture
def model(compose):
    return training.build(compose(*TINY, "model=plain"))


def test_what_autograd_keeps_is_counted_once_and_without_the_weights(model, monkeypatch):
    """A layer whose backward pass needs its input and nothing else: n x 64 numbers."""
    layer = nn.Linear(64, 32, bias=False)
    monkeypatch.setattr(model, "losses", lambda batch: Losses(layer(batch.x0.flatten(1) * 1.0).sum(), {}))
    model.weights = layer  # weights of the model, which are there anyway
    found = memory.estimate(model, batch_of(model, 2))
    assert found.an_image == round(memory.BACKWARD * 64 * 4)
    assert found.fixed == 5 * 4 * sum(p.numel() for p in model.parameters())


def test_the_estimate_is_the_same_for_every_batch(model):
    batch = batch_of(model, 24)
    found = memory.estimate(model, batch)
    kept = memory._kept(model, batch, 24)
    assert 24 * found.an_image == pytest.approx(memory.BACKWARD * kept, rel=0.05)


def test_an_estimate_changes_nothing(compose):
    model = training.build(compose(*TINY, "model=vwd", "model.calibrated=true"))
    batch = batch_of(model.eval(), 2)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    memory.estimate(model, batch)
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_largest_batch_leaves_a_tenth_free():
    found = memory.Estimate(fixed=1000, an_image=10)
    assert found.largest(10_000) == 800 and found.total(800) == 9000 and found.largest(1000) == 0


@pytest.mark.parametrize(("gain", "expected"), [(1.29, "32-true"), (1.31, "bf16-mixed"), (0.5, "32-true")])
def test_bf16_is_chosen_on_a_cpu_only_where_it_pays(monkeypatch, gain, expected):
    monkeypatch.setattr(hardware, "_seconds", lambda dtype, width, size: gain if dtype == torch.float32 else 1.0)
    chosen, why = hardware.precision(torch.device("cpu"), width=64, size=28)
    assert chosen == expected and f"{gain:.2f} times" in why


def test_what_is_neither_cuda_nor_a_cpu_computes_in_float32():
    assert hardware.precision(torch.device("mps"), width=64, size=28)[0] == "32-true"


def test_free_memory_is_less_than_there_is():
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.available(torch.device("cpu")) <= whole


@pytest.mark.long
def test_compiled_training_needs_two_graphs_a_module_whatever_the_levels_and_rollouts():
    """One for training, one for the teacher: t, s and the shrinking batches of rollouts make no other; nothing breaks.

    In a process of its own: the types that tests check would break the graphs.
    """
    script = subprocess.run([sys.executable, Path(__file__).with_name("compiled.py")], capture_output=True, text=True, timeout=280,
                            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(CONF.parent), str(Path(__file__).parent)])})  # fmt: skip
    assert script.returncode == 0, script.stderr
    found = json.loads(script.stdout)
    assert found["graphs"] == 4 and found["breaks"] == 0
    assert len(found["sizes"]) > 2
    assert found["names"]
    assert found["compiled"] == pytest.approx(found["eager"], rel=1e-4)


def test_what_lightning_or_slurm_does_not_agree_to_is_one_sentence(monkeypatch):
    with pytest.raises(UserError, match="trainer: Precision 17 is invalid"):
        hardware.trainer(precision=17)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    with pytest.raises(UserError, match=r"started 1 processes, .* are 2: set hydra.launcher.tasks_per_node=2 and"):
        hardware.trainer(accelerator="cpu", strategy="ddp", devices=2)
    assert hardware.trainer(accelerator="cpu", devices=1).num_devices == 1


def test_compiling_without_a_compiler_is_one_sentence(model, monkeypatch):
    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(UserError, match=r"trainer.compile=true needs a C\+\+ compiler"):
        compile_in_place(model)


@pytest.mark.long
def test_a_run_says_what_it_takes_and_goes_on_in_the_precision_it_began_with(command, tmp_path):
    """precision=auto is tried where the run begins; elsewhere the trial might come out otherwise."""
    own = [*SHORT, "trainer.precision=auto", "trainer.estimate_memory=true", "callbacks.pictures.n=1"]
    first = command("train", *own, "trainer.max_steps=20", "runs=a", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (run,) = (tmp_path / "a").iterdir()
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    chosen = checkpoint[checkpoints.CONFIG]["trainer"]["precision"]
    assert chosen in ("32-true", "bf16-mixed") and f"precision: {chosen} (" in first.stdout
    assert "GiB for a step of 16 images" in first.stdout and "batch_size=" in first.stdout
    (run / "status.json").write_text((run / "status.json").read_text().replace("finished", "failed"))
    again = command("train", *own, "trainer.max_steps=20", "runs=a", cwd=tmp_path)
    assert again.returncode == 0 and f"precision: {chosen} (as the run began)" in again.stdout, again.stderr


def test_gradients_are_clipped_in_bf16_before_the_fused_step(model):
    from pytorch_lightning.plugins.precision import MixedPrecision

    (optimizer,), _ = model.configure_optimizers()
    assert optimizer.defaults["fused"]
    model.losses(batch_of(model, 4)).total.backward()
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 0.01)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert norm <= 0.0101


def test_the_fused_step_is_adam(model):
    """Whatever layout feature maps, and with them gradients, have: a fused step on tensors that lie otherwise is wrong."""
    before, other, batch = copy.deepcopy(model), copy.deepcopy(model), batch_of(model, 16)
    (fused,), _ = model.configure_optimizers()
    group = fused.param_groups[0] | {"lr": 3e-3}  # past the warm-up
    fused.param_groups[0]["lr"] = group["lr"]
    plain = torch.optim.Adam(other.parameters(), lr=group["lr"], betas=group["betas"], eps=group["eps"], foreach=False)
    for _ in range(3):
        fused.zero_grad()
        model.losses(batch).total.backward()
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            theirs.grad = mine.grad if mine.grad is None else mine.grad.contiguous().clone()
        fused.step()
        plain.step()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=name)
    assert (
        max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), before.parameters(), strict=True))
        > 5e-3
    )


@pytest.mark.long
@pytest.mark.timeout(600)
def test_bf16_reaches_the_validation_loss_of_float32_within_a_percent(command, tmp_path):
    arguments = ["dataset=digits", "model=vwd", "degradation=black_blur", "prior=independent", "trainer.max_steps=200", "trainer.val_check_interval=200",
                 "callbacks.pictures.n=1", "trainer.enable_progress_bar=false"]  # fmt: skip
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        process = command("train", *arguments, f"trainer.precision={precision}", cwd=tmp_path, OMP_NUM_THREADS="1")
        assert process.returncode == 0, process.stderr
        losses.append(json.loads((Path(process.stdout.split()[-1]).parent / "status.json").read_text())["val_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.01) and losses[1] != losses[0]
