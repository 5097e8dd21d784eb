"""Control through latents: identities of paths, conditionals of the prior, encoding, spectra, own images, the command."""

import csv
import functools
import math
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from conftest import SHORT, TINY, scramble
from PIL import Image
from torch.distributions import Normal

from vcd import checkpoints, discovery, spectra, steering, tasks, training
from vcd.batch import Degraded
from vcd.data import own
from vcd.data.decode import decode
from vcd.data.digits import Digits
from vcd.data.folder import Folder
from vcd.errors import UserError
from vcd.images import to_float, to_uint8
from vcd.metrics.fidelity import CEILING, fidelity
from vcd.priors import Independent, Mixture, Shared
from vcd.randomness import PerImage
from vcd.request import Request

pytestmark = pytest.mark.usefixtures("seed")

N = 4
SMALL = [*(o for o in TINY if o != "T=3"), "network.unet.mults=[1]", "network.unet.attention=[]"]
KINDS = {
    "vcd": ["model=vcd", "T=4", "degradation=black_blur", "perturbation.sigma=0.0", "sampler.delta=0.0"],
    "noisy": ["model=vwd", "T=4", "degradation=blur", "start=gmm", "perturbation=gaussian", "sampler.delta=0.1"],
    "jumps": ["model=plain", "T=5", "degradation=blur", "prediction=vxt", "sampler.steps=3"],
    "ancestral": ["model=vwd", "T=3", "degradation=noise", "prediction=x0", "sampler=ancestral", "prior=shared"],
}


@pytest.fixture(scope="module")
def build(compose):
    """build("model=vwd", ...): a tiny model whose weights, start and latents all matter; the same one every time."""

    @functools.cache
    def build(*overrides: str):
        model = scramble(training.build(compose(*SMALL, *overrides))).eval()
        model.start.fit(
            [torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1], model.degradation
        )
        return model

    return build


@pytest.fixture(scope="module")
def ckpt(trained, tmp_path_factory) -> Path:
    """The checkpoint alone, so that nothing is written into the run folder."""
    return Path(shutil.copy(trained.last, tmp_path_factory.mktemp("elsewhere") / "last.ckpt"))


@pytest.fixture(scope="module", params=[*KINDS, "trained"])
def model(request, build):
    if request.param == "trained":
        return checkpoints.load(request.getfixturevalue("ckpt"))[0]
    return build(*KINDS[request.param])


def pair(model, n: int = N) -> tuple[steering.Path, steering.Path]:
    """Target and source under the same noise."""
    target, source = (steering.draw(model, PerImage(0, range(first, first + n))) for first in (0, 100))
    return target, replace(source, noise=target.noise)


def same(a: steering.Path, b: steering.Path) -> bool:
    return (
        torch.equal(a.z, b.z) and torch.equal(a.x_T, b.x_T) and torch.equal(*(p.noise.take().normal(9) for p in (a, b)))
    )


