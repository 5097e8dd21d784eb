"""Priors that are fitted after training: held-out images, directions, the mixture, the flow, and refitting a checkpoint."""

import logging
import math

import pytest
import torch

from vcd import checkpoints, training
from vcd.errors import UserError
from vcd.priors import Encoded, Flow, Mixture
from vcd.priors import flow as flows
from vcd.priors.fitted import Directions, Latents, gather
from vcd.priors.mixture import components
from vcd.randomness import PerImage

T, LATENT = 3, 4


def encoded(mean: torch.Tensor, std: float = 0.3, image: torch.Tensor | None = None, seed: int = 0) -> Encoded:
    """Posteriors of this width around these means (n, T * LATENT)."""
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
    steps = [x.unflatten(1, (T, LATENT)).transpose(0, 1).contiguous() for x in (mean + std * noise, mean)]
    n = len(mean)
    return Encoded(torch.zeros(n, 1, 2, 2), *steps, torch.zeros(T, n), PerImage(0, []), image)


def two_modes(n: int, distance: float = 2.0, seed: int = 0) -> torch.Tensor:
    """Means at +-distance in step 1's unit 0 and, with it, at -+distance in step 3's unit 1; 30 % are of the first kind."""
    generator = torch.Generator().manual_seed(seed)
    sign = 1 - 2 * (torch.rand(n, generator=generator) < 0.3).float()
    mean = torch.zeros(n, T * LATENT)
    mean[:, 0], mean[:, 2 * LATENT + 1] = -distance * sign, distance * sign
    mean[:, 5] = 0.9 * torch.randn(n, generator=generator)  # step 2's unit 1: Gaussian
    return mean


def flat(z: torch.Tensor) -> torch.Tensor:
    return z.transpose(0, 1).flatten(1)


# --- what is fitted to -------------------------------------------------------------------------------------------------


def test_held_out_are_images_not_draws_of_the_same_image():
    image = torch.arange(40).repeat(7)
    latents = Latents(torch.zeros(280, 1), torch.zeros(280, 1), image)
    held = latents.held_out
    assert held.sum() == 4 * 7
    assert not set(image[held].tolist()) & set(image[~held].tolist())


@pytest.mark.parametrize(("most", "passes", "rows"), [(1000, 3, 300), (150, 3, 200), (10, 1, 100), (1000, 1, 100)])
def test_small_data_sets_are_gone_through_a_few_times_and_large_ones_in_part(most, passes, rows):
    """80 images, in batches of 100 that wrap around."""
    drawn = []

    def endless():
        while True:
            rows = torch.arange(100 * len(drawn), 100 * len(drawn) + 100)
            drawn.append(rows)
            yield encoded(torch.zeros(100, T * LATENT), image=rows % 80)

    assert len(gather(endless(), most, passes).z) == rows == 100 * len(drawn)


def test_a_data_set_that_does_not_repeat_is_not_cut_short():
    batches = (encoded(torch.zeros(50, T * LATENT), image=torch.arange(50 * i, 50 * i + 50)) for i in range(100))
    assert len(gather(batches, 400, 1).z) == 400


@torch.no_grad()
def test_the_model_tells_images_apart_by_their_pixels(compose):

    cfg = compose(
        "dataset=digits", "T=3", "model=vwd", "network=tiny", "network.unet.dim=8", "network.encoder.latent=4"
    )
    model = training.build(cfg)
    x = torch.rand(5, 1, 8, 8)
    seen = []
    model.prior.fit = lambda batches: seen.extend(next(batches).image.tolist() for _ in range(3))
    model.fit_prior(iter([x, x[[3, 4]], torch.cat([x[:1], torch.rand(1, 1, 8, 8)])]))
    assert seen == [[0, 1, 2, 3, 4], [3, 4], [0, 5]]


def test_directions_are_white_and_the_first_tell_the_most():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator)
    mean = torch.randn(5000, 6, generator=generator) * torch.tensor([2.0, 1.0, 0.5, 0.0, 0.0, 0.0]) @ mix
    z = mean + torch.randn(5000, 6, generator=generator)
    directions = Directions(z, mean)
    w = directions(z)
    torch.testing.assert_close(torch.cov(w.T), torch.eye(6, dtype=torch.float64), atol=0.05, rtol=0)
    torch.testing.assert_close(w @ directions.basis.mT + directions.centre, z.double(), atol=1e-8, rtol=0)
    means = (mean.double() - directions.centre) @ directions.inverse.mT
    torch.testing.assert_close(means.var(0), directions.share, atol=0.05, rtol=0)
    assert (directions.share.diff() < 1e-9).all() and directions.rank == 3


