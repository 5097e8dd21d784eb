"""Gaussian degradations: one posterior for noise and for blur with noise, exact in every frequency."""

import diffusers
import pytest
import scipy.fft
import torch

from vcd.batch import Degraded
from vcd.degradations.blur_noise import BlurNoise
from vcd.degradations.gaussian import DCT, GaussianDegradation, dct_matrix
from vcd.degradations.noise import Noise
from vcd.errors import UserError
from vcd.predictions import Eps, V
from vcd.schedules import Cosine, Linear

SIZE, T = 8, 20
STEPS = [(20, 19), (20, 3), (7, 6), (7, 2), (2, 1), (5, 0), (1, 0)]

pytestmark = pytest.mark.usefixtures("seed")


def noise(schedule=None, T: int = T) -> Noise:
    """In float64, tables included."""
    schedule = schedule or Cosine()
    D, alpha_bar = Noise(T=T, schedule=schedule), schedule.alpha_bar(T)
    D.signal, D.noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return D


def blur_noise(sigma_max: float = 4.0, schedule=None, T: int = T) -> BlurNoise:
    """In float64; signal and noise are those of float32, which are as good as any others."""
    D = BlurNoise(T=T, size=SIZE, schedule=schedule or Cosine(), sigma_max=sigma_max, floor=0.01).double()
    D.basis.C = dct_matrix(SIZE)
    return D


both = pytest.mark.parametrize("D", [noise(), blur_noise()], ids=["noise", "blur_noise"])


def images(n: int = 3, channels: int = 2) -> torch.Tensor:
    return torch.rand(n, channels, SIZE, SIZE, dtype=torch.float64) * 2 - 1


def level(t: int, n: int = 3) -> torch.Tensor:
    return torch.full((n,), t)


