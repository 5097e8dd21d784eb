"""Score-based models and VDM against closed forms: exact denoisers, exact bounds, orders of convergence."""

import itertools
import math

import pytest
import torch
from hydra.utils import instantiate
from torch.distributions import Normal, kl_divergence

from vcd import bounds, training
from vcd.batch import Condition, Degraded
from vcd.cli import explain
from vcd.degradations.noise import Noise
from vcd.gammas import Fixed, LearnedLinear, LearnedNet
from vcd.level_samplers import Importance
from vcd.levels import per_image
from vcd.likelihood import ode_bits
from vcd.models.vdm import VDM
from vcd.noise_schedules import VP, Geometric, Karras, LogSNR, SubVP
from vcd.predictions import EDM, X0, Difference, Eps, V
from vcd.randomness import PerImage
from vcd.samplers import DDIM, Ancestral, Move
from vcd.schedules import Cosine, Linear
from vcd.solvers import DPMSolver, Euler, Heun, Langevin, ReverseSDE
from vcd.spaces import Bins, Pixels
from vcd.weights import Flat, Likelihood, MinSNR, Preconditioned, Simple

pytestmark = pytest.mark.usefixtures("seed")


def precise(D: Noise, schedule) -> Noise:
    """The same tables in float64, so that a test sees the algorithm and not the rounding."""
    D.signal, D.noise = schedule.signal_and_noise(D.T)
    return D


class Optimal:
    """The posterior mean of x_0 where the data are N(0, v)."""

    def __init__(self, D: Noise, v: float):
        self.degradation, self.space, self.v, self.asked = D, Pixels(), v, 0

    def restore(self, x, t, s, condition=None):
        self.asked += 1
        a, n = self.degradation.at(t)
        return a * self.v * x / (a**2 * self.v + n**2)


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [VP(), LogSNR(), SubVP(), Geometric(), Karras()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("T", [1, 2, 50])
def test_level_0_is_clean_and_noise_grows(schedule, T):
    signal, noise = schedule.signal_and_noise(T)
    assert (signal[0], noise[0]) == (1, 0) and len(signal) == len(noise) == T + 1
    assert (noise.diff() > 0).all() and (signal.diff() <= 0).all() and (signal > 0).all()


def test_the_published_curves():
    T, u = 1000, torch.arange(1001, dtype=torch.float64) / 1000
    signal, noise = VP().signal_and_noise(T)
    torch.testing.assert_close(signal.log(), -(u**2) * (20 - 0.1) / 4 - u * 0.1 / 2)  # Song et al. 2021, eq. 33
    torch.testing.assert_close(SubVP().signal_and_noise(T)[1], noise**2)
    _, sigma = Geometric(sigma_min=0.02, sigma_max=100).signal_and_noise(T)
    torch.testing.assert_close(sigma[1:], 0.02 * 5000 ** torch.linspace(0, 1, T, dtype=torch.float64))
    _, edm = Karras().signal_and_noise(18)
    assert edm[1].item() == pytest.approx(0.002) and edm[-1].item() == pytest.approx(80)
    signal, noise = LogSNR().signal_and_noise(11)
    torch.testing.assert_close(2 * (noise / signal)[1:].log(), torch.linspace(-13.3, 5, 11, dtype=torch.float64))


@pytest.mark.parametrize("schedule", [Linear(), VP(), SubVP(), Karras()], ids=lambda s: type(s).__name__)
def test_levels_between_whole_numbers(schedule):
    D = Noise(T=20, schedule=schedule)
    t = torch.linspace(1, 20, 77)
    signal, noise = D.between(t)
    ratio = (noise / signal).double().log()
    assert (ratio.diff() > 0).all()
    torch.testing.assert_close(D.level_of(ratio), t, rtol=0, atol=1e-3)
    whole = torch.arange(1, 21)
    for real, exact in zip(D.at(whole.float()), D.at(whole), strict=True):
        torch.testing.assert_close(real, exact, rtol=1e-5, atol=1e-6)
    if D.preserving:
        torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=ddpm", "schedule=log_snr", "schedule.gamma_0=6"], ["schedule.gamma_0=6", "schedule.gamma_1=5"]),
        (["model=ddpm", "schedule=ve", "schedule.sigma_min=0"], ["schedule.sigma_min=0"]),
        (["model=ddpm", "schedule=ve", "T=10", "sampler=heun"], ["sampler.steps=18", "T=10"]),
        (["model=vcd", "degradation=black_blur", "sampler=heun", "prediction=x0"], ["sampler=heun", "Gaussian noise"]),
        (["model=ddpm", "degradation=blur_noise", "T=20", "sampler=dpm"], ["sampler=dpm ", "per frequency"]),
        (["model=ddpm", "degradation=blur_noise", "T=20", "prediction=edm"], ["prediction=edm", "frequency"]),
        (["model=vdm", "prediction=x0"], ["model=vdm", "prediction=eps"]),
        (["model=vdm", "model.steps=0"], ["model.steps=0"]),
        (["model=ddpm", "sampler=learned"], ["sampler=learned", "prediction=eps_variance"]),
        (["model=bansal", "degradation=noise", "prediction=eps_variance"], ["prediction=x0"]),
        (["model=vcd", "degradation=noise", "prediction=eps_variance"], ["prediction=eps_variance", "model=ddpm"]),
        (
            ["model=ddpm", "prediction=eps_variance", "degradation.continuous=true"],
            ["prediction=eps_variance", "whole"],
        ),
        (["model=ddpm", "prediction=eps_variance", "network.unet.outputs=1"], ["network.unet.outputs=2"]),
        (["model=vcd", "degradation=black_blur", "schedule=ve"], ["schedule=geometric", "cannot fade"]),
    ],
    ids=lambda x: " ".join(x) if "=" in x[0] else "",
)
def test_what_does_not_fit_is_refused_in_a_sentence(compose, overrides, words):
    with pytest.raises(Exception) as caught:
        training.build(compose(*overrides))
    sentence = explain(caught.value, "train")
    assert sentence and all(word in sentence for word in words), sentence


