"""Steps that keep the moments of q(x_s | x_0), in every frequency; and what sampling does to Gaussian data."""

import math
from dataclasses import dataclass

import pytest
import torch
from hydra.utils import instantiate

from vcd.batch import UNCONDITIONAL, Degraded
from vcd.degradations.base import Degradation
from vcd.degradations.blur import Blur
from vcd.degradations.blur_noise import BlurNoise
from vcd.degradations.compose import Compose
from vcd.degradations.fade import Fade
from vcd.degradations.gaussian import DCT, GaussianDegradation
from vcd.degradations.transition import transition
from vcd.errors import UserError
from vcd.exact_steps import Exact, Momentum
from vcd.perturbations import Rollout
from vcd.predictions import VXt, Xt
from vcd.randomness import PerImage
from vcd.samplers import DDIM, Move, Sequential
from vcd.schedules import Cosine, Tangent
from vcd.spaces import Pixels

N, SIZE, T = 4000, 8, 6
pytestmark = pytest.mark.usefixtures("seed")


@dataclass
class Oracle:
    """Knows the clean image, or makes an estimate of it from the state."""

    degradation: Degradation
    x0: torch.Tensor
    space: Pixels = Pixels()

    def restore(self, x_t, t, s, condition):
        return self.degradation(self.x0, s, torch.zeros_like(x_t))


def blur(fading: bool) -> Degradation:
    D = Blur(T=T, size=SIZE, sigma_min=0.4, sigma_max=SIZE, repeat_last=True)
    return Compose(parts={"blur": D, "black": Fade(T=T, size=SIZE, schedule=Cosine())}) if fading else D


def in_waves(x: torch.Tensor) -> torch.Tensor:
    return DCT(size=SIZE)(x)


def draw() -> torch.Tensor:
    return torch.randn(N, 1, SIZE, SIZE)


def at(level: int, n: int = N) -> torch.Tensor:
    return torch.full((n,), level)


def same_moments(x: torch.Tensor, mean: torch.Tensor, std: float) -> None:
    """Mean and covariance of every wave, within five standard errors."""
    u = in_waves(x - mean).flatten(1).double()
    assert u.mean(0).abs().max() < 5 * std / math.sqrt(N)
    covariance = u.T @ u / N
    torch.testing.assert_close(
        covariance, std**2 * torch.eye(SIZE**2, dtype=torch.float64), rtol=0, atol=5.5 * std**2 * math.sqrt(2 / N)
    )


@pytest.mark.parametrize("fading", [False, True])
@pytest.mark.parametrize(("t", "s"), [(6, 5), (4, 3), (5, 2), (2, 1)])
def test_one_exact_step_with_the_true_image_keeps_the_moments(fading, t, s):
    D, delta = blur(fading), 0.3
    x0 = (torch.rand(1, 1, SIZE, SIZE) * 2 - 1).expand(N, -1, -1, -1)
    x_t = D(x0, at(t)) + delta * draw()
    x_s = Exact(delta=delta).step(Oracle(D, x0), Move(x_t, at(t), at(s), UNCONDITIONAL, draw)).x
    same_moments(x_s, D(x0, at(s)), delta)


def test_noise_stays_where_the_signal_does_and_is_new_where_it_was_lost():
    """The correlation of the noise before and after a step is what the step keeps of each wave."""
    D, delta, t, s = blur(False), 0.3, 4, 3
    x0 = torch.zeros(N, 1, SIZE, SIZE)
    old = draw()
    x_s = Exact(delta=delta).step(Oracle(D, x0), Move(D(x0, at(t)) + delta * old, at(t), at(s), UNCONDITIONAL, draw)).x
    u, v = in_waves((x_s - D(x0, at(s))) / delta), in_waves(old)
    f = math.pi * torch.arange(SIZE) / SIZE
    sigma = torch.logspace(math.log10(0.4), math.log10(SIZE), T - 1)
    kept = torch.exp(-(f[:, None] ** 2 + f**2) * (sigma[t - 1] ** 2 - sigma[s - 1] ** 2) / 2)
    torch.testing.assert_close((u * v).mean(0)[0], kept, rtol=0, atol=5 / math.sqrt(N))
    assert kept[0, 0] == 1 and kept[-1, -1] < 0.01


def test_a_transition_leads_from_one_level_to_the_other():
    x0 = torch.rand(3, 2, SIZE, SIZE) * 2 - 1
    for D in (blur(False), blur(True)):
        for t, s in ((6, 5), (4, 3), (5, 1)):
            M = transition(D, t, s)
            torch.testing.assert_close(M(D(x0, at(s, 3))), D(x0, at(t, 3)), rtol=0, atol=1e-4)


def test_the_first_state_gets_noise_and_the_image_none():
    D, x0 = blur(True), torch.rand(5, 1, SIZE, SIZE) * 2 - 1
    seen = []
    oracle = Oracle(D, x0)

    def restore(x, t, s, condition):
        seen.append(x)
        return D(x0, s)

    oracle.restore = restore
    end = Exact(delta=0.1)(oracle, D(x0, at(T, 5)), PerImage(0, range(5)))
    torch.testing.assert_close(end.x0, x0)
    for x, level in zip(seen, range(T, 0, -1), strict=True):
        assert (x - D(x0, at(level, 5))).std() == pytest.approx(0.1, rel=0.15)


def test_without_noise_and_with_the_right_network_it_is_sequential():
    D, x0 = blur(True), torch.rand(5, 1, SIZE, SIZE) * 2 - 1
    ways = [
        sampler(Oracle(D, x0), D(x0, at(T, 5)), PerImage(0, range(5))).states for sampler in (Exact(), Sequential())
    ]
    torch.testing.assert_close(*ways, rtol=0, atol=1e-4)