# --- both --------------------------------------------------------------------------------------------------------------

QUICK = {"hidden": 96, "steps": 1000, "batch": 128, "lr": 3e-3}


def mixture(**changes) -> Mixture:
    return Mixture(**{"latent": LATENT, "components": 8, "images": 4000} | changes)


def flow(**changes) -> Flow:
    return Flow(**{"latent": LATENT, "images": 4000} | QUICK | changes)


@pytest.fixture(scope="module", params=[mixture, flow], ids=["mixture", "flow"])
def fitted(request):
    prior = request.param()
    prior.fit([encoded(two_modes(4000))])
    return prior


def test_two_far_gaussians_are_found_again_with_their_moments(fitted):
    z = flat(fitted.sample(T, PerImage(0, range(4000)))).double()
    truth = flat(encoded(two_modes(4000, seed=1), seed=1).z).double()
    first = z[:, 0] > 0
    assert first.double().mean().item() == pytest.approx(0.3, abs=0.04)
    assert ((z[:, 0] > 0) == (z[:, 9] < 0)).double().mean() > 0.98  # steps of one image belong together
    assert (z[:, 0].abs() < 1).double().mean() < 0.02  # nothing between the modes
    units = [0, 5, 9]
    torch.testing.assert_close(z[:, units].mean(0), truth[:, units].mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(torch.cov(z[:, units].T), torch.cov(truth[:, units].T), atol=0.3, rtol=0)


def test_units_that_are_not_in_use_stay_standard_normal(fitted):
    z = flat(fitted.sample(T, PerImage(0, range(4000)))).double()
    assert sorted(fitted.units.tolist()) == [0, 5, 9]
    idle = [i for i in range(T * LATENT) if i not in (0, 5, 9)]
    torch.testing.assert_close(torch.cov(z[:, idle].T), torch.eye(9, dtype=torch.float64), atol=0.1, rtol=0)
    assert torch.cov(z.T)[idle][:, [0, 5, 9]].abs().max() < 0.15


def test_an_image_is_its_own_randomness(fitted):
    z = fitted.sample(T, PerImage(3, range(8)))
    torch.testing.assert_close(fitted.sample(T, PerImage(3, [5])), z[:, 5:6], rtol=0, atol=1e-5)
    assert (fitted.sample(T, PerImage(3, [5, 6]))[:, 0] - fitted.sample(T, PerImage(4, [5, 6]))[:, 0]).abs().max() > 0.1


def test_what_was_fitted_travels_in_the_state_dict(fitted):
    other = mixture() if isinstance(fitted, Mixture) else flow(hidden=16)  # what was stored decides the shapes
    other.load_state_dict(fitted.state_dict())
    assert not list(fitted.parameters())  # checkpoints store buffers; optimisers and averages must not see it
    for ask in (
        lambda p: p.sample(T, PerImage(0, range(8)), 0.7),
        lambda p: p.resample(torch.ones(T, 8, LATENT), [2], PerImage(0, range(8))),
    ):
        assert torch.equal(ask(other), ask(fitted))


@pytest.mark.parametrize("fit", [True, False])
def test_a_mixture_is_stored_without_what_is_above_the_diagonal_and_was_stored_whole(fit):
    ours = mixture()
    if fit:
        ours.fit([encoded(two_modes(4000))])
    stored, (K, D) = ours.state_dict(), ours.means.shape
    assert stored["factors"].shape == (K, D * (D + 1) // 2) and (D > 0) == fit
    for state in (stored, {**stored, "factors": ours.factors}):
        other = mixture()
        other.load_state_dict(state)
        assert torch.equal(other.factors, ours.factors)


def test_temperature_draws_in(fitted):
    hot, cold = (flat(fitted.sample(T, PerImage(0, range(500)), t)) for t in (1.0, 0.3))
    assert cold[:, 5].std() < 0.9 * hot[:, 5].std() and cold[:, 6].std() < 0.4
    if isinstance(fitted, Flow):  # one start, one image
        assert cold[:, 5].std() < 0.4
        again = [fitted.sample(T, PerImage(s, range(4)), 0.0) for s in (0, 1)]
        torch.testing.assert_close(again[0], again[1], rtol=0, atol=1e-5)


def test_resampled_steps_follow_those_that_are_kept(fitted):
    z = encoded(two_modes(600, seed=2), seed=2).z
    new = fitted.resample(z, [3], PerImage(0, range(600)))
    assert torch.equal(new[:2], z[:2]) and (new[2] != z[2]).all()
    agree = ((new[2, :, 1] < 0) == (z[0, :, 0] > 0)).double().mean().item()
    assert agree > (0.99 if isinstance(fitted, Mixture) else 0.9)


def test_resampling_all_or_nothing_is_sampling_or_the_identity(fitted):
    z = torch.ones(T, 4, LATENT)
    every = fitted.resample(z, [1, 2, 3], PerImage(0, range(4)))
    assert torch.equal(every, fitted.sample(T, PerImage(0, range(4))))
    assert torch.equal(fitted.resample(z, [], PerImage(0, range(4))), z)


def test_it_is_standard_normal_until_it_is_fitted_and_if_no_unit_is_in_use(caplog):
    for prior in (mixture(), flow()):
        before = prior.sample(T, PerImage(0, range(4)))
        assert torch.equal(flat(before), PerImage(0, range(4)).normal(T * LATENT))
        with caplog.at_level(logging.WARNING):
            prior.fit([encoded(torch.zeros(4000, T * LATENT))])
        assert "no latent unit is in use" in caplog.text
        assert torch.equal(prior.sample(T, PerImage(0, range(4))), before)


def test_a_handful_of_images_can_be_fitted_to():
    for prior in (mixture(), flow(steps=5)):
        prior.fit([encoded(two_modes(5), image=torch.arange(5))])
        assert prior.sample(T, PerImage(0, range(3))).isfinite().all()
        prior.fit([encoded(two_modes(5), image=torch.zeros(5, dtype=torch.int64))])  # and to one, five times
        assert prior.sample(T, PerImage(0, range(3))).isfinite().all()


def test_there_may_be_fewer_latents_than_units_in_use():
    """Of 30 units: nothing is singular, and what is drawn is about as wide as the latents."""
    mean = torch.randn(8, 30, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    z = mean + 0.3 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    steps = [x.unflatten(1, (3, 10)).transpose(0, 1).contiguous() for x in (z, mean)]
    n = len(mean)
    given = Encoded(torch.zeros(n, 1, 2, 2), *steps, torch.zeros(3, n), PerImage(0, []), torch.arange(n) % 8)
    for prior in (Mixture(latent=10, components=4, images=n), Flow(latent=10, images=n, **{**QUICK, "steps": 5})):
        prior.fit([given])
        assert len(prior.units) > n
        assert 0.5 < prior.sample(3, PerImage(0, range(500))).var(1).mean() / z.var(0).mean() < 2
        assert prior.resample(steps[0], [2], PerImage(0, range(n))).isfinite().all()


def test_so_may_several_components():
    w = torch.randn(440, 500, generator=torch.Generator().manual_seed(0)).double()
    w[:, 0] = w[:, 0] / 10 + torch.arange(440) % 2 * 20 - 10
    found = components(w, w[:40], 8, 2, 30)
    assert len(found.weights) == 2 and torch.linalg.cholesky_ex(found.covariances).info.eq(0).all()
    widths = found.covariances.diagonal(dim1=1, dim2=2)
    assert (widths[:, 0] < 0.1).all() and widths[:, 1:].mean().item() == pytest.approx(1, abs=0.1)


# --- the mixture -------------------------------------------------------------------------------------------------------


def log_density(prior: Mixture, z: torch.Tensor) -> float:
    """Per row, by torch's own distributions."""
    parts = torch.distributions.MultivariateNormal(prior.means.double(), scale_tril=prior.factors.double())
    weights = torch.distributions.Categorical(prior.weights.double())
    return torch.distributions.MixtureSameFamily(weights, parts).log_prob(z[:, prior.units].double()).mean().item()


def test_many_components_do_not_overfit_what_is_gaussian():
    """20 full covariances in 30 dimensions on 1,000 latents: far worse than one Gaussian on others; what is chosen, not."""
    from sklearn.mixture import GaussianMixture

    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2000, 30, generator=generator) @ torch.randn(30, 30, generator=generator) / 5
    prior = Mixture(latent=10, components=20, images=1000)
    z = mean + 0.5 * torch.randn(mean.shape, generator=generator)
    steps = [x[:1000].unflatten(1, (3, 10)).transpose(0, 1).contiguous() for x in (z, mean)]
    prior.fit([Encoded(torch.zeros(1000, 1, 2, 2), *steps, torch.zeros(3, 1000), PerImage(0, []))])
    fitted, others = z[:1000].double().numpy(), z[1000:].double().numpy()
    one = GaussianMixture(1, reg_covar=1e-6).fit(fitted).score(others)
    assert GaussianMixture(20, reg_covar=1e-2, random_state=0, max_iter=5).fit(fitted).score(others) < one - 5
    assert log_density(prior, z[1000:]) > one - 0.5


def test_components_in_few_of_many_dimensions_are_worth_their_gain():
    """Two modes in one of 40 noisy directions: the density of new images is close to the true one."""
    torch.manual_seed(0)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        mean = 0.2 * torch.randn(n, 40)
        mean[:, 0] = 2.0 * (torch.rand(n) < 0.5) - 1.0
        return mean + torch.cat([torch.full((1,), 0.3), torch.ones(39)]) * torch.randn(n, 40), mean

    (z, mean), (other, _) = draw(2000), draw(2000)
    prior = Mixture(latent=40, components=2, images=2000)
    prior.fit([Encoded(torch.zeros(2000, 1, 2, 2), z[None], mean[None], torch.zeros(1, 2000), PerImage(0, []))])
    normal = torch.distributions.Normal
    mode = torch.stack([normal(m, math.hypot(0.3, 0.0)).log_prob(other[:, 0]) for m in (-1.0, 1.0)]).logsumexp(
        0
    ) - math.log(2)
    true = (mode + normal(0.0, math.hypot(1.0, 0.2)).log_prob(other[:, 1:]).sum(1)).mean().item()
    assert len(prior.units) == 40
    assert log_density(prior, other) == pytest.approx(true, abs=0.6)  # one Gaussian: 0.8 worse in this direction alone
    torch.manual_seed(0)


@torch.no_grad()
def test_every_component_has_a_mean_and_a_covariance_in_all_directions():
    """Two kinds, told apart by one loud direction; in two quieter ones they have opposite correlations and other means."""
    torch.manual_seed(0)
    kind = (torch.arange(4000) % 2) * 2.0 - 1.0
    mean = torch.zeros(4000, 12)
    mean[:, 0] = 3 * kind + 0.1 * torch.randn(4000)
    mean[:, 1] = torch.randn(4000) + kind
    mean[:, 2] = kind * mean[:, 1]
    z = mean + torch.cat([torch.tensor([0.1, 0.5, 0.5]), torch.ones(9)]) * torch.randn(4000, 12)
    prior = Mixture(latent=12, components=8, images=4000)
    prior.fit([Encoded(torch.zeros(4000, 1, 2, 2), z[None], mean[None], torch.zeros(1, 4000), PerImage(0, []))])
    drawn = prior.sample(1, PerImage(0, range(4000)))[0]
    for sign in (-1, 1):
        of_kind = drawn[drawn[:, 0] * sign > 0]
        assert torch.corrcoef(of_kind[:, 1:3].T)[0, 1] == pytest.approx(0.8 * sign, abs=0.06)
        assert of_kind[:, 1].mean() == pytest.approx(sign, abs=0.1)


def test_a_component_of_few_latents_has_the_covariance_of_all():
    """Shrinkage is a mean, weighted by how many latents speak for each side."""
    torch.manual_seed(0)
    w = torch.cat([torch.randn(3000, 2) * torch.tensor([1.0, 0.2]), torch.randn(30, 2) * 0.1 + 50]).double()
    found = {
        few: next(C for C, m in zip(*(lambda c: (c.covariances, c.means))(components(w, w[::10], 2, 2, few)), strict=True) if m[0] > 25)
        for few in (1, 30_000)
    }  # fmt: skip
    own, average = torch.cov(w[3000:].T, correction=0), torch.cov(w[:3000].T)
    torch.testing.assert_close(found[1], (30 * own + average) / 31, rtol=0.1, atol=3e-3)
    torch.testing.assert_close(found[30_000], average, rtol=0.1, atol=0.02)


# --- the flow ----------------------------------------------------------------------------------------------------------


def test_the_gaussian_velocity_keeps_a_standard_normal_standard_normal():
    """An unfitted network adds nothing: the flow is the Gaussian fit, coordinate by coordinate."""
    prior = flow(heun=40)
    w = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    prior.centre, prior.basis = torch.zeros(3), torch.eye(3)
    widths = [2 + 2 * flows.FREQUENCIES, 8, 8, 8, 2]
    for i in range(flows.LAYERS):
        last = i == flows.LAYERS - 1
        setattr(prior, f"weight{i}", (torch.zeros if last else torch.randn)(widths[i + 1], widths[i]))
        setattr(prior, f"bias{i}", torch.zeros(widths[i + 1]))
    torch.testing.assert_close(prior._flow(w), w, rtol=0, atol=2e-3)


def test_the_velocity_of_a_mixture_is_the_mean_of_its_lines():
    """E[w_1 - w_0 | w_u], by importance over many ends: w_0 is what is left of w_u."""
    generator = torch.Generator().manual_seed(0)
    weights, means = torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [1.2, 0.0]])
    axes, _ = torch.linalg.qr(torch.randn(2, 2, 2, generator=generator))
    variances = torch.tensor([[0.1, 0.6], [0.3, 0.2]])
    k = (torch.rand(400_000, generator=generator) > 0.3).long()
    noise = torch.randn(len(k), 2, 1, generator=generator)
    ends = means[k] + (axes[k] @ (variances[k].sqrt()[..., None] * noise))[..., 0]
    for u in (0.0, 0.3, 0.8):
        w = torch.tensor([[0.2, 0.1]])
        starts = (w - u * ends) / (1 - u)
        density = (-starts.square().sum(1) / 2).exp()
        expected = ((ends - starts) * density[:, None]).sum(0) / density.sum()
        found = flows.mixture(w, torch.tensor([[u]]), weights, means, variances, axes)
        torch.testing.assert_close(found[0], expected, rtol=0, atol=0.02)


