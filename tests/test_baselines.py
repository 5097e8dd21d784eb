"""DDPM, Bansal and Rissanen: their objectives and samplers against closed forms and diffusers; what they refuse."""

import diffusers
import pytest
import torch
from conftest import TINY, scramble
from hydra.utils import instantiate
from test_samplers import N, Ramp, Restorer, restorer, sample

from vcd import training
from vcd.batch import Condition, Degraded
from vcd.cli import explain
from vcd.degradations.noise import Noise
from vcd.predictions import Eps
from vcd.randomness import PerImage
from vcd.samplers import DDIM, Cold, Move, Naive, Sequential
from vcd.schedules import Cosine, Linear
from vcd.spaces import Pixels
from vcd.starts import Black, TrainSet

pytestmark = pytest.mark.usefixtures("seed")


@pytest.fixture
def build(compose):
    """build("model=ddpm", ...): a tiny model with weights that are not zero."""

    def build(*overrides: str):
        return scramble(training.build(compose(*(o for o in TINY if o != "T=3"), *overrides)), std=0.1)

    return build


def batch_of(model, n: int = 12) -> Degraded:
    x0 = torch.rand(n, 1, 8, 8) * 2 - 1
    D, t = model.degradation, torch.arange(n) % model.degradation.T + 1
    s, eps = model.prediction.level(t), D.draw(x0)
    return Degraded(x0, t, s, D(x0, t, eps), D(x0, s, eps), eps, torch.zeros(n, dtype=torch.long))


# --- ddpm and ddim against diffusers ----------------------------------------------------------------------------------


class Network:
    """Any function of (x_t, t): what matters is that both sides get the same outputs."""

    def __init__(self, D: Noise):
        self.degradation, self.space, self.prediction = D, Pixels(), Eps()

    def eps(self, x, t):
        return torch.sin(0.5 * x + 0.01 * t) + 0.3 * x.roll(1, -1).tanh()

    def restore(self, x_t, t, s, condition):
        return self.prediction.read(self.eps(x_t, t[0]), x_t, t, s, self.degradation)


def exactly(schedule, T: int) -> Noise:
    """In float64, so that a loop of 1,000 steps shows the algorithm and not the rounding of either side."""
    D, alpha_bar = Noise(T=T, schedule=schedule), schedule.alpha_bar(T)
    D.signal, D.noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return D


def with_our_table(scheduler, D: Noise):
    """Their betas are ours, to float32; then the same float64 table for both."""
    torch.testing.assert_close(scheduler.alphas_cumprod, D.signal[1:].square().float(), rtol=1e-4, atol=1e-6)
    scheduler.alphas_cumprod = D.signal[1:] ** 2
    return scheduler


def ours(D: Noise, sampler, x_T):
    return sampler(Network(D), x_T, PerImage(0, range(N))).states.flip(0)


def replay():
    """The noise that our sampler draws, in its order."""
    randomness = PerImage(0, range(N))
    while True:
        yield randomness.normal(*SHAPE)


SHAPE = (3, 8, 8)
CLIP = pytest.mark.parametrize("clip", [True, False])
SCHEDULES = pytest.mark.parametrize(("ours_", "theirs"), [(Linear(), "linear"), (Cosine(), "squaredcos_cap_v2")])


@pytest.mark.parametrize("clip", [True, pytest.param(False, marks=pytest.mark.long)])
@SCHEDULES
def test_ancestral_sampling_is_that_of_diffusers_over_the_whole_loop(ours_, theirs, clip):
    T, x = 1000, torch.randn(N, *SHAPE, dtype=torch.float64)
    D = exactly(ours_, T)
    states = ours(D, DDIM(eta=1.0, clip=clip), x)
    scheduler = diffusers.DDPMScheduler(T, beta_schedule=theirs, clip_sample=clip, variance_type="fixed_small")
    with_our_table(scheduler, D)
    net, noise = Network(D), replay()
    for i, t in enumerate(scheduler.timesteps):
        eps = next(noise)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, eps=eps, **__: eps)
            x = scheduler.step(net.eps(x, t + 1), t, x).prev_sample
        torch.testing.assert_close(states[i + 1], x, rtol=0, atol=1e-5 * max(1.0, x.abs().max().item()))


