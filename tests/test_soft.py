"""Soft diffusion: its blur, its objective, and what it is without blur."""

import pytest
import torch
from hydra.utils import instantiate

from vcd import training
from vcd.batch import Degraded
from vcd.degradations.gaussian import DCT
from vcd.degradations.noise import Noise
from vcd.degradations.soft import SPREAD, Soft, equal_steps
from vcd.errors import UserError
from vcd.exact_steps import Momentum
from vcd.noise_schedules import Geometric
from vcd.predictions import Eps, V
from vcd.randomness import PerImage
from vcd.starts import GMM, TrainSet, natural
from vcd.weights import Flat, Likelihood, Simple

SIZE, T = 8, 6
SETTINGS = dict(T=T, size=SIZE, noise_min=0.01, noise_max=0.1, rise=1.0)
pytestmark = pytest.mark.usefixtures("seed")


def batch_of(D) -> Degraded:
    x0, eps = torch.rand(T, 2, SIZE, SIZE) * 2 - 1, torch.randn(T, 2, SIZE, SIZE)
    t = torch.arange(1, T + 1)
    return Degraded(x0, t, torch.zeros_like(t), D(x0, t, eps), x0, eps, torch.zeros_like(t))


def test_the_noise_grows_geometrically_and_then_stays():
    D = Soft(**{**SETTINGS, "T": 100, "rise": 0.25}, blur=2.0)
    assert D.noise[0] == 0 and D.noise[25:].sub(0.1).abs().max() < 1e-7
    torch.testing.assert_close(D.noise[1:26], 0.01 * 10 ** (torch.arange(1, 26) / 25))


def test_every_level_is_as_far_from_the_last_as_the_next():
    """The Fréchet distance between Gaussian images with the spectrum of photographs, from the tables that came out."""
    D = Soft(**{**SETTINGS, "T": 50, "size": 32}, blur=10.0)
    f = torch.arange(32.0)
    power = 1 / (f[:, None] ** 2 + f**2).clamp(min=1)
    power[0, 0] = 0
    power *= SPREAD**2 * 32**2 / power.sum()
    std = (D.signal.double() ** 2 * power + 0.1**2).sqrt()
    distance = (std[1:] - std[:-1]).square().sum((1, 2)).sqrt()
    assert distance.min() > 0.95 * distance.mean() and distance.max() < 1.05 * distance.mean()
    sigma = equal_steps(50, 32, 0.1, 10.0)
    assert (sigma[0], sigma[-1]) == (0, 10) and (sigma.diff() > 0).all()


def test_without_blur_it_is_a_variance_that_explodes():
    """The states, one step of the sampler, and the objective: C = I."""
    soft, hot = (
        Soft(**SETTINGS, blur=0.0),
        Noise(T=T, schedule=Geometric(sigma_min=0.01 * 10 ** (1 / T), sigma_max=0.1)),
    )
    batch = batch_of(soft)
    torch.testing.assert_close(hot(batch.x0, batch.t, batch.eps), batch.x_t, rtol=0, atol=1e-6)
    x_s = [
        Momentum().degrade(D, batch.x_t, 0.9 * batch.x0, batch.t, batch.t - 1, lambda: batch.eps) for D in (soft, hot)
    ]
    torch.testing.assert_close(*x_s, rtol=0, atol=1e-5)
    weights = [Simple()(batch.t, D).expand(T, 1, SIZE, SIZE) for D in (soft, hot)]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=0)


@pytest.mark.parametrize("prediction", ["difference", "x0", "v"])
def test_the_objective_is_soft_score_matching_whatever_is_predicted(compose, prediction):
    """|C_t (xhat_0 - x_0)|^2 / noise_t^2, with C_t x = D(x, t) without noise."""
    settings = [f"degradation.{key}={value}" for key, value in SETTINGS.items() if key not in ("T", "size")]
    model = training.build(
        compose(
            "model=ddpm",
            "degradation=soft",
            "degradation.blur=2",
            *settings,
            f"prediction={prediction}",
            "weight=simple",
            "sampler=momentum",
            f"T={T}",
            "dataset=digits",
        )  # fmt: skip
    ).eval()
    D, batch = model.degradation, batch_of(model.degradation)
    out = torch.randn_like(batch.x0)
    model.ask = lambda *_: out
    wrong = model.prediction.read(out, batch.x_t, batch.t, batch.s, D) - batch.x0
    blurred = D(wrong, batch.t, torch.zeros_like(wrong)) / D.noise[batch.t][:, None, None, None]
    expected = blurred.square().flatten(1).mean(1)
    torch.testing.assert_close(model.losses(batch).terms["loss"], expected, rtol=1e-3, atol=1e-5)


