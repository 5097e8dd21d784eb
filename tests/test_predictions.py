"""What the network is asked for: the target read back is x_s, and s is what the prediction says it is."""

import pytest
import scipy.stats
import torch
from hydra.utils import instantiate

from vcd.batch import Degraded
from vcd.cli import CONF
from vcd.degradations.base import Degradation
from vcd.degradations.noise import Noise
from vcd.errors import UserError
from vcd.predictions import X0, Difference, Eps, V, VXt, Xt
from vcd.schedules import Cosine, Linear

DEGRADATIONS = sorted(path.stem for path in (CONF / "degradation").glob("*.yaml"))

pytestmark = pytest.mark.usefixtures("seed")


def degraded(D: Degradation, prediction, n: int = 32) -> Degraded:
    """A batch in float64, on every level."""
    x0 = torch.rand(n, 3, 8, 8, dtype=torch.float64) * 2 - 1
    t = torch.arange(n) % D.T + 1
    s, eps = prediction.level(t), D.draw(x0)
    return Degraded(x0, t, s, D(x0, t, eps), D(x0, s, eps), eps, torch.zeros(n, dtype=torch.long))


@pytest.fixture(scope="module", params=DEGRADATIONS)
def degradation(request, compose):
    return instantiate(
        compose(f"degradation={request.param}", "dataset=digits", "dataset.channels=3", "T=6").degradation
    ).double()


@pytest.mark.parametrize("prediction", [X0(), Difference(), Xt(), VXt()], ids=lambda p: type(p).__name__)
def test_the_target_reads_back_as_x_s(degradation, prediction):
    batch = degraded(degradation, prediction)
    noisy = batch.x_t + 0.1 * torch.randn_like(batch.x_t)  # the base of an increment need not be the true x_t
    for base in (batch.x_t, noisy):
        x_s = prediction.read(prediction.target(batch, base, degradation), base, batch.t, batch.s, degradation)
        torch.testing.assert_close(x_s, batch.x_s, rtol=0, atol=1e-15)
        assert ((batch.s < batch.t) & (batch.s >= 0)).all()


@pytest.mark.parametrize("prediction", [Xt(), VXt()], ids=lambda p: type(p).__name__)
def test_an_increment_is_what_is_missing_from_the_base(degradation, prediction):
    batch = degraded(degradation, prediction)
    base = torch.randn_like(batch.x_t)
    torch.testing.assert_close(prediction.target(batch, base, degradation), batch.x_s - base, rtol=0, atol=0)
    out = torch.randn_like(base)
    torch.testing.assert_close(prediction.read(out, base, batch.t, batch.s, degradation), base + out, rtol=0, atol=0)


@pytest.mark.parametrize(("T", "schedule"), [(6, Cosine()), (50, Linear()), (1000, Linear())])
def test_eps_reads_x0_with_the_true_noise(T, schedule):
    D, prediction = Noise(T=T, schedule=schedule).double(), Eps()
    prediction.check(D)
    batch = degraded(D, prediction, n=T)
    assert (batch.s == 0).all()
    assert torch.equal(prediction.target(batch, batch.x_t, D), batch.eps)
    x0 = prediction.read(batch.eps, batch.x_t, batch.t, batch.s, D)
    torch.testing.assert_close(x0, batch.x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(x0, batch.x_s, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in DEGRADATIONS if name not in ("noise", "blur_noise", "soft", "warm")])
def test_eps_and_v_without_noise_of_their_own_are_refused(compose, name):
    D = instantiate(compose(f"degradation={name}", "dataset=digits", "dataset.channels=3", "T=6").degradation)
    for prediction in (Eps(), V()):
        with pytest.raises(
            UserError,
            match=f"prediction={type(prediction).__name__.lower()} needs Gaussian noise .*=noise, blur_noise or soft.*take prediction=x0",
        ):
            prediction.check(D)


def test_the_levels_asked_for():
    t = torch.arange(1, 7)
    assert torch.equal(X0().level(t), torch.zeros(6, dtype=torch.long))
    assert torch.equal(Xt().level(t), t - 1)
    assert torch.equal(Eps().level(t), torch.zeros(6, dtype=torch.long))
    for prediction in (X0(), Xt(), VXt(), Eps(), V()):
        s = prediction.level(t)
        assert s.dtype == t.dtype and s.shape == t.shape


@pytest.mark.parametrize("t", [1, 2, 3, 6, 8, 300])
def test_vxt_draws_every_less_degraded_level_equally_often(t):
    n = 200 * t + 20_000
    s = VXt().level(torch.full((n,), t))
    counts = torch.bincount(s, minlength=t)
    assert s.min() >= 0 and s.max() < t and len(counts) == t
    assert t == 1 or scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert counts.min() > 0


def test_vxt_draws_for_every_image_anew():
    s = VXt().level(torch.full((20_000,), 6)).double()
    assert abs(torch.corrcoef(torch.stack([s[:-1], s[1:]]))[0, 1]) < 0.03
    mixed = VXt().level(torch.tensor([1, 1000] * 5000))
    assert (mixed[::2] == 0).all() and 450 < mixed[1::2].double().mean() < 550