def pictures(n: int = N, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_path_decodes_to_the_samples_of_its_randomness(model):
    drawn = steering.decode(model, steering.draw(model, PerImage(3, range(N))))
    sampled = model.sample(PerImage(3, range(N)))
    assert torch.equal(drawn.states, sampled.states) and torch.equal(drawn.levels, sampled.levels)
    assert torch.pdist(drawn.x0.flatten(1)).min() > 1e-3  # the images differ


def test_decoding_twice_is_the_same(model):
    path, _ = pair(model)
    first = steering.decode(model, path)
    assert torch.equal(steering.decode(model, path).states, first.states)
    assert torch.equal(steering.decode(model, path, keep=2).x0, first.x0)


def test_decoding_does_not_depend_on_the_batch(model):
    path, _ = pair(model)
    whole = steering.decode(model, path)
    part = steering.decode(model, path, batch=3)  # the last batch is smaller
    assert torch.equal(part.levels, whole.levels)
    torch.testing.assert_close(part.states, whole.states, rtol=1e-5, atol=1e-5)


def test_paths_can_be_taken_row_by_row_and_more_than_once(model):
    path, _ = pair(model)
    taken = path.take([2, 0, 2])
    assert len(path) == N and len(taken) == 3
    images, expected = steering.decode(model, taken).states, steering.decode(model, path).states[:, [2, 0, 2]]
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    assert same(taken.take([0]), taken.take([2])) and same(path.take([0]), taken.take([1]))


def test_exchanging_nothing_is_the_identity(model):
    target, source = pair(model)
    nothing = steering.exchange(target, source, [])
    assert same(nothing, target)
    assert torch.equal(steering.decode(model, nothing).states, steering.decode(model, target).states)
    for t in steering.levels_of(model):
        assert same(steering.exchange(target, target, [t]), target)


def test_exchanging_every_step_gives_the_source(model):
    target, source = pair(model)
    every = steering.exchange(target, source, steering.levels_of(model))
    assert torch.equal(steering.decode(model, every).states, steering.decode(model, source).states)
    assert not torch.equal(steering.decode(model, every).x0, steering.decode(model, target).x0)


def test_an_exchange_at_one_step_changes_what_comes_after_it_alone(model):
    target, source = pair(model)
    before, T = steering.decode(model, target), model.degradation.T
    for t in steering.levels_of(model):
        after = steering.decode(model, steering.exchange(target, source, [t]))
        for level, a, b in zip(before.levels.tolist(), before.states, after.states, strict=True):
            if level == T == t:
                assert torch.equal(b, source.x_T)
            elif level >= t:
                assert torch.equal(a, b), (t, level)
            else:
                assert not torch.equal(a, b), (t, level)


def test_an_exchange_over_a_range_is_one_exchange_after_the_other(model):
    target, source = pair(model)
    T = model.degradation.T
    for levels in ([2, 3], [T, T - 1, 1], range(1, T + 1)):
        together, down, up = steering.exchange(target, source, levels), target, target
        for t in levels:
            down = steering.exchange(down, source, [t])
        for t in reversed(levels):
            up = steering.exchange(up, source, [t])
        assert same(together, down) and same(together, up)


def test_an_exchange_leaves_its_arguments_alone(model):
    target, source = pair(model)
    before = [x.clone() for x in (target.z, target.x_T, source.z, source.x_T)]
    steering.decode(model, steering.exchange(target, source, [1, model.degradation.T]))
    steering.interpolate(target, source, 0.3, [1, model.degradation.T])
    steering.resample(model, target, [1], PerImage(5, range(N)))
    after = (target.z, target.x_T, source.z, source.x_T)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert same(target, pair(model)[0])  # nor was its noise drawn


def test_a_path_has_randomness_of_its_own(build):
    """Whoever draws on from what it was made with does not change it."""
    model = build(*KINDS["noisy"])
    for make in (steering.draw, lambda model, randomness: steering.encode(model, pictures(), randomness)[0]):
        randomness = PerImage(0, range(N))
        path = make(model, randomness)
        before = steering.decode(model, path).states
        randomness.normal(7)
        assert torch.equal(steering.decode(model, path).states, before)


def test_level_T_brings_x_T_along(build):
    model = build(*KINDS["noisy"])
    target, source = pair(model)
    assert (target.x_T - source.x_T).abs().flatten(1).max(1).values.min() > 1e-3  # a start that is not constant
    with_T, without = (steering.exchange(target, source, levels) for levels in ([4], [1, 2, 3]))
    assert torch.equal(with_T.x_T, source.x_T) and torch.equal(without.x_T, target.x_T)
    assert torch.equal(with_T.z[:3], target.z[:3]) and torch.equal(with_T.z[3], source.z[3])
    halfway, without = (steering.interpolate(target, source, 0.5, levels) for levels in ([4], [1, 2, 3]))
    torch.testing.assert_close(halfway.x_T, (target.x_T + source.x_T) / 2, rtol=0, atol=1e-6)
    assert torch.equal(without.x_T, target.x_T)


def test_steps_are_those_the_sampler_takes(build):
    assert steering.levels_of(build(*KINDS["vcd"])) == [4, 3, 2, 1]
    model = build(*KINDS["jumps"])
    assert steering.levels_of(model) == [5, 3, 2]
    target, source = pair(model)
    before = steering.decode(model, target).states
    idle = steering.exchange(target, source, [4, 1])  # not visited
    assert torch.equal(steering.decode(model, idle).states, before)


def test_resampling_keeps_the_other_steps_and_belongs_to_the_image(model):
    target, _ = pair(model)
    T = model.degradation.T
    again = steering.resample(model, target, [2, T], PerImage(5, range(N)))
    kept = [t - 1 for t in range(1, T + 1) if t not in (2, T)]
    assert torch.equal(again.z[kept], target.z[kept]) and torch.equal(again.x_T, target.x_T)
    assert (again.z[[1, T - 1]] != target.z[[1, T - 1]]).all()
    assert same(again, steering.resample(model, target, [T, 2], PerImage(5, range(N))))
    alone = steering.resample(model, target.take([2]), [2, T], PerImage(5, [2]))
    torch.testing.assert_close(alone.z[:, 0], again.z[:, 2], rtol=1e-5, atol=1e-5)
    assert same(steering.resample(model, target, [], PerImage(5, range(N))), target)


def test_a_model_without_latents_is_refused(build):
    model = build("model=rissanen", "T=4")
    with pytest.raises(UserError, match="a Rissanen has no latents to steer by"):
        steering.variational(model)
    vwd = build(*KINDS["vcd"])
    assert steering.variational(vwd) is vwd


# --- between two images -----------------------------------------------------------------------------------------------


def test_interpolation_begins_at_one_and_ends_at_the_other(model):
    a, b = pair(model)
    levels = steering.levels_of(model)
    for weight, end in ((0.0, a), (1.0, b)):
        path = steering.interpolate(a, b, weight, levels)
        index = [t - 1 for t in levels]
        torch.testing.assert_close(path.z[index], end.z[index], rtol=0, atol=1e-6)
        assert torch.equal(path.x_T, end.x_T)
        decoded, expected = steering.decode(model, path).states, steering.decode(model, end).states
        torch.testing.assert_close(decoded, expected, rtol=1e-5, atol=1e-5)


def test_interpolation_at_some_steps_keeps_the_others(model):
    a, b = pair(model)
    path, T = steering.interpolate(a, b, 0.4, [1, 2]), model.degradation.T
    kept = [t - 1 for t in range(1, T + 1) if t not in (1, 2)]
    assert torch.equal(path.z[kept], a.z[kept]) and torch.equal(path.x_T, a.x_T)
    for index in (0, 1):
        assert torch.equal(path.z[index], steering.slerp(a.z[index], b.z[index], 0.4))
        assert not torch.equal(path.z[index], a.z[index])


WEIGHTS = pytest.mark.parametrize("weight", [0.0, 0.1, 0.25, 0.5, 0.8, 1.0])


@WEIGHTS
def test_slerp_of_orthogonal_vectors_is_cosine_and_sine(weight):
    a, b = torch.eye(5)[:2]
    expected = math.cos(weight * math.pi / 2) * a + math.sin(weight * math.pi / 2) * b
    torch.testing.assert_close(steering.slerp(a, b, weight), expected, rtol=0, atol=1e-6)
    both = steering.slerp(torch.stack([a, 3 * b]), torch.stack([b, 3 * a]), weight)  # row by row
    torch.testing.assert_close(both[0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(both[1].norm().item(), 3.0, rtol=1e-5, atol=0)


@WEIGHTS
def test_slerp_between_vectors_of_equal_norm_keeps_it_and_divides_the_angle(weight):
    a, b = (2.5 * F.normalize(torch.randn(300, 6), dim=1) for _ in range(2))
    z = steering.slerp(a, b, weight)
    torch.testing.assert_close(z.norm(dim=1), torch.full((300,), 2.5), rtol=1e-4, atol=0)
    whole, part = (torch.acos((a * x).double().sum(1).div(2.5**2).clamp(-1, 1)) for x in (b, z))
    torch.testing.assert_close(part, weight * whole, rtol=0, atol=2e-3)


@WEIGHTS
@pytest.mark.parametrize("d", [1, 2, 32])
def test_slerp_of_vectors_of_one_direction_is_linear(d, weight):
    a = torch.randn(500, d)
    b = a * torch.rand(500, 1) * 3
    torch.testing.assert_close(steering.slerp(a, b, weight), torch.lerp(a, b, weight), rtol=0, atol=1e-4)
    torch.testing.assert_close(steering.slerp(a, a, weight), a, rtol=0, atol=1e-5)
    zero = torch.zeros_like(a)
    assert torch.equal(steering.slerp(zero, zero, weight), zero)


@pytest.mark.parametrize("d", [1, 2, 32])
def test_slerp_of_opposite_vectors_is_linear_too(d):
    """Parallel all the same; the cosine, rounded in float32, may not say so."""
    a = torch.randn(500, d)
    b = -a * torch.rand(500, 1) * 3
    for weight in (0.0, 0.1, 0.5, 0.8, 1.0):
        torch.testing.assert_close(steering.slerp(a, b, weight), torch.lerp(a, b, weight), rtol=0, atol=1e-2)


# --- randomness -------------------------------------------------------------------------------------------------------


def test_randomness_that_is_taken_replays_and_stands_alone():
    original = PerImage(7, range(5))
    original.normal(3)
    copy, later = original.take(), original.take()
    expected = [copy.normal(2, 3), copy.uniform(), copy.normal(4)]
    assert len(copy) == 5
    for other in (original, later):  # neither was moved by the copy, nor by one another
        drawn = [other.normal(2, 3), other.uniform(), other.normal(4)]
        assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))
    assert not torch.equal(original.normal(3), PerImage(7, range(5)).normal(3))


def test_rows_of_randomness_may_be_chosen_and_repeat():
    original = PerImage(7, range(5))
    original.uniform()
    rows = original.take([3, 1, 3, 3])
    whole = original.take()
    for _ in range(2):  # the second draw too: each row has a generator of its own
        assert torch.equal(rows.normal(6), whole.normal(6)[[3, 1, 3, 3]])
    assert len(rows) == 4 and len(original.take([])) == 0


# --- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [Independent(latent=3), Shared(latent=3), Mixture(latent=3, components=2, images=1)])
def test_temperature_scales_latents_of_a_standard_normal(prior):
    cold, plain, one, hot = (prior.sample(4, PerImage(0, range(6)), *t) for t in ((0.0,), (), (1.0,), (2.5,)))
    assert torch.equal(plain, one) and (cold == 0).all()
    torch.testing.assert_close(hot, 2.5 * plain, rtol=1e-6, atol=0)


def mixture(weights, means, covariances, units, latent: int = 2) -> Mixture:
    """A fitted mixture with these numbers."""
    prior = Mixture(latent=latent, components=len(weights), images=1)
    prior.units, prior.weights = torch.tensor(units), torch.tensor(weights)
    prior.means = torch.as_tensor(means, dtype=torch.float32)
    prior.factors = torch.linalg.cholesky(torch.as_tensor(covariances, dtype=torch.float64)).float()
    return prior


def covariance(d: int, seed: int = 0) -> torch.Tensor:
    """Correlated, with eigenvalues well away from 0."""
    root = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / d + 0.2 * torch.eye(d, dtype=torch.float64)


def test_temperature_scales_a_mixture_about_its_means():
    means = torch.tensor([[-3.0, 1.0, 2.0], [4.0, 0.0, -1.0]])
    prior = mixture([0.3, 0.7], means, torch.stack([covariance(3, 1), covariance(3, 2)]), [0, 3, 4])
    flat = [prior.sample(3, PerImage(0, range(300)), t).transpose(0, 1).flatten(1) for t in (0.0, 0.5, 1.0)]
    cold, half, one = (z[:, [0, 3, 4]] for z in flat)
    which = (cold[:, 0] > 0).long()
    assert torch.equal(cold, means[which]) and 60 < (which == 0).sum() < 120  # 90 +- 8
    torch.testing.assert_close(half - cold, (one - cold) / 2, rtol=0, atol=1e-5)
    assert (one - cold).abs().min() > 0
    idle = [z[:, [1, 2, 5]] for z in flat]
    assert (idle[0] == 0).all()
    torch.testing.assert_close(2 * idle[1], idle[2], rtol=1e-6, atol=0)


def test_temperature_0_draws_the_middle_of_the_prior(model):
    path = steering.draw(model, PerImage(0, range(N)), 0.0)
    same_ends = steering.draw(model, PerImage(0, range(N)))
    assert torch.equal(path.x_T, same_ends.x_T) and not torch.equal(path.z, same_ends.z)
    if isinstance(model.prior, Mixture) and len(model.prior.weights):
        units = path.z.transpose(0, 1).flatten(1)[:, model.prior.units]
        assert (units[:, None] == model.prior.means).all(2).any(1).all()
    else:
        assert (path.z == 0).all()


# --- the prior, given what is kept ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [Independent(latent=2), Shared(latent=2), Mixture(latent=2, components=2, images=1)])
def test_an_unfitted_prior_draws_steps_anew_on_their_own(prior):
    z = torch.randn(3, 2000, 2)
    new = prior.resample(z, [1, 3], PerImage(0, range(2000)))
    assert torch.equal(new[1], z[1])
    assert scipy.stats.kstest(new[[0, 2]].flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(new[0], new[2]) == isinstance(prior, Shared)
    assert abs(torch.corrcoef(torch.stack([new[0].flatten(), z[1].flatten()]))[0, 1]) < 5 / math.sqrt(4000)


@pytest.mark.parametrize(("levels", "drawn", "kept"), [([2], [1, 2], [0, 3, 4]), ([3, 1], [0, 3, 4], [1, 2])])
def test_a_gaussian_is_resampled_by_its_conditional(levels, drawn, kept):
    """Unit 1 (step 1) is idle. Mean m_d + S_dk S_kk^-1 (z_k - m_k), covariance S_dd - S_dk S_kk^-1 S_kd."""
    n, mean, S = 6000, torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64), covariance(5)
    units = [0, 2, 3, 4, 5]
    prior = mixture([1.0], mean[None], S[None], units)
    z = 2 * torch.randn(3, n, 2)  # the conditional holds for whatever is kept, likely or not
    new = prior.resample(z, levels, PerImage(0, range(n)))
    others = [t - 1 for t in (1, 2, 3) if t not in levels]
    assert torch.equal(new[others], z[others])

    flat = new.transpose(0, 1).flatten(1)[:, units].double()
    gain = S[drawn][:, kept] @ torch.linalg.inv(S[kept][:, kept])
    expected = mean[drawn] + (flat[:, kept] - mean[kept]) @ gain.T
    C = S[drawn][:, drawn] - gain @ S[kept][:, drawn]
    error = torch.linalg.solve(torch.linalg.cholesky(C), (flat[:, drawn] - expected).T).T  # standard normal
    d = len(drawn)
    assert error.mean(0).abs().max() < 5 / math.sqrt(n)
    torch.testing.assert_close(error.T.cov(), torch.eye(d, dtype=torch.float64), rtol=0, atol=5 * math.sqrt(2 / n))
    both = torch.corrcoef(torch.cat([error, flat[:, kept]], 1).T)[:d, d:]
    assert both.abs().max() < 5 / math.sqrt(n)
    for column in error.T:
        assert scipy.stats.kstest(column.numpy(), "norm").pvalue > 1e-3
    if 1 in levels:
        assert scipy.stats.kstest(new[0, :, 1].numpy(), "norm").pvalue > 1e-3


def test_what_is_kept_decides_the_component():
    n, S = 600, torch.stack([0.1 * covariance(4, 1), 0.1 * covariance(4, 2)])
    means = torch.tensor([[-5.0] * 4, [5.0] * 4])
    prior = mixture([0.01, 0.99], means, S, [0, 1, 2, 3])
    z = means[torch.arange(n) % 2].view(n, 2, 2).transpose(0, 1)
    new = prior.resample(z, [1], PerImage(0, range(n)))
    assert torch.equal(new[1], z[1])
    assert torch.equal(new[0] > 0, z[1] > 0)  # however unlikely the first component was
    for k in (0, 1):
        spread = 5 * S[k, :2, :2].diagonal().sqrt().max().item() / math.sqrt(n / 2)
        torch.testing.assert_close(new[0, k::2].mean(0), means[k, :2], rtol=0, atol=spread)


def test_components_that_overlap_are_drawn_by_their_responsibility():
    """P(k | kept) = w_k N(kept; k) / sum: weights and determinants count."""
    n, weights = 8000, torch.tensor([0.3, 0.7]).double()
    S = torch.stack([torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([1.0, 0.25]))])
    prior = mixture(weights.tolist(), [[-20.0, -1.0], [20.0, 1.0]], S, [0, 1], latent=1)
    kept = torch.linspace(-4, 4, n)
    z = torch.stack([torch.zeros(n), kept])[..., None]
    first = (prior.resample(z, [1], PerImage(0, range(n)))[0, :, 0] < 0).double()
    density = [Normal(m, s).log_prob(kept).double().exp() for m, s in ((-1.0, 2.0), (1.0, 0.5))]
    p = weights[0] * density[0] / (weights[0] * density[0] + weights[1] * density[1])
    for part in torch.arange(n).chunk(8):
        error, variance = (first[part] - p[part]).sum(), (p[part] * (1 - p[part])).sum()
        assert error.abs() <= 5 * variance.sqrt() + 1
    assert p.min() < 0.1 and p.max() > 0.99