@CLIP
@SCHEDULES
@pytest.mark.parametrize(("eta", "steps"), [(0.0, 50), (0.0, 1000), (0.5, 20), (1.0, 10)])
def test_ddim_is_that_of_diffusers_over_the_whole_loop(ours_, theirs, eta, steps, clip):
    T, x = 1000, torch.randn(N, *SHAPE, dtype=torch.float64)
    D = exactly(ours_, T)
    states = ours(D, DDIM(eta=eta, steps=steps, clip=clip), x)
    scheduler = diffusers.DDIMScheduler(T, beta_schedule=theirs, clip_sample=clip, timestep_spacing="trailing")
    with_our_table(scheduler, D).set_timesteps(steps)
    net, noise = Network(D), replay()
    for i, t in enumerate(scheduler.timesteps):
        eps = next(noise) if eta else None
        x = scheduler.step(
            net.eps(x, t + 1), t, x, eta=eta, variance_noise=eps, use_clipped_model_output=True
        ).prev_sample
        torch.testing.assert_close(states[i + 1], x, rtol=0, atol=1e-5 * max(1.0, x.abs().max().item()))


def test_ddim_with_eta_1_has_the_mean_and_variance_of_the_posterior():
    """Ho et al. 2020, eq. 7, for jumps too: q(x_s | x_t, x_0) of the chain x_0 -> x_s -> x_t."""
    D = Noise(T=20, schedule=Cosine())
    model, n = restorer(D), 20_000
    for level, below in ((20, 15), (9, 8), (3, 1)):
        a_t, a_s = D.signal[level].double() ** 2, D.signal[below].double() ** 2
        x, x0 = torch.randn(1, 1, 8, 8).expand(n, -1, -1, -1), model.x0[:1].expand(n, -1, -1, -1)
        one = Restorer(D, x0, torch.zeros_like(x0))
        t, s = torch.full((n,), level), torch.full((n,), below)
        x_s = DDIM(eta=1.0).step(one, Move(x, t, s, Condition(), lambda: torch.randn(n, 1, 8, 8))).x
        a = a_t / a_s
        mean = (a_s.sqrt() * (1 - a) * x0[0] + a.sqrt() * (1 - a_s) * x[0]) / (1 - a_t)
        std = ((1 - a_s) / (1 - a_t) * (1 - a)).sqrt()
        torch.testing.assert_close(x_s.mean(0), mean.float(), rtol=0, atol=5 * std.item() / n**0.5)
        assert x_s.std(0).mean().item() == pytest.approx(std.item(), rel=0.01)


# --- steps ------------------------------------------------------------------------------------------------------------

EVERY = [Cold, Naive, Sequential, lambda steps: DDIM(eta=1.0, steps=steps), lambda steps: DDIM(eta=0.0, steps=steps)]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("steps", [1, 4, 7, 20])
def test_with_a_perfect_restorer_any_number_of_steps_returns_x0(make, steps):
    model = restorer(Noise(T=20, schedule=Cosine()) if make not in EVERY[:3] else Ramp(T=20))
    trajectory = sample(make(steps=steps), model)
    torch.testing.assert_close(trajectory.x0, model.x0, rtol=0, atol=2e-5)
    assert len(trajectory.states) == len(trajectory.levels) == steps + 1
    assert trajectory.levels[0] == 0 and trajectory.levels[-1] == 20 and trajectory.levels.diff().min() > 0
    assert [t for t, _, _ in model.asked] == trajectory.levels.flip(0)[:-1].tolist()


def test_a_jump_asks_for_the_level_it_lands_on():
    model = restorer(Ramp(T=6))
    trajectory = sample(Sequential(steps=3), model)
    assert [(t, s) for t, s, _ in model.asked] == [(6, 4), (4, 2), (2, 0)]
    for level, state in zip(trajectory.levels, trajectory.states, strict=True):
        torch.testing.assert_close(state, model.degradation(model.x0, level.expand(N)), rtol=0, atol=1e-6)


def test_one_shot_is_the_first_look(build):
    model = build("model=bansal", "T=5", "sampler=one_shot")
    trajectory = model.sample(PerImage(0, range(3)))
    x_T = trajectory.states[-1]
    t = torch.full((3,), 5)
    torch.testing.assert_close(trajectory.x0, model.network(x_T, t, torch.zeros_like(t)))


