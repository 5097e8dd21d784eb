"""From x_T back to x_0: what a perfect restorer must give, what belongs to an image, and where x_T and z come from."""

import math
from dataclasses import dataclass

import pytest
import scipy.stats
import torch
from hydra.utils import instantiate

from vcd.cli import CONF
from vcd.degradations.base import Degradation
from vcd.degradations.gaussian import Noisy
from vcd.degradations.noise import Noise
from vcd.degradations.pixelate import Pixelate
from vcd.priors import Encoded, Independent, Mixture, Shared
from vcd.randomness import PerImage
from vcd.samplers import Cold, Naive, Sequential
from vcd.schedules import Cosine
from vcd.spaces import BLACK, Pixels
from vcd.starts import GMM, Black, NormalStart, TrainSet, natural

ELSEWHERE = {"decolour", "decolour_lab", "snow"}  # in test_restoring: they need colours, or to be told what was drawn
NAMES = sorted({path.stem for path in (CONF / "degradation").glob("*.yaml")} - ELSEWHERE)
T, N, SHAPE = 6, 5, (1, 8, 8)

pytestmark = pytest.mark.usefixtures("seed")


class Ramp(Degradation):
    """x0 + t e, linear in the level."""

    def __init__(self, *, T: int):
        super().__init__(T=T)
        self.register_buffer("e", torch.linspace(-0.3, 0.3, math.prod(SHAPE)).view(SHAPE))

    def forward(self, x0, t, eps=None):
        return x0.float() + t[:, None, None, None] * self.e


@dataclass
class Restorer:
    """Knows x0 and eps, and is wrong by `error`; notes the levels and latents it was asked with."""

    degradation: Degradation
    x0: torch.Tensor
    eps: torch.Tensor | None = None
    error: float = 0.0

    def __post_init__(self):
        self.asked, self.seen, self.space = [], [], Pixels()

    def restore(self, x_t, t, s, condition):
        self.asked.append((int(t[0]), int(s[0]), condition.z))
        self.seen.append(x_t)
        return self.degradation(self.x0, s, self.eps) + self.error


def restorer(D: Degradation, error: float = 0.0) -> Restorer:
    x0 = torch.rand(N, *SHAPE) * 2 - 1
    return Restorer(D, x0, D.draw(x0), error)


def sample(sampler, model: Restorer, level: int | None = None, latents=None):
    t = torch.full((N,), model.degradation.T if level is None else level)
    x = model.degradation(model.x0, t, model.eps)
    return sampler(model, x, PerImage(0, range(N)), latents=latents, level=level)


@pytest.fixture(scope="module", params=NAMES)
def degradation(request, compose):
    return instantiate(compose(f"degradation={request.param}", "dataset=digits", f"T={T}").degradation)


# --- the samplers -----------------------------------------------------------------------------------------------------

samplers = pytest.mark.parametrize("sampler", [Cold(), Naive(), Sequential()], ids=lambda s: type(s).__name__)


@samplers
def test_with_a_perfect_restorer_every_sampler_returns_x0(degradation, sampler):
    for level in (None, T, 3, 1):
        model = restorer(degradation)
        trajectory = sample(sampler, model, level)
        torch.testing.assert_close(trajectory.x0, model.x0, rtol=0, atol=1e-5, msg=lambda m, at=level: f"{at}: {m}")
        assert trajectory.x0 is not None and torch.equal(trajectory.x0, trajectory.states[0]), level