def test_resampling_every_step_is_a_new_sample():
    S = torch.stack([covariance(5, 1), covariance(5, 2)])
    prior = mixture([0.4, 0.6], torch.randn(2, 5) * 3, S, [0, 2, 3, 4, 5])
    z = torch.randn(3, 50, 2)
    assert torch.equal(prior.resample(z, [1, 2, 3], PerImage(0, range(50))), prior.sample(3, PerImage(0, range(50))))
    new = prior.resample(z, [], PerImage(0, range(50)))
    assert torch.equal(new, z)


def test_resampling_some_steps_of_a_sample_leaves_the_distribution_as_it_is():
    S, n = torch.stack([covariance(5, 1), covariance(5, 2)]), 3000
    prior = mixture([0.4, 0.6], torch.randn(2, 5) * 2, S, [0, 2, 3, 4, 5])
    z = prior.sample(3, PerImage(0, range(n)))
    new = prior.resample(prior.resample(z, [1, 3], PerImage(1, range(n))), [2], PerImage(2, range(n)))
    other = prior.sample(3, PerImage(3, range(n)))
    assert (new != z).all()
    for direction in torch.randn(8, 6):
        a, b = (x.transpose(0, 1).flatten(1) @ direction for x in (new, other))
        assert scipy.stats.ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-3


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_the_kl_is_the_closed_form():
    mean, std = torch.randn(7, 5), torch.rand(7, 5) * 2 + 0.05
    expected = ((mean**2 + std**2 - 1) / 2 - std.log()).sum(1)
    for prior in (Independent(latent=5), Shared(latent=5), Mixture(latent=5, components=1, images=1)):
        kl = prior.kl(Normal(mean, std), pictures(7), torch.ones(7, dtype=torch.int64))
        torch.testing.assert_close(kl, expected, rtol=1e-5, atol=1e-5)
    same = Normal(torch.zeros(2, 5), torch.ones(2, 5))
    assert (Independent(latent=5).kl(same, pictures(2), torch.ones(2, dtype=torch.int64)) == 0).all()