def test_fewer_states_can_be_kept_without_changing_the_samples():
    model = restorer(Ramp(T=20), error=0.1)
    x_T = model.degradation(model.x0, torch.full((N,), 20))
    whole, ends, some = (Cold()(model, x_T, PerImage(0, range(N)), keep=keep) for keep in (None, 2, 6))
    assert ends.levels.tolist() == [0, 20] and some.levels.tolist() == [0, 4, 8, 12, 16, 20]
    for few in (ends, some):
        assert torch.equal(few.states, whole.states[few.levels])
        assert few.x0hat.shape[0] == len(few.levels) - 1
        assert torch.equal(few.x0hat, whole.x0hat[few.levels[1:] - 1])  # as seen from level t, at index t - 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["prediction=xt", "sampler.steps=2"], ["asks for levels", "the next level only"]),
        (["prediction=x0", "sampler=sequential"], ["asks for levels", "the clean image only", "sampler=cold"]),
        (["prediction=xt", "sampler=cold"], ["the next level only", "sampler=sequential"]),
        (["prediction=vxt", "sampler.steps=7", "T=6"], ["sampler.steps=7", "T=6"]),
        (["degradation=black_blur", "prediction=x0", "sampler=ddim"], ["degradation=noise", "cold"]),
        (["model=ddpm", "degradation=blur"], ["model=ddpm", "degradation=noise"]),
        (["model=ddpm", "degradation=black_noise", "prediction=x0"], ["noise"]),
        (
            ["model=ddpm", "prediction=xt", "sampler=sequential"],
            ["model=ddpm", "prediction=eps, v, edm, x0 or difference"],
        ),
        (["model=bansal", "prediction=xt", "sampler=sequential"], ["model=bansal", "prediction=x0"]),
        (["model=rissanen", "prediction=x0"], ["model=rissanen", "prediction=xt or vxt"]),
        (["model=ddpm", "sampler.eta=1.5"], ["sampler.eta=1.5"]),
        (["sampler.steps=0"], ["sampler.steps=0"]),
        (["start=train_set", "start.images=0"], ["start.images=0"]),
        (["start=black", "start.noise=-1.0"], ["start.noise=-1"]),
    ],
    ids=lambda x: " ".join(x) if "=" in x[0] else "",
)
def test_what_cannot_be_is_refused_with_the_reason(compose, overrides, words):
    with pytest.raises(Exception) as caught:
        training.build(compose(*overrides))
    sentence = explain(caught.value, "train")
    assert sentence and all(word in sentence for word in words), sentence


# --- objectives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ddpm", "bansal", "rissanen"])
def test_what_the_algorithm_box_says_of_the_defaults(compose, model):
    cfg = compose(f"model={model}", "dataset=mnist")
    expected = {"ddpm": (1000, "noise.Noise"), "bansal": (50, "GaussianBlur"), "rissanen": (100, "blur.Blur")}[model]
    assert (cfg.T, cfg.degradation._target_.endswith(expected[1])) == (expected[0], True)
    assert compose(f"model={model}", "T=7").T == 7
    built = training.build(compose(f"model={model}", "T=7", *(["sampler.steps=7"] if model == "ddpm" else [])))
    assert built.latents(PerImage(0, range(2))) is None and built.network.injection is None


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_ddpm_descends_the_squared_error(build, prediction):
    model = build("model=ddpm", f"prediction={prediction}").eval()
    batch = batch_of(model)
    out = model.network(batch.x_t, batch.t, torch.zeros_like(batch.t))
    signal, noise = (table[batch.t].view(-1, 1, 1, 1) for table in (model.degradation.signal, model.degradation.noise))
    target = {"eps": batch.eps, "v": signal * batch.eps - noise * batch.x0, "x0": batch.x0}[prediction]
    losses = model.losses(batch)
    torch.testing.assert_close(losses.total, (out - target).pow(2).mean())
    torch.testing.assert_close(losses.terms["loss"], (out - target).pow(2).mean((1, 2, 3)))


def test_bansal_descends_the_absolute_error(build):
    model = build("model=bansal").eval()
    batch = batch_of(model)
    out = model.network(batch.x_t, batch.t, torch.zeros_like(batch.t))
    torch.testing.assert_close(model.losses(batch).total, (out - batch.x0).abs().mean())


def test_rissanen_has_the_noise_inside_the_base_and_trains_every_level(build):
    """Rissanen et al. 2022, eq. 8: ||u_{k-1} - (v + f(v, k))||^2 with v = u_k + sigma eps, summed over pixels."""
    model = build("model=rissanen", "T=5").train()
    batch = batch_of(model)
    assert set(batch.t.tolist()) == {1, 2, 3, 4, 5}
    torch.manual_seed(4)
    losses = model.losses(batch)
    torch.manual_seed(4)
    v = batch.x_t + 0.02 * torch.randn_like(batch.x_t)
    previous = model.degradation(batch.x0, batch.t - 1)
    error = previous - (v + model.network(v, batch.t, batch.t - 1))
    torch.testing.assert_close(losses.terms["loss"], error.square().sum((1, 2, 3)))
    torch.testing.assert_close(losses.total, error.square().sum((1, 2, 3)).mean())


