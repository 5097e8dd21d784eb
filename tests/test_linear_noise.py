"""Noise on a linear degradation: one step back, against Gaussian conditioning on dense matrices."""

import pytest
import torch

from vcd.degradations.blur import Blur
from vcd.degradations.blur_noise import BlurNoise
from vcd.degradations.downsample import Downsample
from vcd.degradations.gaussian import DCT, GaussianDegradation
from vcd.degradations.inpaint import Inpaint
from vcd.degradations.linear_noise import LinearNoise
from vcd.degradations.pixelate import Pixelate
from vcd.errors import UserError
from vcd.noise_schedules import Geometric
from vcd.schedules import Cosine
from vcd.starts import NormalStart, TrainSet, natural

SIZE = 4
GROWING = Geometric(sigma_min=0.1, sigma_max=3.0)
pytestmark = pytest.mark.usefixtures("seed")


def downsample(schedule=GROWING) -> LinearNoise:
    return LinearNoise(of=Downsample(T=2, size=SIZE, factor=4), schedule=schedule).double()


def pixelate(schedule=GROWING) -> LinearNoise:
    return LinearNoise(of=Pixelate(T=3, size=SIZE, published=False), schedule=schedule).double()


def blur(schedule=GROWING) -> LinearNoise:
    return LinearNoise(
        of=Blur(T=3, size=SIZE, sigma_min=0.4, sigma_max=SIZE, repeat_last=False), schedule=schedule
    ).double()


def whole(D: LinearNoise, t: int) -> torch.Tensor:
    """mean_t but for a constant, as a matrix on the pixels in a row."""
    basis = torch.eye(SIZE**2, dtype=torch.float64).view(-1, 1, SIZE, SIZE)
    at = torch.full((len(basis),), t)
    return (D.mean(basis, at) - D.mean(torch.zeros_like(basis), at)).flatten(1).T