@samplers
def test_the_states_are_the_true_path_from_x_T_to_x_0(degradation, sampler):
    model = restorer(degradation)
    trajectory = sample(sampler, model)
    assert trajectory.states.shape == (T + 1, N, *SHAPE)
    if not degradation.stochastic:  # there the path follows the eps that can still be read in x_T
        for level, state in enumerate(trajectory.states):
            expected = degradation(model.x0, torch.full((N,), level))
            torch.testing.assert_close(state, expected, rtol=0, atol=1e-5)
    assert [t for t, _, _ in model.asked] == list(range(T, 0, -1))
    if isinstance(sampler, Sequential):
        assert trajectory.x0hat is None and [s for _, s, _ in model.asked] == list(range(T - 1, -1, -1))
    else:
        assert trajectory.x0hat.shape == (T, N, *SHAPE) and {s for _, s, _ in model.asked} == {0}
        torch.testing.assert_close(trajectory.x0hat, model.x0.expand(T, -1, -1, -1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("error", [0.5, -3.0])
def test_cold_is_exact_whatever_the_restorer_where_the_degradation_is_linear_in_t(error):
    """Bansal et al. 2022, section 3.3; algorithm 1 returns the restorer's last word, errors and all."""
    model = restorer(Ramp(T=T), error)
    torch.testing.assert_close(sample(Cold(), model).x0, model.x0, rtol=0, atol=1e-5)
    torch.testing.assert_close(sample(Naive(), model).x0, model.x0 + error, rtol=0, atol=1e-6)


def test_naive_degrades_the_estimate_again():
    D, error = Ramp(T=T), 0.5
    model = restorer(D, error)
    states = sample(Naive(), model).states
    for level in range(T):
        torch.testing.assert_close(states[level], D(model.x0 + error, torch.full((N,), level)), rtol=0, atol=1e-6)


def test_cold_on_noise_is_deterministic_ddim():
    """Song et al. 2020 (2010.02502), eq. 12 with sigma = 0, for any restorer."""
    D = Noise(T=T, schedule=Cosine())
    model = restorer(D, error=0.3)
    states = sample(Cold(), model).states
    alpha_bar, x0hat = Cosine().alpha_bar(T), (model.x0 + 0.3).double()
    for t in range(T, 0, -1):
        a, b = alpha_bar[t], alpha_bar[t - 1]
        eps = (states[t].double() - a.sqrt() * x0hat) / (1 - a).sqrt()
        torch.testing.assert_close(states[t - 1].double(), b.sqrt() * x0hat + (1 - b).sqrt() * eps, rtol=0, atol=1e-5)


def test_each_level_gets_its_own_latent():
    model, latents = restorer(Ramp(T=T)), torch.randn(T, N, 3)
    sample(Sequential(), model, latents=latents)
    assert all(torch.equal(z, latents[t - 1]) for t, _, z in model.asked)


def test_the_noise_of_sampling_joins_every_state_the_network_sees():
    """x_T itself is kept as it is in the trajectory; each image has its own noise, whatever its batch."""
    D = instantiate({"_target_": "vcd.degradations.fade.Fade", "T": T, "size": 8, "schedule": Cosine()})
    model, sampler = restorer(D), Sequential(delta=0.2)
    trajectory = sample(sampler, model)
    noise = torch.stack([seen - state for seen, state in zip(model.seen, trajectory.states.flip(0)[:-1], strict=True)])
    assert noise.std().item() == pytest.approx(0.2, rel=0.05) and abs(noise.mean().item()) < 0.02
    assert torch.pdist(noise.flatten(2).flatten(0, 1)).min() > 1.0  # no two draws are the same
    alone = Restorer(D, model.x0[3:4])
    sampler(alone, trajectory.states[-1][3:4], PerImage(0, [3]))
    for one, all_ in zip(alone.seen, model.seen, strict=True):
        torch.testing.assert_close(one[0], all_[3], rtol=0, atol=0)


# --- what belongs to an image -----------------------------------------------------------------------------------------


def draws(randomness: PerImage) -> list[torch.Tensor]:
    return [randomness.normal(2, 3), randomness.uniform(), randomness.normal(4)]


def test_image_i_depends_on_seed_and_i_alone():
    whole = draws(PerImage(7, range(20)))
    for indices in ([13], [13, 2], range(10, 15)):
        for part, all_ in zip(draws(PerImage(7, indices)), whole, strict=True):
            assert torch.equal(part, all_[torch.tensor(list(indices))])
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(PerImage(7, [13]).normal(2, 3), whole[0][13:14])
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state()) and len(PerImage(7, range(20))) == 20


def test_no_two_images_or_seeds_share_their_randomness():
    first = torch.cat([PerImage(seed, range(500)).normal(1) for seed in (0, 1, 2, 500)]).flatten()
    assert len(first.unique()) == len(first)
    assert not torch.equal(PerImage(1, [2]).normal(3), PerImage(2, [1]).normal(3))


def test_draws_are_standard_normal_and_uniform():
    randomness = PerImage(0, range(2000))
    normal, uniform = randomness.normal(5), randomness.uniform()
    assert scipy.stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    assert scipy.stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    assert torch.corrcoef(normal.T).fill_diagonal_(0).abs().max() < 0.1


# --- where z comes from -----------------------------------------------------------------------------------------------


def test_independent_has_a_z_for_every_step_and_shared_one_for_all():
    independent = Independent(latent=3).sample(4, PerImage(0, range(2000)))
    shared = Shared(latent=3).sample(4, PerImage(0, range(2000)))
    assert independent.shape == shared.shape == (4, 2000, 3)
    assert all(torch.equal(z, shared[0]) for z in shared)
    assert torch.corrcoef(independent.transpose(1, 2).flatten(0, 1)).fill_diagonal_(0).abs().max() < 0.1
    for z in (independent, shared[0]):
        assert scipy.stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3


def posteriors(n: int = 4000):
    """Of a made-up encoder: two groups of images; units (1, 0) and (2, 1) tell them apart, all else is N(0, 1)."""
    nothing = PerImage(0, range(n))
    while True:
        group = (torch.rand(n) < 0.25).float() * 2 - 1
        mean, std = torch.zeros(3, n, 2), torch.ones(3, n, 2)
        mean[1, :, 0], mean[2, :, 1] = 1.5 * group, -0.9 * group
        std[1, :, 0], std[2, :, 1] = 0.5, 0.4
        z = mean + std * torch.randn_like(mean)
        yield Encoded(torch.zeros(n, *SHAPE), z, mean, torch.zeros(3, n), nothing)


def test_the_mixture_is_standard_normal_until_it_is_fitted_to_the_latents_in_use():
    prior = Mixture(latent=2, components=2, images=8000)
    before = prior.sample(3, PerImage(0, range(3000)))
    assert before.shape == (3, 3000, 2) and scipy.stats.kstest(before.flatten().numpy(), "norm").pvalue > 1e-3

    prior.fit(posteriors())
    assert prior.units.tolist() == [2, 5]  # step * latent + dimension
    z = prior.sample(3, PerImage(0, range(3000))).double()
    a, b = z[1, :, 0], z[2, :, 1]
    assert ((a > 0) == (b < 0)).double().mean() > 0.97  # the steps of an image belong together
    assert (a > 0).double().mean().item() == pytest.approx(0.25, abs=0.03)
    for x, m, s in ((a, 1.5, 0.5), (b, -0.9, 0.4)):
        for sign in (1, -1):
            group = x[(a > 0) == (sign > 0)]
            assert group.mean().item() == pytest.approx(sign * m, abs=0.06)
            assert group.std().item() == pytest.approx(math.sqrt(s**2 + 1e-2), abs=0.06)  # reg_covar
    idle = torch.stack([z[0, :, 0], z[0, :, 1], z[1, :, 1], z[2, :, 0]])
    assert scipy.stats.kstest(idle.flatten().numpy(), "norm").pvalue > 1e-3


def test_a_fitted_mixture_travels_in_the_state_dict_and_belongs_to_the_image():
    fitted, loaded = Mixture(latent=2, components=2, images=2000), Mixture(latent=2, components=2, images=2000)
    fitted.fit(posteriors(1000))
    loaded.load_state_dict(fitted.state_dict())
    z = fitted.sample(3, PerImage(0, range(8)))
    assert torch.equal(loaded.sample(3, PerImage(0, range(8))), z)
    torch.testing.assert_close(loaded.sample(3, PerImage(0, [5])), z[:, 5:6], rtol=1e-6, atol=1e-6)


# --- where x_T comes from ---------------------------------------------------------------------------------------------


def test_black_is_black():
    x = Black(channels=3, size=4).sample(PerImage(0, range(2)))
    assert x.shape == (2, 3, 4, 4) and (x == BLACK).all()


def test_normal_is_normal():
    x = NormalStart(channels=2, size=5).sample(PerImage(0, range(400)))
    assert x.shape == (400, 2, 5, 5) and scipy.stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3


def colours(n: int) -> torch.Tensor:
    """Channel means of a known mixture: 30 % around (-0.5, 0, 0.5), 70 % around (0.6, 0.2, -0.4), correlated."""
    first = (torch.rand(n, 1) < 0.3).double()
    centre = first * torch.tensor([-0.5, 0.0, 0.5]).double() + (1 - first) * torch.tensor([0.6, 0.2, -0.4]).double()
    factor = torch.tensor([[0.1, 0, 0], [0.05, 0.05, 0], [0, 0.02, 0.03]]).double()
    return (centre + torch.randn(n, 3).double() @ factor.T).float()


def fitted(components: int) -> GMM:
    start, means = GMM(channels=3, size=6, components=components), colours(6000)
    texture = torch.randn(6000, 3, 6, 6)
    texture -= texture.mean((2, 3), keepdim=True)  # what is not the mean must not matter
    start.fit((means[:, :, None, None] + texture).split(1000), Pixelate(T=5, size=6, published=False))
    return start


def test_the_mixture_of_colours_is_found_again():
    start = fitted(2)
    order = start.means[:, 0].argsort()
    torch.testing.assert_close(start.weights[order], torch.tensor([0.3, 0.7]), rtol=0, atol=0.02)
    expected = torch.tensor([[-0.5, 0.0, 0.5], [0.6, 0.2, -0.4]])
    torch.testing.assert_close(start.means[order], expected, rtol=0, atol=0.01)
    x = start.sample(PerImage(0, range(4000)))
    assert x.shape == (4000, 3, 6, 6) and torch.equal(x, x[:, :, :1, :1].expand_as(x))
    drawn, true = x[:, :, 0, 0].double(), colours(20_000).double()
    torch.testing.assert_close(drawn.mean(0), true.mean(0), rtol=0, atol=0.04)
    torch.testing.assert_close(drawn.T.cov(), true.T.cov(), rtol=0, atol=0.02)
    near = drawn[(drawn - expected[0].double()).norm(dim=1) < 0.5]
    assert len(near) / 4000 == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(near.mean(0), expected[0].double(), rtol=0, atol=0.012)
    torch.testing.assert_close(near.std(0), torch.tensor([0.1, 0.0707, 0.0361]).double(), rtol=0, atol=0.01)


def test_a_single_gaussian_has_the_moments_of_the_data():
    start, means = GMM(channels=3, size=6), colours(5000)
    start.fit([means[:, :, None, None].expand(-1, -1, 6, 6)], Pixelate(T=5, size=6, published=False))
    torch.testing.assert_close(start.means[0], means.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(start.factors[0] @ start.factors[0].T, means.T.cov(correction=0), rtol=0, atol=1e-5)


def test_what_is_fitted_travels_in_the_state_dict_and_belongs_to_the_image():
    start, other = fitted(2), GMM(channels=3, size=6, components=2)
    other.load_state_dict(start.state_dict())
    x = start.sample(PerImage(3, range(6)))
    assert torch.equal(other.sample(PerImage(3, range(6))), x)
    torch.testing.assert_close(start.sample(PerImage(3, [4])), x[4:5], rtol=1e-6, atol=1e-6)


def test_natural_is_what_the_degradation_ends_in(degradation, request):
    start = natural(degradation, channels=1, size=8)
    name = request.node.callspec.params["degradation"]
    expected = {
        "noise": NormalStart,
        "blur": GMM,
        "pixelate": GMM,
        "gaussian_blur": GMM,
        "blur_ihd": GMM,
        "blur_noise": NormalStart,
        "warm": GMM,
    }
    if name in expected or name.startswith("black"):
        assert type(start) is expected.get(name, Black)
    assert start.shape == SHAPE
    x0 = torch.rand(4, *SHAPE) * 2 - 1
    end = degradation(x0, torch.full((4,), T), degradation.draw(x0))
    if isinstance(start, Black):
        assert (end == BLACK).all()
    elif isinstance(start, GMM):
        noisy = isinstance(degradation, Noisy)
        flat = degradation.mean(x0, torch.full((4,), T)) if noisy else end
        assert flat.flatten(2).std(2).max() < 0.05  # nearly flat
        assert start.noise == (degradation.noise[-1] if noisy else 0)
    elif isinstance(start, TrainSet):
        assert (
            degradation.stochastic or (end - x0.mean((2, 3), keepdim=True)).abs().max() > 0.01
        )  # more than a flat colour
    else:
        assert degradation.stochastic