def test_rissanen_samples_as_in_its_algorithm_2(build):
    """u_K: blurred training image + delta eps; u_{k-1} = u_k + f(u_k, k) + delta eps; the mean at the last step."""
    model = build("model=rissanen", "T=4").eval()
    images = torch.rand(30, 1, 8, 8) * 2 - 1
    model.start.fit([images], model.degradation)
    trajectory = model.sample(PerImage(3, range(4)))
    randomness = PerImage(3, range(4))
    u = model.start.sample(randomness) + 0.025 * randomness.normal(1, 8, 8)
    for k in (4, 3, 2, 1):
        t = torch.full((4,), k)
        mean = u + model.network(u, t, t - 1)
        torch.testing.assert_close(trajectory.states[k - 1], mean, rtol=0, atol=1e-5)
        u = mean + 0.025 * randomness.normal(1, 8, 8) if k > 1 else mean


# --- where they start -------------------------------------------------------------------------------------------------


def test_the_train_set_start_is_a_bounded_set_of_degraded_training_images(build):
    D = Ramp(T=6)
    start, images = TrainSet(channels=1, size=8, images=7), torch.rand(20, 1, 8, 8)
    start.fit(images.split(4), D)
    torch.testing.assert_close(start.x_T, D(images[:7], torch.full((7,), 6)))
    drawn = start.sample(PerImage(0, range(2000)))
    which = (drawn[:, None] - start.x_T).abs().flatten(2).amax(2).argmin(1)
    assert torch.equal(drawn, start.x_T[which]) and which.bincount(minlength=7).min() > 200
    start.fit([images[:3]], D)  # fewer than asked for: each in turn
    torch.testing.assert_close(start.x_T[:6], D(images[:3], torch.full((3,), 6)).repeat(2, 1, 1, 1))

    model = build(
        "model=rissanen", "degradation=black_blur", "T=6", "start.images=9"
    )  # as the original's README had it
    model.start.fit([images], model.degradation)
    assert len(model.start.x_T) == 9 and (model.start.x_T == -1).all()
    again = build("model=rissanen", "degradation=black_blur", "T=6", "start.images=9")
    again.load_state_dict(model.state_dict())


def test_the_noise_that_breaks_the_symmetry_is_really_there(build):
    x = Black(channels=1, size=8, noise=0.004).sample(PerImage(0, range(500)))
    assert (x + 1).std().item() == pytest.approx(0.004, rel=0.02)
    model = build("model=bansal", "kernel.T=3")
    model.start.fit([torch.rand(40, 1, 8, 8) * 2 - 1], model.degradation)
    x = model.start.sample(PerImage(0, range(500)))
    assert (x - x.mean((2, 3), keepdim=True)).std().item() == pytest.approx(0.004, rel=0.03)
    assert model.start.sample(PerImage(0, [7])).sub(x[7]).abs().max() < 1e-6


# --- without latents --------------------------------------------------------------------------------------------------


def test_a_model_without_latents_can_be_trained_on_its_own_rollouts(build):
    """VCD without its encoder."""
    model = build("model=rissanen", "degradation=black_blur", "T=6", "perturbation=rollout", "perturbation.sigma=0.0")
    batch = batch_of(model)
    model.perturbation.true_share, model.perturbation.p, model.perturbation.p_warmup = 0.0, 0.0, 0.0
    model.perturbation.longest = None
    shown = model.train().shown(batch).network
    x = model.degradation(batch.x0, torch.full_like(batch.t, 6))
    for level in range(6, 1, -1):
        t = torch.full_like(batch.t, level)
        x = model.restore(x, t, t - 1)
        at = batch.t == level - 1
        torch.testing.assert_close(shown[at], x[at], rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", ["ddpm", "bansal", "rissanen"])
@pytest.mark.long
def test_the_command_line_trains_and_samples(command, tmp_path, model):
    from conftest import SHORT

    short = [o for o in SHORT if not o.startswith("prior")]
    arguments = [*short, f"model={model}", *(["sampler.steps=3"] if model == "ddpm" else [])]
    trained = command("train", *arguments, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    ckpt = trained.stdout.splitlines()[-1].split(maxsplit=1)[1]
    sampled = command("sample", f"ckpt={ckpt}", "n=5", "batch_size=2", f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    assert (tmp_path / "out" / "sequences.png").exists()


def test_the_start_is_built_by_hydra(compose):
    start = instantiate(compose("start=train_set", "start.images=4").start)
    assert start.x_T.shape == (4, 1, 8, 8)
