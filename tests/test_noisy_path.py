"""The bound of models with noise on every state, against closed forms: Gaussian data and the best restorer there is."""

import math

import pytest
import torch
from torch.distributions import Normal

from vcd import training
from vcd.degradations.base import Degradation
from vcd.levels import per_image
from vcd.predictions import VXt
from vcd.randomness import PerImage
from vcd.samplers import Cold, Sequential
from vcd.starts import GMM, Black, TrainSet

pytestmark = pytest.mark.usefixtures("seed")

T, V, SIGMA, DELTA = 4, 0.09, 0.1, 0.12  # levels, variance of the pixels, noise of training and of sampling


class Shrink(Degradation):
    """x_t = a_t x_0."""

    def __init__(self):
        super().__init__(T=T)
        self.register_buffer("a", torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]))

    def forward(self, x0, t, eps=None):
        return per_image(self.a[t]) * x0


def exact(build, kind: str):
    """A real model, but for its parts that are known in closed form: the posterior mean of x_s, and a latent that says nothing."""
    model = training.build(
        build(f"model={kind}", "dataset=digits", "T=4", "network.unet.dim=8", "network.encoder.latent=32")
    ).eval()
    model.degradation, model.start = Shrink(), Black(channels=1, size=8, zero=0.0)
    model.perturbation.sigma, model.sampler, model.prediction = SIGMA, Sequential(delta=DELTA), VXt()
    a = model.degradation.a

    def restore(v, t, s, condition=None):
        return per_image(a[s] * a[t] * V / (a[t] ** 2 * V + SIGMA**2)) * v

    model.restore = restore
    if model.has_latents:
        model.encode = lambda v, x_s, t, s, x0hat=None: Normal(
            torch.full((len(v), 32), 0.3), torch.full((len(v), 32), 0.5)
        )
    return model


def closed_form() -> dict[str, float]:
    """In bits per dimension: of Gaussian pixels the errors of the posterior mean are Gaussian."""
    a = Shrink().a.tolist()
    fixed = 2 * math.log(DELTA / SIGMA) - 1
    errors = [a[t - 1] ** 2 * V * SIGMA**2 / (a[t] ** 2 * V + SIGMA**2) for t in range(1, T + 1)]  # of x_{t-1} from u_t
    nats = {
        "start": ((a[T] ** 2 * V + SIGMA**2) / DELTA**2 + fixed) / 2,
        "steps": sum((error + SIGMA**2) / DELTA**2 + fixed for error in errors[1:]) / 2,
        "decoder": errors[0] / (2 * DELTA**2) + math.log(DELTA * math.sqrt(2 * math.pi) * 127.5),
    }
    return {name: value / math.log(2) for name, value in nats.items()}


def pixels(n: int) -> torch.Tensor:
    """Independent, N(0, V), rounded to the 256 values."""
    return ((math.sqrt(V) * torch.randn(n, 1, 8, 8) + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


@pytest.mark.parametrize("kind", ["rissanen", "vwd", "vcd"])
def test_the_bound_in_closed_form(compose, kind):
    model, expected = exact(compose, kind), closed_form()
    if model.has_latents:  # T of them, of 32 dimensions, over 64 pixels
        expected["latents"] = T * 32 * (0.5 * (0.3**2 + 0.5**2 - 1) - math.log(0.5)) / (64 * math.log(2))
    found = model.bound(pixels(400), PerImage(0, range(400)))
    assert found.curves["bound"] == pytest.approx(expected, abs=0.02)
    bits = found.numbers["bits_per_dim"].value
    assert bits == pytest.approx(sum(expected.values()), abs=0.03)
    assert bits > 0.5 * math.log2(2 * math.pi * math.e * V) + math.log2(127.5)  # the entropy of these pixels
    rows = found.curves["levels"]
    assert [row["t"] for row in rows] == [1, 2, 3, 4]
    assert sum(row["bits_per_dim"] for row in rows) + expected["start"] == pytest.approx(bits, abs=1e-3)


def test_a_chain_that_is_not_this_one_has_no_such_bound_and_says_why(compose, caplog):
    model, x0, randomness = exact(compose, "rissanen"), pixels(2), PerImage(0, range(2))
    for part, value, why in [
        ("sampler", Sequential(), "sampling has no noise"),
        ("start", GMM(channels=1, size=8), "no density is known of a start of GMM"),
        ("perturbation", None, "trained without noise"),
    ]:
        kept = getattr(model, part)
        if value is None:
            kept.sigma = 0.0
        else:
            setattr(model, part, value)
        caplog.clear()
        assert model.bound(x0, randomness.take()) is None, part
        assert why in caplog.text
        setattr(model, part, kept)
        model.perturbation.sigma = SIGMA
    model.sampler = Cold(delta=DELTA)
    assert model.bound(x0, randomness) is None and "not of Cold" in caplog.text


def test_a_start_from_training_images_is_a_mixture_of_them():
    """Far apart, an image is of one of them: ln M more than to that one."""
    start = TrainSet(channels=1, size=2, images=3, noise=0.05)
    start.x_T.copy_(torch.tensor([-0.9, 0.0, 0.9])[:, None, None, None].expand(3, 1, 2, 2))
    x_T, var = torch.full((1, 1, 2, 2), 0.02), 0.12**2 + 0.05**2
    one = 2 * ((0.02**2 + 0.1**2) / var - 1 + math.log(var / 0.1**2))
    assert start.nats(x_T, 0.1, 0.12).item() == pytest.approx(math.log(3) + one, rel=1e-5)