def dct(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho"))


# --- the basis and the forward process --------------------------------------------------------------------------------


def test_the_basis_is_scipys_orthonormal_dct():
    basis, x = DCT(size=SIZE).double(), images()
    torch.testing.assert_close(basis(x), dct(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(basis.inverse(basis(x)), x, rtol=0, atol=1e-6)
    by = torch.rand(3, 1, SIZE, SIZE, dtype=torch.float64)
    torch.testing.assert_close(basis.scale(x, by), basis.inverse(by * basis(x)), rtol=0, atol=1e-6)
    assert torch.equal(basis.scale(x, torch.ones_like(by)), x)  # exactly


@pytest.mark.parametrize("sigma_max", [0.0, 3.0])
def test_blur_with_noise_keeps_of_each_wave_what_the_paper_says(sigma_max):
    """Hoogeboom and Salimans 2022, appendix A: frequencies, sigma^B_t = sigma_max sin^2(pi t / 2T), tau = sigma_B^2 / 2."""
    D, x0 = blur_noise(sigma_max), images()
    eps = torch.randn_like(x0)
    f = torch.pi * torch.arange(SIZE, dtype=torch.float64) / SIZE
    alpha_bar = Cosine().alpha_bar(T)
    for t in (0, 1, 9, T):
        sigma = torch.tensor(sigma_max * torch.sin(torch.tensor(torch.pi * t / 2 / T)).item() ** 2)
        kept = 0.99 * torch.exp(-(f[:, None] ** 2 + f**2) * sigma**2 / 2) + 0.01
        expected = alpha_bar[t].sqrt() * kept * dct(x0) + (1 - alpha_bar[t]).sqrt() * dct(eps)
        torch.testing.assert_close(dct(D(x0, level(t), eps)), expected, rtol=0, atol=2e-6)
    assert torch.equal(D(x0, level(0), eps), x0)


@pytest.mark.parametrize("values", [{"sigma_max": -1.0}, {"floor": 0.0}, {"floor": 1.5}])
def test_blur_that_cannot_be_is_refused(values):
    with pytest.raises(UserError, match="degradation.sigma_max=.*degradation.floor="):
        BlurNoise(**{"T": 3, "size": SIZE, "schedule": Cosine(), "sigma_max": 1.0, **values})


def test_without_blur_it_is_noise():
    plain, D, x0 = noise(), blur_noise(0.0), images()
    eps = torch.randn_like(x0)
    for t, s in STEPS:
        x_t = plain(x0, level(t), eps)
        torch.testing.assert_close(D(x0, level(t), eps), x_t, rtol=0, atol=1e-6)
        for eta in (0.0, 0.5, 1.0):
            a, b = (P.posterior(x_t, x0, level(t), level(s), eta) for P in (plain, D))
            torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-6)
            torch.testing.assert_close(a.std.expand_as(b.std), b.std, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_one_step_is_the_posterior_of_diffusers(schedule):
    scheduler = diffusers.DDPMScheduler(T, beta_schedule=schedule, clip_sample=False, prediction_type="sample")
    D = noise(
        Cosine() if schedule.startswith("squared") else Linear(beta_start=1e-4 * T / 1000, beta_end=0.02 * T / 1000)
    )
    torch.testing.assert_close(D.signal[1:].square().float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
    scheduler.alphas_cumprod = D.signal[1:] ** 2
    x0, x_t = images(), torch.randn(3, 2, SIZE, SIZE, dtype=torch.float64)
    for t in (2, 3, T):
        with pytest.MonkeyPatch.context() as patch:
            zero = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
            patch.setattr(zero, lambda *_, **__: torch.zeros_like(x_t))
            mean = scheduler.step(x0, t - 1, x_t).prev_sample
        found = D.posterior(x_t, x0, level(t), level(t - 1))
        torch.testing.assert_close(found.mean, mean, rtol=0, atol=1e-9)
        variance = scheduler._get_variance(t - 1).expand(3, 1, 1, 1)
        torch.testing.assert_close(found.std**2, variance, rtol=1e-9, atol=0)


# --- the posterior ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_the_step_with_the_true_x0_leaves_the_marginal_of_s(D: GaussianDegradation, t, s):
    """x_s = a x_t + (rest): per coefficient, its mean and variance over x_t ~ q(x_t | x_0) are those of q(x_s | x_0)."""
    x0 = images()
    eps = torch.randn(3, 2, SIZE, SIZE, dtype=torch.float64)
    for eta in (0.0, 0.3, 1.0):
        at_mean = D.posterior(D(x0, level(t), torch.zeros_like(x0)), x0, level(t), level(s), eta)
        mean = D(x0, level(s), torch.zeros_like(x0))
        torch.testing.assert_close(at_mean.mean, mean, rtol=0, atol=2e-6)
        away = D.posterior(D(x0, level(t), eps), x0, level(t), level(s), eta)
        share = D.basis(away.mean - at_mean.mean) / (D.noise[t] * D.basis(eps))  # the mean is linear in x_t
        variance = (share * D.noise[t]) ** 2 + away.std**2
        torch.testing.assert_close(variance, torch.full_like(variance, D.noise[s].item() ** 2), rtol=1e-6, atol=1e-10)


@both
@pytest.mark.parametrize(("t", "s"), STEPS)
def test_ancestral_is_bayes_rule(D: GaussianDegradation, t, s):
    """q(x_s | x_t, x_0) from q(x_s | x_0) and q(x_t | x_s): mean and variance with A = signal_t / signal_s."""
    x0, x_t = images(), torch.randn(3, 2, SIZE, SIZE, dtype=torch.float64)
    A, r2 = D.signal[t] / D.signal[s], (D.noise[s] / D.noise[t]) ** 2
    u_s, u_t = D.signal[s] * D.basis(x0), D.signal[t] * D.basis(x0)
    mean, variance = u_s + A * r2 * (D.basis(x_t) - u_t), D.noise[s] ** 2 * (1 - A**2 * r2)
    found = D.posterior(x_t, x0, level(t), level(s), 1.0)
    torch.testing.assert_close(D.basis(found.mean), mean.expand_as(x0), rtol=0, atol=5e-6)
    torch.testing.assert_close(found.std**2, variance.expand_as(found.std), rtol=1e-6, atol=1e-10)


@both
def test_a_draw_has_its_moments_and_eta_0_has_no_spread(D: GaussianDegradation):
    n = 20_000
    x_t, x0 = (x.expand(n, -1, -1, -1) for x in (torch.randn(1, 1, SIZE, SIZE, dtype=torch.float64), images(1, 1)))
    posterior = D.posterior(x_t, x0, level(12, n), level(7, n), 0.7)
    draws = D.basis(posterior.sample(torch.randn_like(x_t)))
    std = posterior.std[0].expand(1, SIZE, SIZE)
    assert ((draws.mean(0) - D.basis(posterior.mean)[0]).abs() < 5 * std / n**0.5).all()
    torch.testing.assert_close(draws.std(0), std, rtol=0.03, atol=0)
    still = D.posterior(x_t, x0, level(12, n), level(7, n), 0.0)
    assert (still.std == 0).all() and torch.equal(still.sample(torch.randn_like(x_t)), still.mean)


# --- what predictions read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [noise(Linear()), blur_noise(2.0, Linear())], ids=["noise", "blur_noise"])
@pytest.mark.parametrize("prediction", [Eps(), V()], ids=["eps", "v"])
def test_the_target_reads_back_as_x0(D, prediction):
    x0, t = images(T), torch.arange(1, T + 1)
    eps = D.draw(x0)
    batch = Degraded(x0, t, prediction.level(t), D(x0, t, eps), x0, eps, torch.zeros_like(t))
    out = prediction.target(batch, batch.x_t, D)
    torch.testing.assert_close(prediction.read(out, batch.x_t, t, batch.s, D), x0, rtol=0, atol=1e-3)


@both
def test_eps_and_v_are_x0_in_other_words(D):
    """Outputs that stand for one and the same estimate of x0, right or wrong, are read as this estimate."""
    x0hat, x_t, t = images(T - 1), torch.randn(T - 1, 2, SIZE, SIZE, dtype=torch.float64), torch.arange(1, T)
    signal, noise = D.at(t)
    eps = (x_t - D.basis.scale(x0hat, signal)) / noise
    v = D.basis.scale(eps, signal) - noise * x0hat
    for prediction, out in ((Eps(), eps), (V(), v)):
        found = prediction.read(out, x_t, t, torch.zeros_like(t), D)
        torch.testing.assert_close(found, x0hat, rtol=0, atol=2e-3)