def test_where_the_network_learns_nothing_the_flow_draws_what_the_mixture_does():
    prior = flow(steps=1, lr=1e-9, heun=100)
    prior.fit([encoded(two_modes(2000))])
    z, truth = flat(prior.sample(T, PerImage(0, range(4000)))), flat(encoded(two_modes(4000, seed=1), seed=1).z)
    assert (z[:, 0].abs() < 1).double().mean() < 0.02
    torch.testing.assert_close(z[:, [0, 9]].std(0), truth[:, [0, 9]].std(0), atol=0.1, rtol=0)
    assert ((z[:, 0] > 0) == (z[:, 9] < 0)).double().mean() > 0.98


def test_the_loss_on_new_latents_is_below_that_of_the_gaussian(fitted):
    if not isinstance(fitted, Flow):
        pytest.skip("of the flow")
    z = flat(encoded(two_modes(4000, seed=7), seed=7).z)[:, fitted.units]
    w = ((z - fitted.centre) @ torch.linalg.inv(fitted.basis).mT)[:, : len(fitted.bias3)]
    generator = torch.Generator().manual_seed(0)
    start, u = torch.randn(w.shape, generator=generator), torch.rand(len(w), 1, generator=generator)
    *hidden, (weight, bias) = fitted.layers
    begun = fitted._loss([*hidden, (torch.zeros_like(weight), torch.zeros_like(bias))], w, start, u).item()
    at = torch.lerp(start, w, u)
    gaussian = (flows.gaussian(at, u) - (w - start)).square().mean().item()
    assert gaussian == pytest.approx(math.pi / 2, rel=0.06)  # of N(0, I): the integral of 1 / (u^2 + (1 - u)^2)
    assert begun < 0.9 * gaussian and fitted._loss(fitted.layers, w, start, u).item() < 1.01 * begun


