"""What the network is shown: who sees which noise, and a rollout whose every step is known beforehand."""

import math
from contextlib import contextmanager

import pytest
import scipy.stats
import torch
from hydra.utils import instantiate
from torch import nn
from torch.distributions import Normal

from vcd.batch import Degraded
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.perturbations import Gaussian, Perturbation, Rollout, Shown, Unperturbed
from vcd.samplers import Cold, Sampler, Sequential
from vcd.spaces import Pixels

T, SHAPE = 6, (1, 8, 8)

pytestmark = pytest.mark.usefixtures("seed")


class Ramp(Degradation):
    """x0 + t e: linear in the level, so that the way back is known without knowing the image."""

    def __init__(self, *, T: int):
        super().__init__(T=T)
        self.register_buffer("e", torch.linspace(-0.3, 0.3, math.prod(SHAPE)).view(SHAPE))

    def forward(self, x0, t, eps=None):
        return x0.float() + t[:, None, None, None] * self.e


class Teacher(nn.Module):
    """A network that is known beforehand; it notes which levels it was asked for."""

    def __init__(self, degradation: Degradation, sampler: Sampler, step: int = 10**6):
        super().__init__()
        self.degradation, self.sampler, self.step = degradation, sampler, step
        self.space = Pixels()
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.live: list[bool] = []

    def teacher(self, live: bool) -> "Teacher":
        self.live.append(live)
        return self

    def encode(self, x_t, x_s, t, s):
        """The latent is the true x_s itself."""
        mean = x_s.flatten(1)
        return Normal(mean, torch.full_like(mean, 1e-30))

    def restore(self, x_t, t, s, condition):
        self.asked.append((t, s))
        return self.estimate(x_t, t, s, condition)

    @contextmanager
    def evaluating(self):
        yield


class Biased(Teacher):
    """Wrong by the constant c at every step, on the Ramp: the errors add up."""

    c = 0.25

    def estimate(self, x_t, t, s, condition):
        return x_t - (t - s)[:, None, None, None] * self.degradation.e + self.c


class Perfect(Teacher):
    """Reads the true x_s from its latent."""

    def estimate(self, x_t, t, s, condition):
        return condition.z.view(-1, *SHAPE)


ANYONE = Biased(Ramp(T=T), Sequential())  # who is trained matters to rollouts alone


def batch_of(D: Degradation, n: int = 240) -> Degraded:
    x0 = torch.rand(n, *SHAPE) * 2 - 1
    t = torch.arange(n) % D.T + 1
    eps = D.draw(x0)
    return Degraded(x0, t, t - 1, D(x0, t, eps), D(x0, t - 1, eps), eps, torch.zeros(n, dtype=torch.long))


def rollout(**changes) -> Rollout:
    options = {"p": 0.3, "p_warmup": 0.3, "warmup": 0, "anneal": 0, "true_share": 0.0, "sigma": 0.0, "longest": None}
    return Rollout(**{**options, **changes})


def is_noise_of(sigma: float, x: torch.Tensor) -> bool:
    """Whether the values are N(0, sigma^2), by mean, std and a Kolmogorov-Smirnov test."""
    ks = scipy.stats.kstest((x / sigma).flatten().numpy(), "norm").pvalue
    return abs(x.mean()) < 5 * sigma / math.sqrt(x.numel()) and abs(x.std() / sigma - 1) < 0.03 and ks > 1e-3


# --- who sees what ----------------------------------------------------------------------------------------------------


def test_unperturbed_is_the_true_path_for_everyone():
    batch, perturbation = batch_of(Ramp(T=T)), Unperturbed()
    for shown in (perturbation(batch, ANYONE), perturbation.on_true_path(batch)):
        assert torch.equal(shown.network, batch.x_t) and torch.equal(shown.base, batch.x_t)


def test_coherent_noise_is_in_the_base_and_before_the_encoder():
    batch, perturbation = batch_of(Ramp(T=T)), Gaussian(sigma=0.2, coherent=True)
    for shown in (perturbation(batch, ANYONE), perturbation.on_true_path(batch)):
        assert torch.equal(shown.network, shown.base)
        assert is_noise_of(0.2, shown.network - batch.x_t)