# --- solvers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "factor"), [(Euler, 2), (Heun, 4), (DPMSolver, 4)])
def test_the_order_of_convergence(solver, factor):
    """Gaussian data: y shrinks by sqrt(v / (v + sigma^2)) exactly. Twice the steps: half the error, or a quarter."""
    v, schedule, errors = 0.25, Karras(), []
    for T in (35, 70, 140):
        D = precise(Noise(T=T, schedule=schedule), schedule)
        x = torch.full((1, 1, 2, 2), 56.0, dtype=torch.float64)
        exact = x * math.sqrt(v / (v + 80**2))
        errors.append(((solver()(Optimal(D, v), x, PerImage(0, [0])).x0 - exact).abs() / exact).max().item())
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert all(0.9 * factor < ratio < 1.2 * factor for ratio in ratios), errors
    if solver is Heun:
        assert errors == pytest.approx([1.30e-2, 3.05e-3, 7.4e-4], rel=0.02)


def test_euler_is_ddim():
    schedule = Cosine()
    D = precise(Noise(T=30, schedule=schedule), schedule)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    ways = [s(Optimal(D, 0.3), x, PerImage(0, range(3))).x0 for s in (Euler(), DDIM(eta=0.0, clip=False))]
    torch.testing.assert_close(*ways, rtol=0, atol=1e-14)


def test_heun_takes_two_evaluations_a_step_but_for_the_last():
    model = Optimal(Noise(T=18, schedule=Karras()), 0.25)
    Heun()(model, 80 * torch.randn(2, 1, 4, 4), PerImage(0, range(2)))
    assert model.asked == 35