def test_the_fit_says_what_was_fitted_to_how_well_and_how_long_it_took(caplog):
    with caplog.at_level(logging.INFO):
        flow(steps=20).fit([encoded(two_modes(500), image=torch.arange(500) % 100)])
        mixture().fit([encoded(two_modes(500), image=torch.arange(500) % 100)])
    for words in caplog.messages:
        assert "500 latents of 100 images" in words and words.endswith(" s")
    assert "held-out loss" in caplog.messages[0] and all("nats per image better" in words for words in caplog.messages)


def test_gaussian_latents_are_resampled_from_the_exact_conditional():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4000, T * LATENT, generator=generator) @ torch.randn(12, 12, generator=generator)
    prior = flow(steps=1, components=1)
    prior.fit([encoded(mean)])
    S, centre = (prior.basis @ prior.basis.mT).double(), prior.centre.double()
    z = encoded(mean[:1]).z.expand(-1, 3000, -1).contiguous()
    new = flat(prior.resample(z, [2], PerImage(0, range(3000)))).double()
    kept, drawn = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7]
    across = S[drawn][:, kept] @ torch.linalg.inv(S[kept][:, kept])
    expected = centre[drawn] + across @ (flat(z)[0].double() - centre)[kept]
    left = S[drawn][:, drawn] - across @ S[kept][:, drawn]
    whiten = torch.linalg.inv(torch.linalg.cholesky(left))
    assert (whiten @ (new[:, drawn].mean(0) - expected)).abs().max() < 0.1
    torch.testing.assert_close(
        whiten @ torch.cov(new[:, drawn].T) @ whiten.mT, torch.eye(4).double(), rtol=0, atol=0.12
    )