def test_a_latent_for_every_step_and_image(model):
    x0, T = pictures(3), model.degradation.T
    path, kl = steering.encode(model, x0, PerImage(0, range(3)))
    assert path.z.shape == (T, 3, 4) and kl.shape == (T, 3) and len(path) == len(path.noise) == 3
    assert path.x_T.shape == x0.shape and path.z.is_contiguous()
    if not model.degradation.stochastic:
        assert torch.equal(path.x_T, model.degradation(x0, torch.full((3,), T)))
    visited = [t - 1 for t in steering.levels_of(model)]
    assert (kl[visited] > 0).all() and (path.z[visited] != 0).all()


@pytest.mark.parametrize("model", ["vcd", "noisy", "jumps", "trained"], indirect=True)
def test_each_latent_is_encoded_at_the_state_that_decoding_reaches(model):
    """z_t is the mean of q(z | v, x_s), v the decoded state with its noise; the KL is that of the same q."""
    x0, D = pictures(), model.degradation
    path, kl = steering.encode(model, x0, PerImage(0, range(N)))
    trajectory = steering.decode(model, path)
    noise, grid = path.noise.take(), trajectory.levels.flip(0).tolist()
    for i, level in enumerate(grid[:-1]):
        delta = model.sampler.delta
        x = trajectory.states.flip(0)[i]
        v = x + delta * noise.normal(1, 8, 8) if delta else x
        t, s = torch.full((N,), level), torch.full((N,), grid[i + 1])
        with torch.no_grad():
            q = model.encode(v, D(x0, s), t, s)
        torch.testing.assert_close(path.z[level - 1], q.mean, rtol=1e-4, atol=1e-5)
        expected = ((q.mean**2 + q.stddev**2 - 1) / 2 - q.stddev.log()).sum(1)
        torch.testing.assert_close(kl[level - 1], expected, rtol=1e-4, atol=1e-5)


def test_encoding_twice_is_the_same(model):
    (once, kl), (again, kl_again) = (steering.encode(model, pictures(), PerImage(0, range(N)), 1.0) for _ in range(2))
    assert same(once, again) and torch.equal(kl, kl_again)


