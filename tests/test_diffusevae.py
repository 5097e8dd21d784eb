"""DiffuseVAE: a frozen VAE guesses, any model refines; and both live in one checkpoint."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SHORT, TINY, scramble
from omegaconf import OmegaConf
from test_training import unequal

from vcd import __version__, checkpoints, restoring, stages, steering, training
from vcd.batch import UNCONDITIONAL, Condition, Degraded
from vcd.cli import CONF
from vcd.errors import UserError
from vcd.randomness import PerImage

pytestmark = pytest.mark.usefixtures("seed")
VAE = ["experiment=vae_digits", *(o for o in TINY if not o.startswith(("T=", "batch_size")))]


def save(cfg, path, seed=1):
    """A checkpoint with scrambled weights, as training would leave it."""
    model = scramble(training.build(cfg), 0.1, seed)
    torch.save({checkpoints.CONFIG: OmegaConf.to_container(cfg, resolve=True), checkpoints.VERSION: __version__,
                "state_dict": model.state_dict(), "global_step": 1}, path)  # fmt: skip
    return model


def composed(compose, overrides):
    cfg = compose(*overrides)
    cfg.run_dir = "nowhere"
    return cfg


@pytest.fixture
def refiner(compose, tmp_path):
    """refiner("key=value", ...): a model that refines the guesses of the same scrambled VAE, scrambled as well."""
    save(composed(compose, VAE), tmp_path / "stage1.ckpt")

    def make(*overrides: str, filled: bool = True, seed: int = 2):
        cfg = composed(
            compose,
            [*TINY, "model=diffusevae", "T=8", "sampler.steps=null", *overrides, f"stage1={tmp_path / 'stage1.ckpt'}"],
        )
        stages.ready(cfg)
        model = scramble(training.build(cfg), 0.1, seed)
        if filled:
            stages.fill(model, stage1=cfg.stage1, autoencoder=cfg.space.get("ckpt"))
        model.cfg = cfg
        return model.eval()

    return make


def batch_of(model, n=6) -> Degraded:
    x0 = torch.rand(n, 1, 8, 8).mul(255).round().div(127.5) - 1
    t = torch.arange(n) % model.degradation.T + 1
    s, eps = model.prediction.level(t), model.degradation.draw(x0)
    D = model.degradation
    return Degraded(x0, t, s, D(x0, t, eps), D(x0, s, eps), eps, torch.zeros(n, dtype=torch.long))


def numbers(n=3, seed=0) -> PerImage:
    return PerImage(seed, range(n))


# --- the two forms ----------------------------------------------------------------------------------------------------


def test_form_2_is_the_papers_chain(refiner):
    """q(x_t | x_{t-1}, xhat) of eq. 12, walked backwards as published, against ours: x_t - xhat for t > 0."""
    model = refiner("network.unet.shift=true", "sampler=ancestral", "sampler.clip=false", "prediction=eps")
    xhat = model.guess.condition(model.guess.draw(numbers()), model.space).image.double()
    D, told = model.double().degradation, Condition(image=xhat)
    raw = copy.deepcopy(model.network)
    raw.shift = False  # reads x_t as it is, and xhat beside it
    noise = numbers()
    y = noise.normal(1, 8, 8).double()
    ours = model.walk(y, noise.take(), condition=told)
    x = xhat + y
    ab = (D.signal.double() ** 2).tolist()
    for t in range(D.T, 0, -1):
        level = torch.full((3,), t)
        with torch.no_grad():
            eps = raw(x, level, torch.zeros_like(level), told)
        x0hat = (x - xhat - (1 - ab[t]) ** 0.5 * eps) / ab[t] ** 0.5
        beta = 1 - ab[t] / ab[t - 1]
        c1, c2 = ab[t - 1] ** 0.5 * beta / (1 - ab[t]), (1 - beta) ** 0.5 * (1 - ab[t - 1]) / (1 - ab[t])
        sigma = (beta * (1 - ab[t - 1]) / (1 - ab[t])) ** 0.5
        x = c1 * x0hat + c2 * x + (1 - c2) * xhat + sigma * noise.normal(1, 8, 8)
        torch.testing.assert_close(x - xhat, ours.states[t - 1], rtol=1e-5, atol=1e-5)


def test_form_2_is_form_1_with_other_first_weights(refiner):
    """(W1, W2) reads (y + xhat, xhat) as (W1, W1 + W2) reads (y, xhat): the same trajectories."""
    second, first = refiner("network.unet.shift=true"), refiner()
    entry = first.network.down.layers[0]
    with torch.no_grad():
        entry.weight[:, 1] += entry.weight[:, 0]
    a, b = first.sample(numbers()), second.sample(numbers())
    torch.testing.assert_close(a.states, b.states, rtol=0, atol=2e-4)
    assert not torch.allclose(a.x0, refiner().sample(numbers()).x0, atol=1e-3)


def test_a_network_that_does_not_read_the_guess_is_plain_ddpm(compose, refiner):
    """Bit for bit, in its losses and in its samples."""
    told = refiner()
    plain = training.build(
        composed(compose, [*TINY, "model=ddpm", "T=8", "sampler.steps=null", "network.unet.context=1"])
    ).eval()
    plain.network.load_state_dict(told.network.state_dict())
    for model in (told, plain):
        with torch.no_grad():
            model.network.down.layers[0].weight[:, 1:] = 0
    batch = batch_of(plain)
    assert torch.equal(told.losses(told.told(batch)).total, plain.losses(batch).total)
    assert torch.equal(told.sample(numbers()).states, plain.sample(numbers()).states)


# --- dropping and guidance --------------------------------------------------------------------------------------------


def test_dropping_all_is_the_unconditional_model(refiner):
    model = refiner("guess.drop=1").train()
    batch = batch_of(model)
    told = model.told(batch)
    assert not told.image.any()
    torch.testing.assert_close(model.losses(told).total, model.losses(batch).total, rtol=1e-6, atol=0)
    assert model.eval().told(batch).image.abs().sum() > 0  # never in validation


def test_each_image_is_dropped_on_its_own(refiner):
    model = refiner("guess.drop=0.25").train()
    kept = torch.cat([model.told(batch_of(model, 100)).image.flatten(1).any(1) for _ in range(10)])
    assert 0.68 < kept.float().mean() < 0.82


def test_guidance_runs_through_with_and_without(refiner):
    model = refiner()
    told = model.guess.condition(model.guess.draw(numbers()), model.space)

    def at(weight, condition=told):
        model.guess.weight = weight
        return model.walk(torch.ones(3, 1, 8, 8), numbers(), condition=condition, level=1).x0

    plain, without = at(0), at(0, UNCONDITIONAL)
    assert torch.equal(at(-1), without) and not torch.allclose(plain, without, atol=1e-3)
    torch.testing.assert_close(at(1.5), without + 2.5 * (plain - without), rtol=0, atol=1e-4)


def test_what_is_restored_has_no_guess(refiner):
    """So a model that has never been without one is refused, and one that has restores as without."""
    x, way = torch.rand(3, 1, 8, 8), "own"
    with pytest.raises(UserError, match="train with guess.drop=0.1"):
        restoring.restore(refiner(), way, x, 8, numbers())
    model = refiner("guess.drop=0.1")
    alone = model.walk(x, numbers().take(), condition=UNCONDITIONAL, level=8).x0
    assert torch.equal(restoring.restore(model, way, x, 8, numbers()), alone)


def test_z_is_told_too(refiner):
    model = refiner("guess=vae_z", "injection=emb_add")
    batch = batch_of(model)
    told = model.told(batch)
    assert told.z.shape == (6, 4)
    moved = Degraded(**{**vars(told), "z": told.z + 1})
    assert not torch.equal(model.losses(told).total, model.losses(moved).total)
    assert model.sample(numbers()).x0.isfinite().all()
    with pytest.raises(UserError, match="reads the z of every step"):
        refiner("guess=vae_z", "model=vwd", "degradation=black_blur")


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_stage_1_is_frozen_bit_by_bit(refiner):
    model = refiner("network.unet.dropout=0.1").train()
    before = copy.deepcopy(model.guess.state_dict())
    assert not any(part.training for part in model.guess.frozen.vae.modules())
    (optimizer,), _ = model.configure_optimizers()
    model.losses(model.told(batch_of(model))).total.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.guess.state_dict().items())
    assert all(p.grad is None for p in model.guess.parameters())


def test_one_checkpoint_samples_where_nothing_else_is(refiner, tmp_path, monkeypatch):
    model = refiner()
    torch.save({checkpoints.CONFIG: OmegaConf.to_container(model.cfg, resolve=True), checkpoints.VERSION: __version__,
                "state_dict": model.state_dict(), "global_step": 1}, tmp_path / "both.ckpt")  # fmt: skip
    (tmp_path / "stage1.ckpt").unlink()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    alone, _ = checkpoints.load(tmp_path / "both.ckpt", parts={"guess.weight": 0.0})
    assert torch.equal(alone.sample(numbers()).states, model.sample(numbers()).states)


def test_stage_1_comes_from_its_checkpoint(refiner, tmp_path):
    stage1, _ = checkpoints.load(tmp_path / "stage1.ckpt")
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    model = refiner()
    z = stage1.encode_path(stage1.space.encode(images), numbers(4), temperature=0.0).z[0]
    mean = model.guess.frozen.encode(images).mean
    torch.testing.assert_close(mean, z)
    path = steering.Path(stage1.start.sample(numbers(4)), z[None], numbers(4))
    assert torch.equal(model.guess.frozen.decode(z), stage1.space.decode(steering.decode(stage1, path).x0))
    assert not torch.equal(refiner(filled=False).guess.frozen.encode(images).mean, z)


# --- refiners ---------------------------------------------------------------------------------------------------------

REFINERS = {
    "vwd": ["model=vwd", "degradation=black_blur", "prior=independent"],
    "vcd": ["model=vcd", "degradation=black_blur", "prior=independent"],
    "rissanen": ["model=rissanen"],
    "bansal": ["model=bansal"],
    "ddpm": ["model=ddpm"],
}


@pytest.mark.parametrize("name", REFINERS)
def test_every_model_refines(refiner, name):
    model = refiner(*REFINERS[name], "guess=vae", "T=3").train()
    batch = model.told(batch_of(model))
    loss = model.losses(batch).total
    loss.backward()
    assert loss.isfinite() and model.network.down.layers[0].weight.grad[:, 1].any()
    model.eval()
    x = model.sample(numbers()).x0
    assert x.isfinite().all()
    model.guess.level = 2
    trajectory = model.sample(numbers())
    assert trajectory.levels.tolist() == [0, 1, 2]


def test_a_warm_refiner_is_steered_with_its_guess(refiner):
    model = refiner(*REFINERS["vwd"], "guess=vae", "T=3")
    path = steering.draw(model, numbers())
    assert torch.equal(steering.decode(model, path).x0, model.sample(numbers()).x0)
    found, _ = steering.encode(model, steering.decode(model, path).x0, numbers())
    assert found.code.shape == (3, 4)


def test_stage_1_that_is_none_is_refused(compose, tmp_path):
    save(composed(compose, [*TINY, "model=vwd"]), tmp_path / "vwd.ckpt")
    cfg = composed(compose, [*TINY, "model=diffusevae", f"stage1={tmp_path / 'vwd.ckpt'}"])
    stages.ready(cfg)
    with pytest.raises(Exception, match="stage 1 has one level, and this one has T=3"):
        training.build(cfg)
    with pytest.raises(UserError, match="say whose guess is refined: stage1="):
        stages.ready(composed(compose, [*TINY, "model=diffusevae"]))


# --- by command -------------------------------------------------------------------------------------------------------

STAGE1 = ["experiment=vae_digits", "network.unet.dim=8", "network.encoder.latent=4", "prior.images=300"]


def both(*stage1: str) -> list[str]:
    """Arguments of vcd.train for both stages; stage1: more for the first."""
    short = [o for o in SHORT if not o.startswith(("T=", "prior"))]
    told = ",".join(f"'{o}'" for o in [*STAGE1, *stage1])
    return [*short, "experiment=diffusevae_digits", "T=20", "sampler.steps=5", f"stage1=[{told}]"]


def test_an_array_is_not_submitted_before_its_stage_1_is_there(here):
    """A login node is not for training; SLURM is not asked."""
    said = here("train", "--multirun", "launcher=slurm", "guess.weight=0,1", *both("trainer.max_steps=7"))
    assert "first, and until it is finished: python -m vcd.train --multirun launcher=slurm" in said.sentence
    assert "trainer.max_steps=7" in said.sentence and not [*Path("runs").rglob("status.json")]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_stopped_in_stage_1_the_same_command_ends_as_if_nobody_had(tmp_path):
    """Told to stop, or all of it killed: both stages have the weights of runs without a stop, bit by bit."""
    arguments = both("trainer.max_steps=400", "checkpoint_every=10", "trainer.accelerator=cpu")

    def start(cwd: Path) -> subprocess.Popen:
        cwd.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(CONF.parent)}
        return subprocess.Popen([sys.executable, "-m", "vcd.train", *arguments], cwd=cwd, env=environment,
                                stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip

    def runs(cwd: Path) -> dict[str, Path]:
        return {path.name.split("-")[1]: path for path in (cwd / "runs").iterdir()}

    straight = tmp_path / "straight"
    assert start(straight).wait() == 0
    for how, code in (("told", 128 + signal.SIGTERM), ("killed", -signal.SIGKILL)):
        stopped = tmp_path / how
        process = start(stopped)
        while not list(stopped.glob("runs/*/last.ckpt")):
            assert process.poll() is None
            time.sleep(0.05)
        if how == "told":
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == code
        (first,) = runs(stopped).values()
        step = torch.load(first / "last.ckpt", weights_only=True)["global_step"]
        assert 0 < step < 400, "it was stopped too late to show anything"
        assert start(stopped).wait() == 0
        there, here = runs(straight), runs(stopped)
        assert there.keys() == here.keys() == {"plain", "diffusevae"}
        assert not unequal(there["plain"], here["plain"])
        assert not [said for said in unequal(there["diffusevae"], here["diffusevae"]) if "stage1" not in said]  # a path


@pytest.mark.long
@pytest.mark.timeout(600)
def test_both_stages_by_one_command(command, tmp_path):
    """Stage 1 is trained where it is missing, and found again; the second start has nothing to do."""
    arguments = both("trainer.max_steps=20")
    first = command("train", *arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(runs) == 2 and "stage 1 first: python -m vcd.train" in first.stdout + first.stderr
    again = command("train", *arguments, cwd=tmp_path)
    assert again.returncode == 0 and "nothing to do" in again.stdout + again.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == runs
    last = first.stdout.splitlines()[-1].split(maxsplit=1)[1]
    for task in ("guess_vary", "guess_interpolate", "guess_temperature", "guess_corrupt"):
        steered = command(
            "control", f"task={task}", f"ckpt={last}", "n=2", "variations=2", "weights=3", "out=c", cwd=tmp_path
        )
        assert steered.returncode == 0 and (tmp_path / "c" / f"{task}.png").exists(), steered.stderr
    assert (tmp_path / "c" / "guess_corrupt_curve.png").exists()
    sampled = command("sample", f"ckpt={last}", "n=4", "guidance=1", "out=s", cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