def test_fitting_is_the_same_every_time_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    state, priors = torch.get_rng_state(), [flow(steps=20), flow(steps=20)]
    for prior in priors:
        prior.fit([encoded(two_modes(500))])
        torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in priors[0].state_dict().items():
        assert torch.equal(priors[1].state_dict()[name], value)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: mixture(components=0), "prior.components=0"),
        (lambda: mixture(images=0), "images=0"),
        (lambda: mixture(shrinkage=0), "prior.shrinkage=0"),
        (lambda: flow(steps=0), "prior.steps=0"),
        (lambda: flow(passes=0), "passes=0"),
    ],
)
def test_what_cannot_be_is_refused(make, word):
    with pytest.raises(UserError, match=word):
        make()


# --- another prior for a trained checkpoint ----------------------------------------------------------------------------


@pytest.mark.long
def test_a_checkpoint_is_given_another_prior_and_samples_with_it_alone(trained, command, tmp_path):
    """Until it is fitted, a prior that needs a fit is refused; then every command takes the new checkpoint as it is."""
    refused = command("sample", f"ckpt={trained.last}", "prior=flow", "n=2", cwd=tmp_path)
    assert refused.returncode == 1 and refused.stderr.splitlines()[-1].startswith("error: ")
    assert "holds no Flow" in refused.stderr and "vcd.refit" in refused.stderr
    small = ["prior.steps=20", "prior.images=600", "prior.hidden=16", "prior.heun=4"]
    out = tmp_path / "flow.ckpt"
    done = command("refit", f"ckpt={trained.last}", "prior=flow", *small, f"out={out}", cwd=tmp_path)
    assert done.returncode == 0 and str(out) in done.stdout, done.stderr
    before, after = checkpoints.read(trained.last), checkpoints.read(out)
    for weights in checkpoints.WEIGHTS:
        own = {k: v for k, v in before[weights].items() if not k.startswith("prior.")}
        assert all(torch.equal(after[weights][name], value) for name, value in own.items())
        assert len(after[weights]["prior.weight3"]) > 0
    model, cfg = checkpoints.load(out)
    assert isinstance(model.prior, Flow) and cfg.prior._target_ == "vcd.priors.Flow" and model.prior.heun == 4
    old, _ = checkpoints.load(trained.last)
    randomness = [PerImage(0, range(3)) for _ in range(2)]
    assert not torch.equal(model.sample(randomness[0]).x0, old.sample(randomness[1]).x0)


def test_a_model_without_latents_has_no_prior_to_refit(compose, tmp_path, here):
    from omegaconf import OmegaConf

    cfg = compose("dataset=digits", "model=bansal", "T=3", "network=tiny", "network.unet.dim=8")
    config = {
        key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("model", "degradation", "space", "dataset")
    }
    state = training.build(cfg).state_dict()
    from vcd import __version__

    torch.save({checkpoints.CONFIG: config, checkpoints.VERSION: __version__, "state_dict": state}, tmp_path / "a.ckpt")
    assert "a Bansal has no latents" in here("refit", "ckpt=a.ckpt", "prior=flow").sentence


def test_raw_weights_with_a_prior_of_the_averaged_ones_are_warned_of(trained, caplog):
    with caplog.at_level(logging.WARNING):
        checkpoints.load(trained.last, raw=True)
    assert "fitted to the averaged weights" in caplog.text