def test_published_noise_is_on_the_networks_input_only():
    batch, perturbation = batch_of(Ramp(T=T)), Gaussian(sigma=0.2, coherent=False)
    shown = perturbation(batch, ANYONE)
    assert torch.equal(shown.base, batch.x_t)
    assert is_noise_of(0.2, shown.network - batch.x_t)
    validation = perturbation.on_true_path(batch)
    assert torch.equal(validation.network, batch.x_t) and torch.equal(validation.base, batch.x_t)


def test_noise_is_drawn_anew_for_every_pixel_and_every_call():
    batch, perturbation = batch_of(Ramp(T=T)), Gaussian(sigma=1.0, coherent=True)
    first, second = ((perturbation(batch, ANYONE).base - batch.x_t).flatten(1) for _ in range(2))
    for a, b in ((first, second), (first[:-1], first[1:]), (first[:, :-1], first[:, 1:])):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.04


@pytest.mark.parametrize("perturbation", [Gaussian(sigma=0.0, coherent=True), rollout(p=1.0)])
def test_without_noise_the_state_is_exact(perturbation):
    batch = batch_of(Ramp(T=T))
    assert torch.equal(perturbation.on_true_path(batch).network, batch.x_t)


# --- the rollout: known steps -----------------------------------------------------------------------------------------


def test_from_x_T_the_network_is_shown_the_state_reached_at_level_t():
    """p = 0: T - t steps from x_T, each wrong by c. At level T it is x_T itself; the reference was off by one here."""
    model = Biased(Ramp(T=T), Sequential())
    batch = batch_of(model.degradation)
    shown = rollout(p=0.0)(batch, model)
    steps = (T - batch.t).view(-1, 1, 1, 1)
    torch.testing.assert_close(shown.network, batch.x_t + steps * model.c, rtol=0, atol=2e-6)
    at_T = batch.t == T
    assert torch.equal(shown.network[at_T], batch.x_t[at_T])
    assert torch.equal(shown.network, shown.base)


def test_after_a_return_the_errors_begin_anew():
    model, perturbation = Biased(Ramp(T=T), Sequential()), rollout(p=0.4)
    batch = batch_of(model.degradation, 2400)
    shown = perturbation(batch, model)
    taken = ((shown.network - batch.x_t) / model.c).mean((1, 2, 3))
    steps = taken.round()
    torch.testing.assert_close(shown.network, batch.x_t + steps.view(-1, 1, 1, 1) * model.c, rtol=0, atol=2e-6)
    assert (steps >= 0).all() and (steps <= T - batch.t).all()
    for t in range(1, T + 1):
        assert set(steps[batch.t == t].tolist()) == set(range(T - t + 1))


def test_each_step_is_asked_for_at_the_level_it_starts_from():
    """For one image at a time: T, T - 1, ..., t + 1, each time the level below."""
    model = Biased(Ramp(T=T), Sequential())
    batch = batch_of(model.degradation, T)
    for i in range(T):
        model.asked.clear()
        one = batch.take(slice(i, i + 1))
        rollout(p=0.0)(one, model)
        assert [t.tolist() for t, _ in model.asked] == [[level] for level in range(T, int(one.t), -1)]
        assert all(torch.equal(s, t - 1) for t, s in model.asked)