def test_at_temperature_0_encoding_is_deterministic(build):
    """Where the states have no noise of their own, nothing is random."""
    model = build(*KINDS["vcd"])
    for temperature, equal in ((0.0, True), (1.0, False)):
        one, other = (steering.encode(model, pictures(), PerImage(seed, range(N)), temperature)[0] for seed in (0, 1))
        assert torch.equal(one.z, other.z) == equal and torch.equal(one.x_T, other.x_T)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_temperature_scales_the_spread_of_the_posterior(build, temperature):
    """At the first step, whose state no latent has moved."""
    model, n = build(*KINDS["vcd"]), 300
    x0 = pictures(1).expand(n, -1, -1, -1)
    path, _ = steering.encode(model, x0, PerImage(0, range(n)), temperature)
    with torch.no_grad():
        t = torch.full((1,), 4)
        q = model.encode(path.x_T[:1], model.degradation(x0[:1], t - 1), t, t - 1)
    standard = (path.z[3] - q.mean) / q.stddev / temperature
    assert scipy.stats.kstest(standard.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(("temperature", "rows"), [(0.0, [3]), (1.0, [1, 3, 4])])
def test_the_encoding_of_an_image_does_not_depend_on_its_batch(model, temperature, rows):
    x0 = pictures(5)
    whole, kl = steering.encode(model, x0, PerImage(0, range(5)), temperature)
    part, kl_part = steering.encode(model, x0[rows], PerImage(0, rows), temperature)
    torch.testing.assert_close(part.x_T, whole.x_T[rows], rtol=0, atol=1e-6)
    torch.testing.assert_close(part.z, whole.z[:, rows], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kl_part, kl[:, rows], rtol=1e-4, atol=1e-4)


def test_paths_may_begin_at_any_level(build):
    """Degraded that far, not further; only the levels from there on have latents."""
    for kind, below in (("vcd", [2, 1, 0]), ("jumps", [4, 3, 2, 0])):
        model, level = build(*KINDS[kind]), below[0]
        path, kl = steering.encode(model, pictures(), PerImage(0, range(N)), level=level)
        assert torch.equal(path.x_T, model.degradation(pictures(), torch.full((N,), level)))
        trajectory = steering.decode(model, path, level=level)
        assert trajectory.levels.tolist() == below[::-1] and torch.equal(trajectory.states[-1], path.x_T)
        taken = (kl > 0).all(1).tolist()
        assert taken == [t in below for t in range(1, len(kl) + 1)] == (path.z != 0).all(2).all(1).tolist()


def test_only_the_levels_that_are_visited_have_latents(build):
    model = build(*KINDS["jumps"])  # 5 -> 3 -> 2 -> 0
    for temperature in (0.0, 1.0):
        path, kl = steering.encode(model, pictures(), PerImage(0, range(N)), temperature)
        assert (path.z[[0, 3]] == 0).all() and (kl[[0, 3]] == 0).all()
        assert (path.z[[1, 2, 4]] != 0).all() and (kl[[1, 2, 4]] > 0).all()
    assert steering.decode(model, path).levels.tolist() == [0, 2, 3, 5]


@pytest.mark.long
def test_an_overfitted_model_gives_its_training_images_back(compose):
    """At least 30 dB, decoded from the encoded latents; VWD on 16 digits."""
    cfg = compose(
        "dataset=digits", "T=3", "model=vwd", "degradation=black_blur", "network=tiny", "network.encoder.latent=16",
        "prior=independent", "perturbation=gaussian", "perturbation.sigma=0.02", "sampler.delta=0.02",
        "model.beta=1e-4",
    )  # fmt: skip
    model = training.build(cfg).train()
    images = to_float(Digits(size=8, channels=1).load("train").images[:16])
    D, x0, t = model.degradation, images.repeat(3, 1, 1, 1), torch.arange(48) // 16 + 1
    batch = Degraded(x0, t, t - 1, D(x0, t), D(x0, t - 1), None, torch.zeros(48, dtype=torch.long))
    steps = 350
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model.losses(batch).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    model.eval()
    path, _ = steering.encode(model, images, PerImage(0, range(16)))
    again = steering.decode(model, path, keep=2).x0
    psnr = fidelity(to_uint8(again), to_uint8(images))["psnr"]
    assert psnr.mean() >= 30 and psnr.min() > 27
    other, _ = steering.encode(model, images.roll(1, 0), PerImage(0, range(16)))
    swapped = steering.decode(model, steering.exchange(path, replace(other, noise=path.noise), [3, 2, 1]), keep=2).x0
    assert fidelity(to_uint8(swapped), to_uint8(images.roll(1, 0)))["psnr"].mean() >= 30  # the latents hold the image


# --- how well images come back ----------------------------------------------------------------------------------------


def eight_bit(x: torch.Tensor) -> torch.Tensor:
    return to_uint8(x).double()


def test_psnr_and_mse_are_those_of_eight_bit_images():
    a, b = pictures(), (pictures() + 0.3 * torch.randn(N, 1, 8, 8)) * 1.1
    quality, mse = fidelity(to_uint8(a), to_uint8(b)), (eight_bit(a) - eight_bit(b)).square().mean((1, 2, 3))
    torch.testing.assert_close(quality["psnr"].double(), 10 * torch.log10(255**2 / mse), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(quality["mse"].double(), mse / 127.5**2, rtol=1e-5, atol=1e-7)
    alone = fidelity(to_uint8(a[:1]), to_uint8(a[:1]))
    assert [alone[key].tolist() for key in ("psnr", "mse")] == [[CEILING], [0.0]]
    assert alone["ssim"].tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_eight_bit_images(channels):
    """Wang et al. 2004, eq. 13, over 7x7 windows at every pixel, reflected at the border, C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2: for pixels from 0 to 255."""
    a = torch.rand(N, channels, 12, 12) * 2 - 1
    b = (a + 0.2 * torch.randn_like(a) + 0.1).clamp(-1, 1)
    x, y = eight_bit(a), eight_bit(b)

    def mean(v: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.pad(v, (3, 3, 3, 3), mode="reflect"), 7, 1)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    torch.testing.assert_close(
        fidelity(to_uint8(a), to_uint8(b))["ssim"].double(), ssim.mean((1, 2, 3)), rtol=0, atol=1e-3
    )


# --- spectra ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 8, 28])
def test_the_energy_of_all_bands_is_the_sum_of_squares(size):
    """Parseval."""
    x = torch.randn(3, 2, 3, size, size) + 0.5
    energy = spectra.energy(x)
    assert energy.shape == (3, 2, size // 2 + 1) and (energy >= 0).all()
    torch.testing.assert_close(energy.sum(-1), x.double().square().sum((2, 3, 4)), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("ky", "kx", "band"),
    [(0, 0, 0), (0, 1, 1), (5, 0, 5), (3, 4, 5), (6, 2, 6), (1, 1, 1), (8, 0, 8), (0, 8, 8), (7, 7, 8), (8, 8, 8)],
)
def test_a_cosine_has_all_its_energy_in_its_band(ky, kx, band):
    """Of 16 pixels; the length is rounded, the corners count to the last band."""
    i = torch.arange(16, dtype=torch.float64)
    for sign in (1, -1):
        x = torch.cos(2 * math.pi * (ky * i[:, None] + sign * kx * i) / 16)[None].expand(3, -1, -1)
        energy = spectra.energy(x)
        assert energy[band].item() == pytest.approx(x.square().sum().item(), rel=1e-12)
        assert (energy.sum() - energy[band]).abs() < 1e-9 * energy[band]
        assert spectra.centroid(energy).item() == pytest.approx(band, abs=1e-6)


def test_every_coefficient_is_in_the_band_of_its_frequency():
    for size in (7, 8):
        f = [k if 2 * k < size else k - size for k in range(size)]
        expected = [[min(round(math.hypot(a, b)), size // 2) for b in f] for a in f]
        assert spectra.bands(size).tolist() == expected


@pytest.mark.parametrize("size", [9, 16])
def test_white_noise_has_a_flat_spectrum(size):
    n, c, std = 500, 3, 0.7
    power = spectra.power(std * torch.randn(n, c, size, size)).mean(0) / std**2
    count = spectra.bands(size).flatten().bincount()
    assert ((power - 1).abs() < 5 * (2 / (n * c * count)).sqrt()).all()  # |X|^2 of a real image: variance at most 2


def test_the_centroid_is_the_mean_frequency():
    assert spectra.centroid(torch.tensor([1.0, 0.0, 0.0, 3.0])).item() == pytest.approx(9 / 4)
    torch.testing.assert_close(spectra.centroid(torch.ones(4, 9)), torch.full((4,), 4.0))
    torch.testing.assert_close(spectra.centroid(7 * torch.eye(5)), torch.arange(5.0))  # a scale changes nothing
    assert (spectra.centroid(torch.zeros(2, 5)) == 0).all()


@pytest.mark.parametrize("model", ["vcd", "jumps", "trained"], indirect=True)
def test_what_each_step_contributes(model):
    """Rows are the sampler's steps, T first; each number from its definition."""
    target, source = pair(model)
    b = spectra.measure(model, target, source)
    levels, T = steering.levels_of(model), model.degradation.T
    assert b.levels == levels and levels[0] == T
    k = len(levels)
    assert b.power.shape == b.energy.shape == b.share.shape == (k, 5) and b.kl_bits.shape == b.centroid.shape == (k,)
    torch.testing.assert_close(b.share.sum(1), torch.ones(k, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (b.share >= 0).all() and ((b.centroid >= 0) & (b.centroid <= 4)).all()

    down = steering.decode(model, target).states.flip(0)  # x_T first
    _, kl = steering.encode(model, down[-1], target.noise.take())
    for i, t in enumerate(levels):
        torch.testing.assert_close(b.power[i], spectra.power(down[i + 1] - down[i]).mean(0))
        assert b.kl_bits[i].item() == pytest.approx(kl[t - 1].mean().item() / math.log(2), rel=1e-5)
        change = steering.decode(model, steering.exchange(target, source, [t])).x0 - down[-1]
        assert b.energy[i].sum().item() == pytest.approx(change.square().sum((1, 2, 3)).mean().item(), rel=1e-5)
        torch.testing.assert_close(b.centroid[i], (b.share[i] * torch.arange(5)).sum(), rtol=1e-9, atol=1e-9)
    assert same(target, pair(model)[0])


def test_exchanging_with_itself_changes_nothing_and_is_no_division_by_zero(build):
    target, _ = pair(build(*KINDS["vcd"]))
    b = spectra.measure(build(*KINDS["vcd"]), target, target)
    assert (b.energy == 0).all() and (b.share == 0).all() and (b.centroid == 0).all()


# --- own images -------------------------------------------------------------------------------------------------------


def picture(mode: str, w: int, h: int, seed: int = 0) -> Image.Image:
    """Random pixels of a mode."""
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (h, w), dtype=np.uint16))
    if mode in ("1", "P", "CMYK"):
        return Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).convert(mode)
    bands = {"L": (h, w), "LA": (h, w, 2), "RGB": (h, w, 3), "RGBA": (h, w, 4)}[mode]
    return Image.fromarray(rng.integers(0, 256, bands, dtype=np.uint8))


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"]


def saved(folder: Path, mode: str, w: int, h: int) -> Path:
    path = folder / f"{mode.replace(';', '')}-{w}x{h}.{'tif' if mode == 'CMYK' else 'png'}"
    picture(mode, w, h).save(path)
    return path


def decoded(path: Path, size: int, channels: int) -> torch.Tensor:
    """What training sees."""
    return torch.tensor(decode(path.read_bytes(), size, channels)[0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_and_size_is_what_training_makes_of_it(tmp_path, mode, channels):
    for w, h in ((8, 8), (33, 20), (5, 40), (3, 3)):
        path = saved(tmp_path, mode, w, h)
        x = own.read(str(path), size=8, channels=channels, key="images")
        assert x.shape == (1, channels, 8, 8) and x.dtype == torch.uint8
        assert torch.equal(x[0], decoded(path, 8, channels))


def test_pixels_of_the_right_size_are_kept_and_other_modes_mean_what_they_say(tmp_path):
    def read(image: Image.Image, channels: int) -> np.ndarray:
        image.save(tmp_path / "x.png")
        x = own.read([str(tmp_path / "x.png")], size=8, channels=channels, key="images")
        return np.asarray(x[0].permute(1, 2, 0))

    rgb, grey, rgba, deep = (picture(mode, 8, 8) for mode in ("RGB", "L", "RGBA", "I;16"))
    assert np.array_equal(read(rgb, 3), np.asarray(rgb))
    assert np.array_equal(read(grey, 1)[..., 0], np.asarray(grey))
    assert np.array_equal(read(grey, 3), np.repeat(np.asarray(grey)[..., None], 3, 2))
    assert np.array_equal(read(rgb, 1)[..., 0], np.asarray(rgb.convert("L")))
    assert np.array_equal(read(deep, 1)[..., 0], np.rint(np.asarray(deep) / 257))
    colour, alpha = np.asarray(rgba)[..., :3].astype(float), np.asarray(rgba)[..., 3:] / 255
    assert np.abs(read(rgba, 3) - colour * alpha).max() <= 1  # on black


def test_a_list_keeps_its_order_and_may_hold_folders_and_zips(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    paths = sorted(saved(folder, mode, 10, 12) for mode in MODES)
    (folder / ".hidden").write_text("no image")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for path in reversed(paths):
            archive.write(path, path.name)
    every = torch.stack([decoded(path, 8, 3) for path in paths])
    for place in (folder, tmp_path / "many.zip"):
        assert torch.equal(own.read(str(place), size=8, channels=3, key="images"), every)
    places = [str(paths[4]), str(folder), str(paths[0]), str(paths[4])]
    x = own.read(places, size=8, channels=3, key="images")
    assert torch.equal(x, torch.cat([every[4:5], every, every[:1], every[4:5]]))


def test_a_folder_is_read_as_the_data_set_reads_it(tmp_path):
    folder = tmp_path / "photos"
    for name in ("ants", "cats"):
        (folder / name).mkdir(parents=True)
        for mode in MODES:
            saved(folder / name, mode, *((11, 9) if name == "ants" else (30, 31)))
    data = Folder(name="photos", path=str(folder), root=str(tmp_path / "cache"), size=8, channels=1, val_fraction=0.3)
    trained_on = torch.cat([data.load(split).images for split in ("train", "val")])
    x = own.read(str(folder), size=8, channels=1, key="images")
    assert sorted(x.flatten(1).tolist()) == sorted(trained_on.flatten(1).tolist())


def test_the_home_folder_may_be_meant(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = saved(tmp_path, "L", 8, 8)
    x = own.read(f"~/{path.name}", size=8, channels=1, key="images")
    assert torch.equal(x[0], decoded(path, 8, 1))


def refused(places, key: str = "sources") -> str:
    with pytest.raises(UserError) as caught:
        own.read(places, size=8, channels=1, key=key)
    sentence = str(caught.value)
    assert "\n" not in sentence and key in sentence
    return sentence


def test_what_is_missing_or_empty_names_its_key(tmp_path):
    nowhere = str(tmp_path / "nowhere.png")
    assert refused(nowhere) == f"sources={nowhere}: there is no such file or folder"
    good = str(saved(tmp_path, "L", 8, 8))
    assert f"images={nowhere}" in refused([good, nowhere], "images")
    (tmp_path / "empty").mkdir()
    assert f"sources={tmp_path / 'empty'} is an empty folder" in refused(str(tmp_path / "empty"))


def test_all_broken_files_are_named_at_once(tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    good = saved(folder, "RGB", 30, 30)
    (folder / "letter.txt").write_text("dear")
    (folder / "nothing.png").write_bytes(b"")
    (folder / "half.png").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    sentence = refused(str(folder))
    assert all(name in sentence for name in ("letter.txt", "nothing.png", "half.png")) and good.name not in sentence
    sentence = refused([str(good), str(folder / "letter.txt"), str(folder / "half.png")])
    assert all(name in sentence for name in ("letter.txt", "half.png")) and good.name not in sentence


def test_a_broken_zip_names_its_key(tmp_path):
    (tmp_path / "broken.zip").write_text("no zip")
    sentence = refused(str(tmp_path / "broken.zip"))
    assert "sources" in sentence and "dataset.path" not in sentence


def test_no_images_at_all_is_one_sentence():
    refused([])


# --- the tasks --------------------------------------------------------------------------------------------------------


def request(**changes) -> Request:
    asked = dict(n=2, seed=0, images=None, sources=None, levels=None, posterior=0.0, temperatures=[0.0, 1.0],
                 variations=2, weights=3)  # fmt: skip
    return Request(**(asked | changes))


def run(task: str):
    return discovery.find(task, tasks, "task").run


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as drawn:
        return drawn.size


FILES = {
    "encode": {"latents-vcd.npz"},
    "reconstruct": {"reconstruct.png", "reconstruct.csv"},
    "exchange": {"exchange.png"},
    "interpolate": {"interpolate.png"},
    "resample": {"resample.png"},
    "temperature": {"temperature.png"},
    "bands": {"bands.png", "bands.csv"},
}


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", FILES)
def test_every_task_takes_several_models(build, tmp_path, task):
    models = {"VCD": build(*KINDS["vcd"]), "VWD": build(*KINDS["noisy"])}
    files = run(task)(models, request(), tmp_path)
    assert {path.name for path in files} == {path.name for path in tmp_path.iterdir()} >= FILES[task]
    if task == "encode":
        assert {path.name for path in files} == {"latents-vcd.npz", "latents-vwd.npz"}
    for path in files:
        if path.suffix == ".csv":
            assert {row["model"] for row in table(path)} == set(models)
        elif path.suffix == ".png":
            assert size(path)[0] > 100


def test_every_task_says_what_it_does():
    assert [name for name in discovery.names(tasks) if not name.startswith("guess_")] == sorted(FILES)
    for task in discovery.names(tasks):
        assert len(discovery.find(task, tasks, "task").__doc__) > 30


def test_models_are_drawn_one_below_the_other(build, tmp_path):
    model = build(*KINDS["vcd"])
    one, two = (
        size(run("exchange")(models, request(), tmp_path)[0]) for models in ({"A": model}, {"A": model, "B": model})
    )
    assert two[0] == one[0] and two[1] == pytest.approx(2 * one[1], rel=0.02)


def test_models_with_different_levels_have_titles_of_their_own(build, tmp_path):
    """Then the figure has room for the most, whichever model comes last."""
    long, short = build(*KINDS["vcd"]), build(*(o for o in KINDS["vcd"] if o != "T=4"), "T=2")
    for task in ("exchange", "resample"):
        sizes = [
            size(run(task)(models, request(n=1), tmp_path)[0])
            for models in ({"A": long, "B": short}, {"B": short, "A": long})
        ]
        assert sizes[0][0] == sizes[1][0]
        assert sizes[0][1] == pytest.approx(sizes[1][1], rel=0.03)  # labels take their room


@pytest.mark.parametrize("levels", [[], [1], [1, 2, 3], [0, 2], 0, 5, -1, [2, 5]])
def test_levels_out_of_range_are_one_sentence(build, tmp_path, levels):
    """One step or two ends, between 1 and T=4."""
    model = build(*KINDS["vcd"])
    for task in ("exchange", "interpolate", "resample"):
        with pytest.raises(UserError, match="between 1 and T=4") as caught:
            run(task)({"VCD": model}, request(levels=levels), tmp_path)
        assert f"levels={levels}" in str(caught.value) and not list(tmp_path.iterdir())


def test_levels_in_range_are_acted_on_together(build, tmp_path):
    """Source, target and one column, instead of one for each of four levels."""
    models = {"VCD": build(*KINDS["vcd"])}
    widths = [size(run("exchange")(models, request(n=1, levels=asked), tmp_path)[0])[0] for asked in (None, 3, [4, 2])]
    assert widths[0] > 1.5 * widths[1] and widths[1] == widths[2]


def test_pairs_need_as_many_images_as_sources(build, tmp_path):
    model, images = build(*KINDS["vcd"]), [str(saved(tmp_path, mode, 9, 9)) for mode in ("L", "RGB", "P")]
    out = tmp_path / "out"
    out.mkdir()
    for task in ("exchange", "interpolate", "bands"):
        with pytest.raises(UserError, match="images has 3 and sources 2"):
            run(task)({"VCD": model}, request(images=images, sources=images[:2]), out)
    assert not list(out.iterdir())
    given = [request(levels=2, images=images[:2], sources=images[1:]), request(levels=2, images=images[:2])]
    for ask in given:  # where no sources are given, as many are drawn
        assert run("exchange")({"VCD": model}, ask, out)[0].exists()


def test_latents_are_written_as_they_are(build, tmp_path):
    model, images = build(*KINDS["noisy"]), [str(saved(tmp_path, mode, 9, 9)) for mode in ("L", "RGB", "P")]
    (file,) = run("encode")({"My Model": model}, request(images=images, posterior=1.0), tmp_path)
    assert file.name == "latents-my-model.npz"
    x0 = to_float(own.read(images, size=8, channels=1, key="images"))
    path, kl = steering.encode(model, x0, PerImage(0, range(3)), 1.0)
    with np.load(file) as found:
        assert set(found) == {"z", "x_T", "kl_bits"}
        assert np.array_equal(found["z"], path.z.numpy()) and np.array_equal(found["x_T"], path.x_T.numpy())
        assert np.allclose(found["kl_bits"], kl.numpy() / math.log(2), rtol=1e-5, atol=0)


def test_the_tables_say_what_was_measured(build, tmp_path):
    model, images = build(*KINDS["vcd"]), [str(saved(tmp_path, mode, 9, 9)) for mode in ("L", "RGB", "P")]
    x0 = to_float(own.read(images, size=8, channels=1, key="images"))
    path, _ = steering.encode(model, x0, PerImage(0, range(3)))
    quality = fidelity(to_uint8(steering.decode(model, path).x0), to_uint8(x0))
    run("reconstruct")({"VCD": model}, request(images=images), tmp_path)
    rows = table(tmp_path / "reconstruct.csv")
    assert [row["image"] for row in rows] == ["0", "1", "2"]
    for column, key in (("psnr_db", "psnr"), ("ssim", "ssim")):
        assert [float(row[column]) for row in rows] == pytest.approx(quality[key].tolist(), abs=1e-3)

    run("bands")({"VCD": model}, request(n=N), tmp_path)
    rows = table(tmp_path / "bands.csv")
    assert [(int(row["t"]), int(row["cycles_per_image"])) for row in rows] == [
        (t, f) for t in (4, 3, 2, 1) for f in range(5)
    ]
    for t in (4, 3, 2, 1):
        share = [float(row["share_of_change"]) for row in rows if int(row["t"]) == t]
        (frequency,) = {float(row["mean_frequency"]) for row in rows if int(row["t"]) == t}
        assert sum(share) == pytest.approx(1, abs=1e-4)
        assert frequency == pytest.approx(sum(f * part for f, part in enumerate(share)), abs=1e-3)


# --- the command ------------------------------------------------------------------------------------------------------


def one_sentence(process: subprocess.CompletedProcess) -> str:
    assert process.returncode == 1 and "Traceback" not in process.stderr, process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def written(process: subprocess.CompletedProcess, task: str, cwd: Path) -> set[Path]:
    """The files that the command says it has written."""
    assert process.returncode == 0, process.stderr
    lines = [line.split(maxsplit=1) for line in process.stdout.splitlines()]
    found = {cwd / line[1] for line in lines if line[0] == task}
    assert found and all(path.stat().st_size > 0 for path in found)
    return found


def test_a_checkpoint_is_enough(command, ckpt, tmp_path):
    """Without `out`, the figure lies beside the checkpoint."""
    moved = Path(shutil.copy(ckpt, tmp_path / "last.ckpt"))
    process = command("control", f"ckpt={moved}", "n=2", cwd=tmp_path)
    assert written(process, "exchange", tmp_path) == {tmp_path / "control" / "exchange.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "control"}


@pytest.mark.long
@pytest.mark.parametrize("task", [task for task in FILES if task != "exchange"])
def test_every_task_writes_its_files(command, ckpt, tmp_path, task):
    saved(tmp_path, "RGBA", 20, 30)
    own_images = ["images=RGBA-20x30.png"] if task in ("encode", "reconstruct", "resample") else []
    process = command("control", f"task={task}", f"ckpt={ckpt}", "n=2", "out=drawn", *own_images, cwd=tmp_path)
    assert {path.name for path in written(process, task, tmp_path)} == FILES[task]
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == FILES[task]
    if task == "encode":
        with np.load(tmp_path / "drawn" / "latents-vcd.npz") as found:
            assert (
                found["z"].shape == (3, 1, 4)
                and found["x_T"].shape == (1, 1, 8, 8)
                and found["kl_bits"].shape == (3, 1)
            )
        model, x0 = checkpoints.load(ckpt)[0], to_float(decoded(tmp_path / "RGBA-20x30.png", 8, 1))[None]
        path, _ = steering.encode(model, x0, PerImage(0, range(1)))
        with np.load(tmp_path / "drawn" / "latents-vcd.npz") as found:
            assert np.allclose(found["z"], path.z.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_task_of_ones_own_is_a_dotted_path(command, ckpt, tmp_path):
    """A module with `run`, or a function."""
    (tmp_path / "mine.py").write_text(
        "def count(models, request, out):\n"
        "    (out / 'count.txt').write_text(f'{len(models)} {request.n}')\n"
        "    return [out / 'count.txt']\n"
    )
    process = command("control", "task=mine.count", f"ckpt={ckpt}", "n=3", "out=drawn", cwd=tmp_path)
    assert written(process, "mine.count", tmp_path) == {tmp_path / "drawn" / "count.txt"}
    assert (tmp_path / "drawn" / "count.txt").read_text() == "1 3"


@pytest.mark.long
def test_two_checkpoints_are_drawn_side_by_side(command, ckpt, tmp_path):
    sizes, other = [], shutil.copy(ckpt, tmp_path / "other.ckpt")
    for out, given in (("one", f"ckpt={ckpt}"), ("both", f"ckpt=[{ckpt},{other}]")):
        process = command("control", "task=bands", given, "n=2", f"out={out}", cwd=tmp_path)
        assert {path.name for path in written(process, "bands", tmp_path)} == FILES["bands"]
        sizes.append(size(tmp_path / out / "bands.png"))
    assert sizes[1][0] == pytest.approx(2 * sizes[0][0], rel=0.05) and sizes[1][1] == sizes[0][1]
    rows = table(tmp_path / "both" / "bands.csv")
    first, second = ([{**row, "model": ""} for row in rows if row["model"] == name] for name in ("VCD", "VCD 2"))
    assert first == second and len(first) == 3 * 5  # the same checkpoint


@pytest.mark.long
def test_what_cannot_be_done_is_one_sentence(command, ckpt, tmp_path):
    images = [str(saved(tmp_path, mode, 9, 9)) for mode in ("L", "RGB")]
    before = set(tmp_path.iterdir())
    given = f"ckpt={ckpt}"
    cases = {
        ("task=exchnge", given): ["task=exchnge is not one of", "exchange", "bands"],
        ("task=exchange",): ["ckpt=runs/"],
        (given, "levels=9", "out=drawn"): ["levels=9", "between 1 and T=3"],
        (given, f"images=[{','.join(images)}]", f"sources={images[0]}", "out=drawn"): ["images has 2 and sources 1"],
        (given, "weights=0"): ["weights=0", "at least 1"],
        (given, "sources=nowhere.png", "out=drawn"): ["sources=nowhere.png: there is no such file"],
    }
    for arguments, words in cases.items():
        sentence = one_sentence(command("control", *arguments, cwd=tmp_path))
        assert all(word in sentence for word in words), sentence
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "drawn"} and len(list(tmp_path.rglob("*.png"))) == 2


@pytest.mark.long
@pytest.mark.parametrize("argument", ["seed=-1", "levels=2.5", "temperatures=[]", "images=3"])
def test_values_that_make_no_sense_are_named(command, ckpt, tmp_path, argument):
    task = "temperature" if argument.startswith("temp") else "exchange"
    sentence = one_sentence(command("control", f"task={task}", f"ckpt={ckpt}", argument, "out=drawn", cwd=tmp_path))
    assert argument.split("=")[0] in sentence and "bug" not in sentence, sentence


@pytest.mark.long
def test_a_checkpoint_without_latents_is_one_sentence(command, ckpt, tmp_path):
    short = [o for o in SHORT if not o.startswith("prior")]
    trained = command("train", *short, "model=rissanen", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    last = trained.stdout.splitlines()[-1].split(maxsplit=1)[1]
    for given in (f"ckpt={last}", f"ckpt=[{ckpt},{last}]"):
        sentence = one_sentence(command("control", "task=exchange", given, "out=drawn", cwd=tmp_path))
        assert "a Rissanen has no latents to steer by" in sentence and "model=vcd or vwd" in sentence
    assert not list((tmp_path / "drawn").iterdir())


def test_every_task_refuses_a_model_without_latents(build, tmp_path):
    model = build("model=rissanen", "T=4")
    for task in FILES:
        with pytest.raises(UserError, match="has no latents to steer by"):
            run(task)({"Rissanen": model}, request(), tmp_path)
    assert not list(tmp_path.iterdir())