def step(D: LinearNoise, t: int, s: int, eta: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t, the posterior's mean given it, the matrix from x_t to that mean, and the covariance."""
    n = SIZE**2
    x0 = (torch.rand(1, 1, SIZE, SIZE, dtype=torch.float64) * 2 - 1).expand(n + 1, -1, -1, -1)
    x_t = D(x0, torch.full((n + 1,), t), torch.randn_like(x0[:1]).expand_as(x0))
    moved = x_t + torch.cat([torch.zeros(1, n), torch.eye(n)]).double().view(-1, 1, SIZE, SIZE)
    posterior = D.posterior(moved, x0, torch.full((n + 1,), t), torch.full((n + 1,), s), eta)
    mean = posterior.mean.flatten(1)
    draws = posterior.sample(moved - x_t).flatten(1) - mean  # of eps = 0, e_1, e_2, ...
    return x0[:1], x_t[:1], (mean[1:] - mean[0]).T, draws[1:].T @ draws[1:]


def mean_of(D: LinearNoise, x0: torch.Tensor, t: int) -> torch.Tensor:
    return D.mean(x0, torch.tensor([t])).flatten()


@pytest.mark.parametrize(("make", "t", "s"), [(downsample, 2, 1), (blur, 3, 2), (blur, 3, 1)])
@pytest.mark.parametrize("schedule", [GROWING, Cosine()], ids=["VE", "cosine"])
def test_the_step_is_gaussian_conditioning(make, t, s, schedule):
    """x_t = M x_s + noise of the covariance that is missing; given x_t, the mean and covariance of x_s."""
    D, eye = make(schedule), torch.eye(SIZE**2, dtype=torch.float64)
    M = whole(D, t) @ torch.linalg.pinv(whole(D, s), rtol=1e-6)
    torch.testing.assert_close(M @ whole(D, s), whole(D, t), rtol=0, atol=1e-6)  # there is such an M
    noise_s, noise_t = D.noise[s] ** 2, D.noise[t] ** 2
    missing = noise_t * eye - noise_s * M @ M.T
    assert torch.linalg.eigvalsh(missing).min() > -1e-9  # and a chain
    total = noise_s * M @ M.T + missing
    gain = noise_s * M.T @ torch.linalg.inv(total)
    covariance = noise_s * eye - gain @ M * noise_s
    x0, x_t, matrix, found = step(D, t, s, 1.0)
    torch.testing.assert_close(matrix, gain, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, covariance, rtol=0, atol=1e-5)
    at = torch.tensor([t]), torch.tensor([s])
    expected = mean_of(D, x0, s) + gain @ (x_t.flatten() - mean_of(D, x0, t))
    torch.testing.assert_close(D.posterior(x_t, x0, *at).mean.flatten(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [downsample, pixelate, blur])
@pytest.mark.parametrize("schedule", [GROWING, Cosine()], ids=["VE", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_step_keeps_the_moments(make, schedule, eta):
    """Also where no M leads from s to t (3 blocks to 2), and whatever eta: K K^T noise_t^2 + covariance = noise_s^2."""
    D, eye = make(schedule), torch.eye(SIZE**2, dtype=torch.float64)
    for t in range(1, D.T + 1):
        for s in range(t):
            _, _, matrix, covariance = step(D, t, s, eta)
            torch.testing.assert_close(
                D.noise[t] ** 2 * matrix @ matrix.T + covariance, D.noise[s] ** 2 * eye, rtol=0, atol=1e-5
            )


def test_on_a_blur_it_is_the_step_of_every_wave():
    """The same tables as a per-frequency degradation, whose posterior is known."""
    D = blur(Cosine())

    class PerWave(GaussianDegradation):
        pass

    C = DCT(size=SIZE).double()
    kept = torch.stack([(C.C @ A @ C.C.T).diagonal() for A in D.of.table])
    waves = PerWave(
        signal=D.signal[:, None, None] * kept[:, :, None] * kept[:, None], noise=D.noise, basis=DCT(size=SIZE)
    ).double()
    (x0, eps), t, s = torch.randn(2, 5, 1, SIZE, SIZE).double(), torch.full((5,), 3), torch.full((5,), 2)
    x_t = waves(x0, t, eps)
    torch.testing.assert_close(D(x0, t, eps), x_t, rtol=0, atol=1e-5)
    ours, theirs = D.posterior(x_t, x0, t, s), waves.posterior(x_t, x0, t, s)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-5)


def test_without_degradation_it_is_noise():
    D = LinearNoise(
        of=Blur(T=2, size=SIZE, sigma_min=1e-6, sigma_max=1e-6, repeat_last=False), schedule=Cosine()
    ).double()
    hot = BlurNoise(T=2, size=SIZE, schedule=Cosine(), sigma_max=0.0).double()
    x0, eps = torch.randn(2, 5, 1, SIZE, SIZE).double()
    t, s = torch.full((5,), 2), torch.full((5,), 1)
    x_t = hot(x0, t, eps)
    torch.testing.assert_close(D(x0, t, eps), x_t, rtol=0, atol=1e-6)
    for eta in (0.0, 1.0):
        torch.testing.assert_close(
            D.posterior(x_t, x0, t, s, eta).mean, hot.posterior(x_t, x0, t, s, eta).mean, rtol=0, atol=1e-5
        )


def test_where_it_starts():
    """From noise where nothing of the image is left, else from degraded training images."""
    shape = dict(channels=1, size=SIZE)
    assert isinstance(natural(downsample().float(), **shape), TrainSet)
    assert isinstance(natural(downsample(Cosine()).float(), **shape), NormalStart)


def test_what_cannot_be_is_one_sentence():
    hole = Inpaint(T=2, size=SIZE, first=0.1, last=1.0, centre="fixed", fill=0.0, closes=False)
    with pytest.raises(UserError, match="degradation.of: .* not Inpaint"):
        LinearNoise(of=hole, schedule=Cosine())
    D, x = downsample(), torch.zeros(2, 1, SIZE, SIZE).double()
    with pytest.raises(ValueError, match="one level for all images"):
        D.posterior(x, x, torch.tensor([1, 2]), torch.tensor([0, 0]))