@pytest.mark.parametrize(
    "sampler",
    [ReverseSDE(), ReverseSDE(corrections=1), Heun(churn=40.0), Heun(), DPMSolver()],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("schedule", [VP(), Geometric(sigma_max=20), SubVP()], ids=lambda s: type(s).__name__)
def test_gaussian_data_come_back_with_their_variance(sampler, schedule):
    v, n, size = 0.25, 400, 8  # the corrector's norms are each image's own: an image needs some pixels
    D = Noise(T=400, schedule=schedule)
    std = math.sqrt(D.signal[-1].item() ** 2 * v + D.noise[-1].item() ** 2)
    x = sampler(Optimal(D, v), std * torch.randn(n, 1, size, size), PerImage(0, range(n)), keep=2).x0
    bias = 0.12 if getattr(sampler, "corrections", 0) else 0.06  # of a Langevin step as large as snr=0.16 makes it
    assert x.var().item() == pytest.approx(v, rel=bias)
    assert abs(x.mean().item()) < 0.02


def test_the_stationary_variance_of_langevin():
    """On N(0, u) with step a: u / (1 - a / 2u), u = v + sigma^2 being the variance at the level."""
    v, sigma, rate, n = 0.25, 0.5, 0.15, 20_000
    D = Noise(T=2, schedule=Geometric(sigma_min=sigma, sigma_max=1.0))
    u = v + sigma**2
    y = math.sqrt(u) * torch.randn(n, 1, 1, 1)
    step = Langevin(repeats=200, rate=rate).step
    t = torch.ones(n, dtype=torch.long)
    # on the way to level 2, which does not end with denoising
    walked = step(Optimal(D, v), Move(y, t, t + 1, Condition(), lambda: torch.randn_like(y))).x
    assert walked.var().item() == pytest.approx(u / (1 - rate / (2 * u)), rel=0.03)


@pytest.mark.parametrize(
    "sampler",
    [ReverseSDE(corrections=2), Langevin(repeats=2, rate=1e-3), Heun(churn=10.0), DPMSolver(), Euler()],
    ids=lambda s: type(s).__name__,
)
def test_an_image_depends_on_its_own_randomness_alone(sampler):
    D = Noise(T=12, schedule=Karras(sigma_min=0.1, sigma_max=5))
    x = 5 * torch.randn(4, 1, 4, 4)
    together = sampler(Optimal(D, 0.3), x, PerImage(7, range(4))).x0
    alone = torch.cat([sampler(Optimal(D, 0.3), x[i : i + 1], PerImage(7, [i])).x0 for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("theirs", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_solvers_of_diffusers(theirs):
    diffusers = pytest.importorskip("diffusers")
    T, steps, schedule = 1000, 10, Linear()
    D = precise(Noise(T=T, schedule=schedule), schedule)
    alpha_bar = schedule.alpha_bar(T)

    def eps(x, level):
        return torch.sin(0.5 * x + 0.01 * level) + 0.3 * x.roll(1, -1).tanh()

    class Network:
        degradation, space = D, Pixels()

        def restore(self, x, t, s, condition=None):
            a, n = D.at(t)
            return (x - n * eps(x, t[0].double())) / a

    options = dict(num_train_timesteps=T, beta_schedule="linear", timestep_spacing="trailing")
    if theirs == "DPMSolverMultistepScheduler":
        options |= dict(
            algorithm_type="dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            lower_order_final=False,
            final_sigmas_type="zero",
        )
    scheduler = getattr(diffusers, theirs)(**options)
    scheduler.alphas_cumprod = alpha_bar[1:]
    scheduler.set_timesteps(steps)
    ours = {"EulerDiscreteScheduler": Euler, "HeunDiscreteScheduler": Heun, "DPMSolverMultistepScheduler": DPMSolver}[
        theirs
    ]
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    mine = ours(steps=steps)(Network(), x, PerImage(0, range(2))).x0
    scaled = theirs != "DPMSolverMultistepScheduler"  # theirs is ours / signal
    y = x / alpha_bar[T].sqrt() if scaled else x
    for t in scheduler.timesteps:
        level = t.double() + 1
        a = alpha_bar[int(t) + 1].sqrt()
        y = scheduler.step(eps(a * y if scaled else y, level), t, y).prev_sample
    torch.testing.assert_close(mine, y.double(), rtol=2e-4, atol=2e-4)


def test_quadratic_steps_are_distinct_and_closer_near_0():
    for T, steps in ((1000, 10), (1000, 50), (20, 20), (20, 7), (6, 5)):
        grid = Euler(steps=steps, power=2.0).grid(T)
        assert grid[0] == T and grid[-1] == 0 and len(set(grid)) == steps + 1
        assert grid == sorted(grid, reverse=True)
    assert Euler(steps=10, power=2.0).grid(1000)[-2] == 10


# --- predictions and weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Cosine(), Geometric(sigma_max=5)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "prediction", [Eps(), V(), EDM(), EDM(sd=1.0), X0(), Difference()], ids=lambda p: type(p).__name__
)
def test_reading_and_gain(prediction, schedule):
    """An error e of the output is an error of sqrt(1 / gain) e of xhat_0."""
    D = precise(Noise(T=10, schedule=schedule), schedule)
    x0, eps = torch.randn(2, 10, 1, 4, 4, dtype=torch.float64)
    t = torch.arange(1, 11)
    batch = Degraded(x0, t, torch.zeros_like(t), D(x0, t, eps), x0, eps, torch.zeros_like(t))
    target = prediction.target(batch, batch.x_t, D)
    torch.testing.assert_close(prediction.read(target, batch.x_t, t, batch.s, D), x0)
    e = torch.randn_like(x0)
    error = (prediction.read(target + e, batch.x_t, t, batch.s, D) - x0).square().flatten(1).sum(1)
    torch.testing.assert_close(error * prediction.gain(t, D).flatten(), e.square().flatten(1).sum(1))


def test_edm_with_sd_1_is_v_with_the_sign_turned():
    D = Noise(T=10, schedule=Cosine()).double()
    x0, eps = torch.randn(2, 10, 1, 4, 4, dtype=torch.float64)
    t = torch.arange(1, 11)
    batch = Degraded(x0, t, torch.zeros_like(t), D(x0, t, eps), x0, eps, torch.zeros_like(t))
    torch.testing.assert_close(
        EDM(sd=1.0).target(batch, batch.x_t, D), -V().target(batch, batch.x_t, D), rtol=1e-6, atol=1e-6
    )


def test_the_weights():
    D, t = Noise(T=100, schedule=Linear()), torch.arange(1, 101)
    snr = ((D.signal / D.noise)[1:] ** 2)[:, None, None, None]
    torch.testing.assert_close(Simple()(t, D), snr)
    torch.testing.assert_close(Simple()(t, D) / Eps().gain(t, D), torch.ones(100, 1, 1, 1))
    torch.testing.assert_close(Preconditioned(sd=0.5)(t, D) / EDM(sd=0.5).gain(t, D), torch.ones(100, 1, 1, 1))
    torch.testing.assert_close(Flat()(t, D), torch.ones(100, 1, 1, 1))
    torch.testing.assert_close(MinSNR(gamma=5)(t, D), snr.clamp(max=5))
    torch.testing.assert_close(Likelihood()(t, D)[1:], 50 * (snr[:-1] - snr[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "edm", "x0", "difference"])
def test_with_one_weight_all_predictions_have_one_loss(compose, prediction):
    """The same xhat_0, the same loss, whatever the network gives."""
    model = training.build(
        compose("model=ddpm", "T=20", "sampler=ddim", "sampler.steps=5", f"prediction={prediction}", "weight=min_snr")
    )
    D = model.degradation
    x0, eps = torch.rand(20, 1, 8, 8) * 2 - 1, torch.randn(20, 1, 8, 8)
    t = torch.arange(1, 21)
    batch = Degraded(x0, t, torch.zeros_like(t), D(x0, t, eps), x0, eps, torch.zeros_like(t))
    wrong = 0.9 * x0 + 0.05
    out = model.prediction.target(
        Degraded(wrong, t, batch.s, batch.x_t, wrong, D.infer(batch.x_t, wrong, t), batch.label), batch.x_t, D
    )
    model.ask = lambda *_: out
    expected = MinSNR(gamma=5.0)(t, D).flatten() * (wrong - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(model.eval().losses(batch).terms["loss"], expected, rtol=2e-3, atol=1e-5)


def test_log_normal_levels(compose):
    sampler = instantiate(compose("level_sampler=log_normal").level_sampler)
    D = Noise(T=400, schedule=Karras(), continuous=True)
    t = sampler.draw(20_000, D)
    _, noise = D.between(t)
    assert noise.log().mean().item() == pytest.approx(-1.2, abs=0.03) and noise.log().std().item() == pytest.approx(
        1.2, abs=0.03
    )
    D.continuous = False
    whole = sampler.draw(100, D)
    assert whole.dtype == torch.int64 and whole.min() >= 1 and whole.max() <= 400


def test_importance_draws_what_costs_much_and_weighs_it_less():
    """Nichol and Dhariwal 2021, eq. 18; the weighted mean is that of uniform levels."""
    D, sampler = Noise(T=4, schedule=Cosine()), Importance(history=2, uniform=0.04)
    t = torch.arange(1, 5)
    cost = torch.tensor([1.0, 2.0, 3.0, 10.0])
    sampler.learn(t, 100 * cost, D)
    assert torch.equal(sampler.shares(4), torch.full((4,), 0.25))  # not warm yet
    for factor in (0.6, 0.8):  # the first losses are forgotten; sqrt(mean of squares) of .6 and .8 is .7071
        sampler.learn(t, factor * cost, D)
    shares = sampler.shares(4)
    torch.testing.assert_close(shares, 0.96 * cost / cost.sum() + 0.01)
    assert (shares * sampler.weights(t, D) * cost).sum().item() == pytest.approx(cost.mean().item())
    drawn = torch.bincount(sampler.draw(40_000, D), minlength=5)[1:] / 40_000
    torch.testing.assert_close(drawn, shares, rtol=0, atol=0.01)
    again = Importance(history=2, uniform=0.04)
    again.load_state_dict(sampler.state_dict())
    assert torch.equal(again.shares(4), shares)


def test_a_batch_means_as_its_weights_say():
    x, t = torch.zeros(3, 1, 2, 2), torch.ones(3).long()
    plain, values = Degraded(x, t, t, x, x, None, t), torch.tensor([1.0, 2.0, 6.0])
    weighed = Degraded(x, t, t, x, x, None, t, weight=torch.tensor([3.0, 0.0, 1.0]))
    assert (plain.mean(values).item(), weighed.mean(values).item()) == (3.0, 3.0)
    assert weighed.take([2, 0]).weight.tolist() == [1.0, 3.0]


# --- learned variance -------------------------------------------------------------------------------------------------


def test_the_divergence_of_a_step_is_that_of_two_normals():
    """q(x_s | x_t, x_0) with beta-tilde, p with a variance between that and beta (Nichol and Dhariwal 2021, eq. 15)."""
    D = precise(Noise(T=50, schedule=Cosine()), Cosine())
    x0, x0hat, eps, v = torch.rand(4, 5, 2, 3, 3, dtype=torch.float64)
    t = torch.tensor([2, 3, 20, 49, 50])
    x_t = D(x0, t, eps)
    one, other = D.posterior(x_t, x0, t, t - 1), D.posterior(x_t, x0hat, t, t - 1)
    abar = D.signal**2
    small, large = one.std**2, per_image(1 - abar[t] / abar[t - 1])
    torch.testing.assert_close(small, large * per_image((1 - abar[t - 1]) / (1 - abar[t])))  # beta-tilde of beta
    std = torch.exp((v * large.log() + (1 - v) * small.log()) / 2)
    expected = kl_divergence(Normal(one.mean, one.std), Normal(other.mean, std)).flatten(1).sum(1)
    torch.testing.assert_close(bounds.step_nats(D, x0, x0hat, t, v), expected)


def test_the_best_variance_is_that_of_the_posterior_of_gaussian_data():
    """1 + (gain in SNR) E|x_0 - xhat_0|^2 times that of q; any other v needs more bits."""
    v, t, n = 0.3, 12, 20_000
    D = precise(Noise(T=20, schedule=Cosine()), Cosine())
    x0 = math.sqrt(v) * torch.randn(1, 1, 1, n, dtype=torch.float64)
    at = torch.tensor([t])
    x0hat = Optimal(D, v).restore(D(x0, at, torch.randn_like(x0)), at, at * 0)
    snr = (D.signal / D.noise) ** 2
    ratio = 1 + (snr[t - 1] - snr[t]) / (1 / v + snr[t])
    best = (ratio.log() / (D.noise[t] ** 2 / D.noise[t - 1] ** 2).log()).item()
    assert 0 < best < 1
    bits = [bounds.step_nats(D, x0, x0hat, at, best + d).item() / n for d in (-0.1, 0.0, 0.1)]
    assert bits[1] < min(bits[0], bits[2])
    assert bits[1] == pytest.approx(math.log(ratio) / 2, rel=0.03)


def test_the_prior_of_exploding_variance_is_as_wide_as_its_last_noise():
    """x_T ~ N(0, sigma_max^2): an image is |x|^2 / 2 sigma_max^2 nats away from it."""
    D, x0 = Noise(T=20, schedule=Geometric(sigma_min=0.1, sigma_max=20)), torch.rand(3, 1, 4, 4) * 2 - 1
    found = bounds.ddpm_bits(Optimal(D, 0.3), x0, PerImage(0, range(3)))[:, 0]
    expected = x0.double().square().flatten(1).mean(1) / (2 * 20**2 * math.log(2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


@pytest.fixture
def improved(compose):
    model = training.build(
        compose(
            "model=ddpm", "prediction=eps_variance", "sampler=learned", "T=20", "network.unet.dim=8", "dataset=digits"
        )
    )
    with torch.no_grad():
        for p in model.network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def test_the_bound_teaches_the_variance_and_not_the_mean(improved):
    """The gradient of the mean's output is that of the squared error alone; the mean of vlb_bpd is that of the bound."""
    D, n = improved.degradation, 19
    x0, eps = torch.rand(n, 1, 8, 8) * 2 - 1, torch.randn(n, 1, 8, 8)
    t = torch.arange(1, n + 1)
    batch = Degraded(x0, t, t * 0, D(x0, t, eps), x0, eps, t)
    out = torch.randn(n, 2, 8, 8, requires_grad=True)
    improved.ask = lambda *_: out
    losses = improved.losses(batch)
    losses.total.backward()
    torch.testing.assert_close(out.grad[:, :1], 2 * (out[:, :1] - eps).detach() / (n * 64))
    assert (out.grad[:, 1:].abs() > 0).all()
    torch.testing.assert_close(
        losses.terms["loss"], (out[:, :1] - eps).square().flatten(1).mean(1) + 0.001 * losses.terms["vlb_bpd"]
    )


def test_the_learned_bound_is_the_mean_of_what_training_logs(improved):
    x0, T = Pixels().encode(torch.randint(256, (64, 1, 8, 8)).byte()), 20
    whole = bounds.ddpm_bits(improved, x0, PerImage(0, range(64)))[:, 1:].sum(1).mean().item()
    t = torch.arange(1, T + 1).repeat_interleave(64)
    many, eps = x0.repeat(T, 1, 1, 1), torch.randn(64 * T, 1, 8, 8)
    D = improved.degradation
    with torch.no_grad():
        found = improved.losses(Degraded(many, t, t * 0, D(many, t, eps), many, eps, t)).terms["vlb_bpd"].mean().item()
    assert found == pytest.approx(whole, rel=0.03)


def test_small_and_large_variance_in_closed_form():
    D, n = Noise(T=20, schedule=Cosine()), 4000
    t, s = torch.full((n,), 12), torch.full((n,), 9)
    x, draw = torch.randn(1, 1, 4, 4).expand(n, -1, -1, -1), lambda: torch.randn(n, 1, 4, 4)
    torch.manual_seed(1)
    expected = DDIM(eta=1.0).step(Optimal(D, 0.3), Move(x, t, s, Condition(), draw)).x
    torch.manual_seed(1)
    torch.testing.assert_close(Ancestral(v=0.0).step(Optimal(D, 0.3), Move(x, t, s, Condition(), draw)).x, expected)
    beta = 1 - (D.signal[12] / D.signal[9]) ** 2
    large = Ancestral(v=1.0).step(Optimal(D, 0.3), Move(x, t, s, Condition(), draw)).x
    assert large.var(0).mean().item() == pytest.approx(beta.item(), rel=0.02)
    torch.testing.assert_close(large.mean(0), expected.mean(0), rtol=0, atol=0.06)


def test_the_learned_variance_is_sampled_with(improved):
    """Where the network says v = 1 everywhere, it is the large one, bit for bit."""
    small = improved.sample(PerImage(0, range(2))).x0
    assert small.isfinite().all() and small.shape == (2, 1, 8, 8)
    ask = improved.ask
    improved.ask = lambda *inputs: torch.cat([ask(*inputs)[:, :1], torch.ones(2, 1, 8, 8)], 1)
    ones = improved.sample(PerImage(0, range(2))).x0
    improved.sampler = Ancestral(v=1.0)
    assert torch.equal(improved.sample(PerImage(0, range(2))).x0, ones) and not torch.equal(ones, small)


# --- VDM --------------------------------------------------------------------------------------------------------------


class Posterior(torch.nn.Module):
    """epshat of the exact posterior mean, for data N(0, v) or uniform bytes, from VDM's level argument."""

    def __init__(self, model: VDM, v: float | None = None):
        super().__init__()
        self.low, self.span, self.T, self.v = (
            model.gamma.gamma_0,
            model.gamma.gamma_1 - model.gamma.gamma_0,
            model.degradation.T,
            v,
        )

    def forward(self, z, level, s, condition):
        gamma = per_image(self.low + self.span * (level - 1) / (self.T - 1)).double()
        a, n = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        if self.v is not None:
            x = a * self.v * z / (a**2 * self.v + n**2)
        else:
            bins = (torch.arange(256, dtype=torch.float64) + 0.5) / 128 - 1
            x = (
                (-((z.double()[..., None] - a[..., None] * bins) ** 2) / (2 * n[..., None] ** 2)).softmax(-1) * bins
            ).sum(-1)
        return ((z - a * x) / n).float()


def vdm(compose, *overrides: str) -> VDM:
    return training.build(compose("model=vdm", "network.unet.dim=8", *overrides)).eval()


def test_uniform_bytes_take_eight_bits(compose):
    """No model can do better, and the exact one does not do worse."""
    model = vdm(compose, "T=100")
    model.network = Posterior(model)
    x0 = Bins().encode(torch.randint(256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte())
    found = model.bound(x0, PerImage(0, range(64)), draws=64)
    assert found.numbers["bits_per_dim"].value == pytest.approx(8.0, abs=0.03)
    parts = found.curves["bound"]
    assert parts["diffusion"] == pytest.approx(7.988, abs=0.03)
    assert parts["prior"] == pytest.approx(0.0016, abs=5e-4) and parts["reconstruction"] == pytest.approx(
        0.0104, abs=3e-3
    )
    discrete = vdm(compose, "T=100", "model.steps=100")
    discrete.network = Posterior(discrete)
    assert discrete.bound(x0, PerImage(0, range(64)), draws=100).numbers["bits_per_dim"].value == pytest.approx(
        8.772, abs=0.12
    )


@pytest.mark.parametrize("gamma", ["fixed", "learned_linear", "learned_net"])
def test_the_bound_of_gaussian_data_depends_on_the_ends_alone(compose, gamma):
    """1/2 ln[(1 + v e^-g0) / (1 + v e^-g1)] nats per dimension, whatever gamma does in between."""
    v = 1.0
    model = vdm(compose, "T=50", f"gamma={gamma}")
    model.network = Posterior(model, v)
    x0 = math.sqrt(v) * torch.randn(256, 1, 8, 8)
    found = model.bound(x0, PerImage(0, range(256)), draws=64)
    exact = 0.5 * math.log((1 + v * math.exp(13.3)) / (1 + v * math.exp(-5.0))) / math.log(2)
    assert exact == pytest.approx(9.58908, abs=1e-4)
    assert found.curves["bound"]["diffusion"] == pytest.approx(exact, abs=0.05)


def test_discrete_time_costs_what_the_sum_says(compose):
    v, T = 1.0, 100
    gamma = torch.linspace(-13.3, 5, T + 1, dtype=torch.float64)
    u = v * torch.exp(-gamma[1:])
    exact = (0.5 * torch.expm1(gamma.diff()) * u / (1 + u)).sum().item() / math.log(2)
    model = vdm(compose, "T=50", f"model.steps={T}")
    model.network = Posterior(model, v)
    found = model.bound(torch.randn(256, 1, 8, 8), PerImage(0, range(256)), draws=100)
    assert found.curves["bound"]["diffusion"] == pytest.approx(exact, abs=0.05)


def test_the_loss_is_the_bound_by_monte_carlo(compose):
    """Against the KL divergences of the discrete chain, summed one by one."""
    T = 7
    model = vdm(compose, "T=50", f"model.steps={T}", "network.unet.dim=8")
    with torch.no_grad():
        for p in model.network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    n = 2048
    x0 = (torch.rand(1, 1, 8, 8) * 2 - 1).expand(n, -1, -1, -1)
    gamma = model.gamma(torch.arange(T + 1) / T)
    total = torch.zeros(n)
    with torch.no_grad():
        for i in range(1, T + 1):
            g_t, g_s = gamma[i], gamma[i - 1]
            a_t, n_t, a_s, n_s = (
                torch.sigmoid(-g_t).sqrt(),
                torch.sigmoid(g_t).sqrt(),
                torch.sigmoid(-g_s).sqrt(),
                torch.sigmoid(g_s).sqrt(),
            )
            eps = torch.randn_like(x0)
            z = a_t * x0 + n_t * eps
            xhat = (z - n_t * model._eps(z, g_t.expand(n), Condition())) / a_t
            variance = n_s**2 * (1 - (a_t * n_s / (a_s * n_t)) ** 2)  # of q(z_s | z_t, x)
            weight = a_s - a_t * n_s**2 * a_t / (a_s * n_t**2)  # of x in its mean
            total += (weight * (x0 - xhat)).square().flatten(1).sum(1) / (2 * variance)
        exact = total.mean() / (64 * math.log(2))
        t = model.degradation.T * (1 - torch.arange(n) / n)
        batch = Degraded(x0, t, torch.zeros_like(t), x0, x0, torch.randn_like(x0), torch.zeros(n).long())
        found = model.losses(batch).terms["diffusion_bpd"].mean()
    assert found.item() == pytest.approx(exact.item(), rel=0.06)


def net_and_batch(compose) -> tuple[VDM, Degraded]:
    model = vdm(compose, "T=50", "gamma=learned_net", "gamma.width=8").train()
    model.network = Posterior(model, 0.3)
    t = 50 * (1 - torch.arange(256) / 256)
    x0, eps = math.sqrt(0.3) * torch.randn(256, 1, 4, 4), torch.randn(256, 1, 4, 4)
    return model, Degraded(x0, t, torch.zeros_like(t), x0, x0, eps, torch.zeros(256).long())


def test_the_shape_of_gamma_is_trained_on_the_variance_and_its_ends_on_the_bound(compose):
    """In one backward pass, the gradients of E[L^2] and of E[L]."""
    model, batch = net_and_batch(compose)
    torch.manual_seed(0)
    model.losses(batch).total.backward()
    found = {name: p.grad.clone() for name, p in model.gamma.named_parameters()}
    model.gamma.shaped = False  # no hooks: torch says what the gradients are
    for names, objective in ((("b", "w"), "loss"), (("l1", "l2.weight", "l2.bias", "l3.weight"), "diffusion_bpd")):
        torch.manual_seed(0)
        terms = model.losses(batch).terms[objective]
        model.zero_grad()
        (terms.mean() if objective == "loss" else terms.square().mean()).backward()
        expected = dict(model.gamma.named_parameters())
        for name in names:
            torch.testing.assert_close(found[name], expected[name].grad, rtol=1e-3, atol=1e-6)


def test_training_the_shape_lowers_the_variance_of_the_bound(compose):
    model, batch = net_and_batch(compose)
    inside = [p for name, p in model.gamma.named_parameters() if name not in ("b", "w")]
    optimizer = torch.optim.Adam(inside, lr=0.03)

    def spread() -> tuple[float, float]:
        with torch.no_grad():
            loss = model.losses(batch).terms["diffusion_bpd"]
        return loss.mean().item(), loss.std().item()

    before = spread()
    for _ in range(60):
        optimizer.zero_grad()
        model.losses(batch).total.backward()
        optimizer.step()
    after = spread()
    assert after[1] < 0.8 * before[1] and after[0] == pytest.approx(before[0], rel=0.05)


@pytest.mark.parametrize("kind", [Fixed, LearnedLinear, LearnedNet])
def test_gamma_rises_and_its_slope_is_right(kind):
    gamma = kind().double()
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    value, slope = gamma.with_slope(t)
    assert (value.diff() > 0).all()
    assert value[0].item() == pytest.approx(-13.3, abs=1e-5) and value[-1].item() == pytest.approx(5.0, abs=1e-5)
    middle = (gamma(t + 1e-6) - gamma(t - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, middle, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_learned_ends_against_finite_differences(compose):
    model = vdm(compose, "T=50", "gamma=learned_linear")
    model.network = Posterior(model, 0.3)
    t = 50 * (1 - torch.arange(64) / 64)
    x0, eps = Bins().encode(torch.randint(256, (64, 1, 4, 4)).byte()), torch.randn(64, 1, 4, 4)
    batch = Degraded(x0, t, torch.zeros_like(t), x0, x0, eps, torch.zeros(64).long())

    def prior_and_reconstruction():
        torch.manual_seed(0)
        terms = model.losses(batch).terms
        return (terms["prior_bpd"] + terms["reconstruction_bpd"]).mean()

    prior_and_reconstruction().backward()
    for p in (model.gamma.b, model.gamma.w):
        with torch.no_grad():
            p += 1e-2
            above = prior_and_reconstruction()
            p -= 2e-2
            below = prior_and_reconstruction()
            p += 1e-2
        assert p.grad.item() == pytest.approx(((above - below) / 2e-2).item(), rel=0.05, abs=1e-5)


def test_learned_gamma_leads_the_tables_of_sampling(compose):
    model = vdm(compose, "T=20", "gamma=learned_linear").train()
    with torch.no_grad():
        model.gamma.b.fill_(-10.0)
    model.eval()
    assert 2 * model.degradation.log_ratio[0].item() == pytest.approx(-10.0, abs=1e-4)
    assert model.sample(PerImage(0, range(2))).x0.isfinite().all()


def test_bins_decode_what_they_encode():
    images = torch.arange(256).byte().view(1, 1, 16, 16)
    x = Bins().encode(images)
    assert torch.equal(Bins().decode(x), images)
    assert torch.equal(Bins().decode(x + 0.9 / 256), images) and torch.equal(Bins().decode(x - 0.9 / 256), images)
    assert x.min().item() == pytest.approx(-1 + 1 / 256) and x.max().item() == pytest.approx(1 - 1 / 256)


def test_the_decoder_is_a_distribution_over_bins():
    """Summed over all 256 bytes, for one noisy value, the probabilities are 1."""
    gamma = torch.tensor(-9.0)
    y = 0.3141
    centres = (torch.arange(256) + 0.5) / 128 - 1
    x = centres.view(256, 1, 1, 1)
    eps = (y - x) * torch.exp(-gamma / 2)
    p = torch.exp2(-bounds.bin_bits(x, eps, gamma))
    assert p.sum().item() == pytest.approx(1.0, abs=1e-4)


# --- likelihood -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [VP(), Geometric(sigma_max=30)], ids=lambda s: type(s).__name__)
def test_the_likelihood_of_gaussian_data_is_exact(schedule):
    """The density of N(0, v + sigma_1^2) in y at level 1; Rademacher probes of a diagonal Jacobian have no variance."""
    v = 0.2
    D = Noise(T=500, schedule=schedule)
    images = torch.randint(96, 160, (8, 1, 4, 4), generator=torch.Generator().manual_seed(1)).byte()
    std = math.sqrt(D.signal[-1].item() ** 2 * v + D.noise[-1].item() ** 2)
    bits = ode_bits(Optimal(D, v), images, PerImage(3, range(8)), steps=100, std=std)
    u = torch.distributions.Normal(0.0, 1.0).cdf(PerImage(3, range(8)).normal(1, 4, 4))
    y = 2 * (images.float() + u) / 256 - 1
    sigma = (D.noise[1] / D.signal[1]).item()
    exact = 7 - torch.distributions.Normal(0.0, math.sqrt(v + sigma**2)).log_prob(y).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(bits, exact, rtol=0, atol=2e-3)