def test_where_no_contraction_leads_on_it_is_refused(compose):
    for name in ("pixelate", "downsample", "inpaint", "noise"):
        D = instantiate(compose(f"degradation={name}", "dataset=digits", "T=6").degradation)
        with pytest.raises(UserError, match="sampler=exact"):
            Exact(delta=0.1).check(D, VXt())
    Exact(delta=0.1).check(blur(True), Xt())


def batch() -> Degraded:
    x = torch.zeros(2, 1, SIZE, SIZE)
    return Degraded(x, at(2, 2), at(1, 2), x, x, None, at(0, 2))


def test_rollouts_with_it_are_refused():
    class Student:
        step = 0
        degradation, sampler = blur(True), Exact(delta=0.1)

        def teacher(self, live):
            return self

    perturbation = Rollout(p=0.3, p_warmup=0.3, warmup=0, anneal=0, true_share=0.0, sigma=0.1, longest=None)
    with pytest.raises(UserError, match="train with sampler=sequential"):
        perturbation(batch(), Student())


# Noise that grows: the momentum sampler


class Exploding(GaussianDegradation):
    """x_0 + noise_t eps: soft diffusion whose blur is the identity."""

    def __init__(self):
        noise = torch.cat([torch.zeros(1), torch.logspace(-2, 0, T)]).double()
        super().__init__(signal=torch.ones(T + 1, dtype=torch.float64), noise=noise, basis=DCT(size=SIZE))


def momentum_step(D: GaussianDegradation, t: int, s: int, published: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    x0 = (torch.rand(1, 1, SIZE, SIZE) * 2 - 1).expand(N, -1, -1, -1)
    x_t = D(x0, at(t), draw())
    sampler = Momentum(published=published)
    return sampler.degrade(D, x_t, x0, at(t), at(s), draw), D(x0, at(s), torch.zeros_like(x0))


@pytest.mark.parametrize(
    "D", [Exploding(), BlurNoise(T=T, size=SIZE, schedule=Tangent(), sigma_max=4.0)], ids=["VE", "blur"]
)
@pytest.mark.parametrize(("t", "s"), [(6, 5), (3, 2), (6, 1)])
def test_one_momentum_step_with_the_true_image_keeps_the_moments(D, t, s):
    x_s, mean = momentum_step(D, t, s)
    same_moments(x_s, mean, D.noise[s].item())


def test_the_published_noise_overshoots():
    """sigma .1 to .09: .0085 for .0081."""
    old, new = 0.1, 0.09
    published = (new / old) ** 4 * old**2 + old**2 - new**2
    assert published == pytest.approx(0.0085, abs=5e-5) and new**2 == pytest.approx(0.0081)
    D = Exploding()
    x_s, mean = momentum_step(D, 6, 5, published=True)
    expected = (D.noise[5] / D.noise[6]) ** 4 * D.noise[6] ** 2 + D.noise[6] ** 2 - D.noise[5] ** 2
    assert (x_s - mean).var().item() == pytest.approx(expected.item(), rel=0.02) and expected > 1.1 * D.noise[5] ** 2


def test_soft_without_blur_is_the_ancestral_step_of_a_variance_that_explodes():
    D = Exploding()
    x0, x_t, eps = (torch.randn(20, 1, SIZE, SIZE) for _ in range(3))
    soft = Momentum().degrade(D, x_t, x0, at(4, 20), at(3, 20), lambda: eps)
    var_t, var_s = D.noise[4] ** 2, D.noise[3] ** 2
    ve = x0 + var_s / var_t * (x_t - x0) + (var_s * (var_t - var_s) / var_t).sqrt() * eps
    torch.testing.assert_close(soft, ve, rtol=1e-4, atol=1e-6)
    exact = D.posterior(x_t, x0, at(4, 20), at(3, 20))
    torch.testing.assert_close(soft - (var_s * (var_t - var_s) / var_t).sqrt() * eps, exact.mean, rtol=1e-4, atol=1e-6)


# Gaussian data and the best denoiser there is


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gaussian_data_with_the_optimal_denoiser_follow_the_scalar_recursion(eta):
    """Every wave on its own: u_s = g u_t + std eps, whose variance is known in closed form at every level."""
    D = BlurNoise(T=T, size=SIZE, schedule=Tangent(), sigma_max=2.0)
    k = torch.arange(SIZE, dtype=torch.float32)
    power = 1 / (1 + k[:, None] ** 2 + k**2)  # of the data's waves, as of photographs

    class Optimal:
        degradation, space = D, Pixels()

        def restore(self, x_t, t, s, condition):
            signal, noise = D.at(t)
            gain = signal * power / (signal**2 * power + noise**2)
            return D.basis.inverse(gain * D.basis(x_t))

    path = DDIM(eta=eta, clip=False)(Optimal(), draw(), PerImage(0, range(N)))
    variance = torch.ones(SIZE, SIZE)
    for level in range(T, 0, -1):
        (a_t, n_t), (a_s, n_s) = (tuple(x[0, 0] for x in D.at(torch.tensor([at]))) for at in (level, level - 1))
        gain = a_t * power / (a_t**2 * power + n_t**2)
        new = eta**2 * (1 - (a_t * n_s / (a_s * n_t)) ** 2)
        g = a_s * gain + n_s * (1 - new).sqrt() * (1 - a_t * gain) / n_t
        variance = g**2 * variance + n_s**2 * new
        found = in_waves(path.states[level - 1]).square().mean(0)[0]
        torch.testing.assert_close(found, variance, rtol=5.5 * math.sqrt(2 / N), atol=1e-7)