@pytest.mark.parametrize("name", ["black_blur", "pixelate", "gaussian_blur", "noise", "black_noise"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_latents_are_of_the_image_and_the_level_they_are_used_for(compose, name, p):
    """A network that reads x_s from its latent stays on the true path, whatever the order inside."""
    model = Perfect(instantiate(compose(f"degradation={name}", "dataset=digits", f"T={T}").degradation), Sequential())
    batch = batch_of(model.degradation)
    shown = rollout(p=p)(batch, model)
    torch.testing.assert_close(shown.network, batch.x_t, rtol=0, atol=1e-6)


def test_with_a_restoring_sampler_the_rollout_takes_its_steps():
    """Algorithm 2 on a degradation linear in t is exact whatever the network says."""
    model = Biased(Ramp(T=T), Cold())
    batch = batch_of(model.degradation)
    shown = rollout(p=0.0)(batch, model)
    torch.testing.assert_close(shown.network, batch.x_t, rtol=0, atol=5e-6)
    assert all((s == 0).all() for _, s in model.asked)


def test_the_encoder_of_the_teacher_sees_its_state_and_the_true_goal():
    seen = []

    class Watched(Biased):
        def encode(self, x_t, x_s, t, s):
            seen.append((x_t, x_s, t, s))
            return super().encode(x_t, x_s, t, s)

    model = Watched(Ramp(T=T), Sequential())
    batch = batch_of(model.degradation, 1)
    rollout(p=0.0)(batch, model)
    assert len(seen) == T - 1
    for j, (x_t, x_s, t, s) in enumerate(seen):
        D, level = model.degradation, torch.tensor([T - j])
        assert torch.equal(t, level) and torch.equal(s, level - 1)
        torch.testing.assert_close(x_t, D(batch.x0, level) + j * model.c, rtol=0, atol=2e-6)
        assert torch.equal(x_s, D(batch.x0, level - 1))


def test_returning_always_is_the_true_path():
    model = Biased(Ramp(T=T), Sequential())
    batch = batch_of(model.degradation)
    shown = rollout(p=1.0)(batch, model)
    assert torch.equal(shown.network, batch.x_t) and torch.equal(shown.base, batch.x_t)
    assert not model.asked


def test_a_share_of_the_batch_stays_on_the_true_path():
    model = Biased(Ramp(T=T), Sequential())
    batch = batch_of(model.degradation, 6000)
    moved = (rollout(p=0.0, true_share=0.25)(batch, model).network != batch.x_t).flatten(1).any(1)
    assert not moved[batch.t == T].any()
    share = 1 - moved[batch.t < T].double().mean()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 5000)


def test_the_noise_of_the_rollout_is_coherent():
    model = Biased(Ramp(T=T), Sequential())
    batch = batch_of(model.degradation)
    shown = rollout(p=1.0, sigma=0.2)(batch, model)
    assert torch.equal(shown.network, shown.base) and is_noise_of(0.2, shown.network - batch.x_t)
    shown = rollout(p=0.0, sigma=0.2)(batch, model)  # one draw at every step on the way, one at the end
    left = shown.network - batch.x_t - (T - batch.t).view(-1, 1, 1, 1) * model.c
    for t in range(1, T + 1):
        assert left[batch.t == t].std() == pytest.approx(0.2 * math.sqrt(T - t + 1), rel=0.06)


def test_there_is_no_gradient_through_the_rollout():
    class Learning(Biased):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.weight = nn.Parameter(torch.ones(()))

        def estimate(self, x_t, t, s, condition):
            return self.weight * super().estimate(x_t, t, s, condition)

    model = Learning(Ramp(T=T), Sequential())
    shown = rollout(p=0.0)(batch_of(model.degradation), model)
    assert isinstance(shown, Shown) and not shown.network.requires_grad and model.weight.grad is None


def test_the_live_weights_roll_out_during_warm_up_only():
    model = Biased(Ramp(T=T), Sequential())
    for step in (0, 9, 10, 11):
        model.step = step
        rollout(warmup=10)(batch_of(model.degradation, 6), model)
    assert model.live == [True, True, False, False]


# --- where it starts --------------------------------------------------------------------------------------------------


def tossed(t: int, p: float, n: int) -> torch.Tensor:
    """Walk from T down to t; at every level reached, t included, a coin puts the walker back on the true path."""
    start = torch.full((n,), T)
    for level in range(T - 1, t - 1, -1):
        start[torch.rand(n) < p] = level
    return start


@pytest.mark.parametrize("p", [0.0, 0.125, 0.3, 0.9, 1.0])
def test_starts_are_those_of_a_coin_tossed_at_every_level(p):
    n = 40_000
    for t in range(1, T + 1):
        expected = [p * (1 - p) ** (level - t) for level in range(t, T)] + [(1 - p) ** (T - t)]
        for drawn in (rollout().starts(torch.full((n,), t), T, p), tossed(t, p, n)):
            counts = torch.bincount(drawn, minlength=T + 1)
            assert counts[:t].sum() == 0 and len(counts) == T + 1
            possible = [(int(c), n * e) for c, e in zip(counts[t:], expected, strict=True) if e > 0]
            assert sum(c for c, _ in possible) == n
            if len(possible) > 1:
                assert scipy.stats.chisquare(*zip(*possible, strict=True)).pvalue > 1e-3


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("longest", [1, 2, 4])
def test_a_longest_rollout_cuts_the_way_there(longest, p):
    """J = min(geometric, longest), then T: what is cut off starts at the longest."""
    n = 40_000
    for t in (1, 4, T):
        drawn = rollout(longest=longest).starts(torch.full((n,), t), T, p) - t
        most = min(longest, T - t)
        expected = [p * (1 - p) ** j for j in range(most)] + [(1 - p) ** most]
        counts = torch.bincount(drawn, minlength=most + 1).tolist()
        assert len(counts) == most + 1
        possible = [(c, n * e) for c, e in zip(counts, expected, strict=True) if e > 0]
        assert sum(c for c, _ in possible) == n
        assert len(possible) < 2 or scipy.stats.chisquare(*zip(*possible, strict=True)).pvalue > 1e-3


def test_every_image_tosses_its_own_coin():
    k = rollout().starts(torch.full((40_000,), 1), T, 0.3).double()
    assert abs(torch.corrcoef(torch.stack([k[:-1], k[1:]]))[0, 1]) < 0.03


@pytest.mark.parametrize(("true_share", "p"), [(0.25, 0.0), (0.25, 0.3), (1.0, 0.0)])
def test_the_share_on_the_true_path_starts_where_it_is(true_share, p):
    n, t = 40_000, 2
    k = rollout(true_share=true_share).starts(torch.full((n,), t), T, p)
    expected = true_share + (1 - true_share) * p
    assert abs((k == t).double().mean() - expected) <= 4 * math.sqrt(expected * (1 - expected) / n)


def test_a_thousand_levels_are_not_too_many():
    t = torch.randint(1, 1001, (5000,))
    for p in (0.0, 1e-4, 0.01, 0.999, 1.0):
        k = rollout().starts(t, 1000, p)
        assert (k >= t).all() and (k <= 1000).all()


# --- when -------------------------------------------------------------------------------------------------------------


def test_the_probability_warms_up_and_is_annealed():
    at_once = rollout(p=0.125, p_warmup=0.3, warmup=500)
    assert [at_once.probability(n) for n in (0, 499, 500, 10**6)] == [0.3, 0.3, 0.125, 0.125]
    slowly = rollout(p=0.1, p_warmup=0.5, warmup=100, anneal=200)
    expected = {0: 0.5, 99: 0.5, 100: 0.5, 150: 0.4, 200: 0.3, 300: 0.1, 301: 0.1, 10**6: 0.1}
    assert {n: slowly.probability(n) for n in expected} == pytest.approx(expected)
    assert rollout(p=0.2, p_warmup=0.7, warmup=0).probability(0) == 0.2


def test_the_probability_of_the_step_is_the_one_used():
    model, perturbation = Biased(Ramp(T=T), Sequential()), rollout(p=0.0, p_warmup=1.0, warmup=10)
    batch = batch_of(model.degradation)
    model.step = 9
    assert torch.equal(perturbation(batch, model).network, batch.x_t)
    model.step = 10
    away = (perturbation(batch, model).network != batch.x_t).flatten(1).any(1)
    assert torch.equal(away, batch.t < T)


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [-0.1, math.nan])
def test_a_negative_standard_deviation_is_refused(sigma):
    for make in (lambda: Gaussian(sigma=sigma, coherent=True), lambda: rollout(sigma=sigma)):
        with pytest.raises(UserError, match=rf"perturbation.sigma={sigma} .* cannot be negative"):
            make()
    for make in (Cold, Sequential):
        with pytest.raises(UserError, match=rf"sampler.delta={sigma} .* cannot be negative"):
            make(delta=sigma)


@pytest.mark.parametrize("key", ["p", "p_warmup", "true_share"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_what_is_not_a_probability_is_refused(key, value):
    with pytest.raises(UserError, match=rf"perturbation.{key}={value} is a probability"):
        rollout(**{key: value})


def test_every_perturbation_is_one_of_these(compose):
    for name in ("none", "gaussian", "rollout"):
        assert isinstance(instantiate(compose(f"perturbation={name}").perturbation), Perturbation)