def test_weights_per_frequency_are_those_of_each_coefficient():
    D, t = Soft(**SETTINGS, blur=1.0), torch.arange(1, T + 1)
    snr = (D.signal / D.noise[:, None, None])[1:] ** 2
    torch.testing.assert_close(Simple()(t, D)[:, 0], snr)
    torch.testing.assert_close(Flat()(t, D)[:, 0], torch.ones_like(snr))
    torch.testing.assert_close(Likelihood()(t, D)[1:, 0], T / 2 * (snr[:-1] - snr[1:]), rtol=1e-4, atol=1e-4)
    e = torch.randn(T, 1, SIZE, SIZE)
    batch, prediction, basis = batch_of(D), V(), DCT(size=SIZE)
    x_t, target = batch.x_t[:, :1], torch.randn(T, 1, SIZE, SIZE)
    moved = prediction.read(target + e, x_t, t, batch.s, D) - prediction.read(target, x_t, t, batch.s, D)
    torch.testing.assert_close(basis(moved).square() * prediction.gain(t, D), basis(e).square(), rtol=1e-3, atol=1e-4)


def test_what_is_erased_cannot_be_divided_by():
    D = Soft(**SETTINGS, blur=8.0)
    with pytest.raises(UserError, match="prediction=eps divides by the signal, and Soft erases"):
        Eps().check(D)
    V().check(D)
    batch = batch_of(D)
    posterior = D.posterior(batch.x_t, batch.x0, batch.t, batch.t - 1)  # no 0 / 0
    assert posterior.mean.isfinite().all() and posterior.std.isfinite().all()


def test_it_starts_from_degraded_training_images():
    """The mean of an image, and more, survives."""
    assert isinstance(natural(Soft(**SETTINGS, blur=2.0), channels=1, size=SIZE), TrainSet)


def test_warm_starts_from_mean_colours_under_the_noise_of_the_last_level(compose):
    """The blur of the side of the image leaves the mean: what is drawn has the moments of degraded training images."""
    D = instantiate(compose("degradation=warm", "dataset=cifar10").degradation)
    start = natural(D, channels=3, size=32)
    assert isinstance(start, GMM)
    grey = 0.3 * torch.randn(2000, 3, 1, 1)
    x0 = grey + 0.1 * torch.randn(2000, 3, 32, 32)
    t = torch.full((2000,), D.T)
    start.fit([x0], D)
    drawn, real = start.sample(PerImage(0, range(2000))), D(x0, t, torch.randn_like(x0))
    torch.testing.assert_close(drawn.std((2, 3)).mean(), real.std((2, 3)).mean(), rtol=0.01, atol=0)
    torch.testing.assert_close(drawn.mean((2, 3)).std(0), real.mean((2, 3)).std(0), rtol=0.1, atol=0)
    assert drawn.std((2, 3)).mean() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("wrong", [{"blur": -1.0}, {"noise_min": 0.2}, {"rise": 0.0}, {"noise_min": 0.0}])
def test_what_cannot_be_is_one_sentence(wrong):
    with pytest.raises(UserError, match="need 0 < noise_min <= noise_max"):
        Soft(**{**SETTINGS, "blur": 1.0, **wrong})


def test_the_yaml_is_the_published_one(compose):
    D = instantiate(compose("degradation=soft", "dataset=cifar10", "T=100").degradation)
    assert D.noise[1:].min() < 0.0115 and D.noise[-1].item() == pytest.approx(0.1)
