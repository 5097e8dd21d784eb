"""The variational bound, computed a second time by hand; what is measured level by level; validation that repeats."""

import math
from itertools import pairwise

import pytest
import pytorch_lightning as L
import torch
from conftest import TINY, scramble
from torch.distributions import Normal, kl_divergence

from vcd import training
from vcd.annealing import kl_weight
from vcd.batch import Condition, Degraded
from vcd.callbacks.ema import EMA
from vcd.data.datamodule import DegradationDataModule
from vcd.data.digits import Digits
from vcd.models.variational import Variational
from vcd.monitoring import ActiveUnits, PerLevel
from vcd.priors import Independent, Shared
from vcd.randomness import PerImage

pytestmark = pytest.mark.usefixtures("seed")


@pytest.fixture
def build(compose):
    """A tiny model whose weights are all at work."""

    def build(*overrides: str) -> Variational:
        return scramble(training.build(compose(*TINY, *overrides)), 0.1)

    return build


def batch_for(model: Variational, n: int = 12) -> Degraded:
    x0, D = torch.rand(n, 1, 8, 8) * 2 - 1, model.degradation
    t = torch.arange(n) % D.T + 1
    s, eps = model.prediction.level(t), D.draw(x0)
    return Degraded(x0, t, s, D(x0, t, eps), D(x0, s, eps), eps, torch.zeros(n, dtype=torch.long))


# --- the KL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [Independent(latent=7), Shared(latent=7)])
def test_the_kl_is_that_of_torch_and_of_the_closed_formula(prior):
    mean, std = torch.randn(50, 7, dtype=torch.float64), torch.exp(torch.randn(50, 7, dtype=torch.float64))
    x_t, t = torch.randn(50, 1, 8, 8), torch.arange(50) % 3 + 1
    kl = prior.kl(Normal(mean, std), x_t, t)
    standard = Normal(torch.zeros_like(mean), torch.ones_like(std))
    torch.testing.assert_close(kl, kl_divergence(Normal(mean, std), standard).sum(1), rtol=1e-14, atol=0)
    closed = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).sum(1)
    torch.testing.assert_close(kl, closed, rtol=1e-12, atol=1e-12)
    assert torch.equal(prior.kl(standard, x_t, t), torch.zeros(50, dtype=torch.float64))


# --- the losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("annealing", [0, 3000])
@pytest.mark.parametrize("coherent", [True, False])
@pytest.mark.parametrize("prediction", ["xt", "vxt", "x0"])
def test_every_term_is_what_the_formula_says(build, prediction, coherent, annealing):
    model = build("model=vwd", f"prediction={prediction}", "perturbation=gaussian", "perturbation.sigma=0.2",
                  f"perturbation.coherent={coherent}", "model.beta=0.03", f"model.annealing={annealing}").train()  # fmt: skip
    batch = batch_for(model)
    torch.manual_seed(7)
    losses = model.losses(batch)

    torch.manual_seed(7)
    noisy = batch.x_t + 0.2 * torch.randn_like(batch.x_t)
    base = noisy if coherent else batch.x_t
    q = model.encoder(base, batch.x_s, batch.t, batch.s)
    z = q.mean + q.stddev * torch.normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))
    out = model.network(noisy, batch.t, batch.s, Condition(z))
    x_s = out if prediction == "x0" else base + out
    total = 0.0
    for i in range(12):
        sse = sum((a - b) ** 2 for a, b in zip(batch.x_s[i].flatten().tolist(), x_s[i].flatten().tolist(), strict=True))
        kl = sum(
            0.5 * (m * m + sd * sd - 1) - math.log(sd)
            for m, sd in zip(q.mean[i].tolist(), q.stddev[i].tolist(), strict=True)
        )
        assert losses.terms["reconstruction_sse"][i].item() == pytest.approx(sse, rel=1e-5)
        assert losses.terms["kl_bits"][i].item() == pytest.approx(kl / math.log(2), rel=1e-4, abs=1e-6)
        assert losses.terms["loss"][i].item() == pytest.approx(sse + 0.03 * kl, rel=1e-5)
        total += (sse + 0.03 * kl * (1.55e-4 if annealing else 1.0)) / 12
    assert losses.total.item() == pytest.approx(total, rel=1e-5)
    assert set(losses.terms) == {"loss", "reconstruction_sse", "kl_bits"}
    assert sum(losses.terms["kl_bits"].tolist()) > 0.1  # the weights are at work


def test_a_calibrated_beta_follows_the_error_of_its_level(build):
    """beta_t = max(beta, 2 MSE_t), the running mean begun by the first batch; validation looks and does not touch."""
    model = build("model=vwd", "model.calibrated=true", "model.beta=0.02").train()
    batch = batch_for(model)

    def mean_errors(losses):
        error = losses.terms["reconstruction_sse"].detach() / batch.x0[0].numel()
        return torch.stack([error[batch.t == t].mean() for t in (1, 2, 3)])

    first = mean_errors(model.losses(batch))
    torch.testing.assert_close(model.mse[1:], first)
    losses = model.losses(batch)
    expected = 0.99 * first + 0.01 * mean_errors(losses)
    torch.testing.assert_close(model.mse[1:], expected)
    beta = (2 * expected).clamp(min=0.02)[batch.t - 1]
    sse, kl = losses.terms["reconstruction_sse"], losses.terms["kl_bits"] * math.log(2)
    assert (beta > 0.02).any()
    torch.testing.assert_close(losses.total, (sse + beta * kl).mean())
    model.eval().losses(batch)
    torch.testing.assert_close(model.mse[1:], expected)
    model.mse.zero_()
    assert model.betas(batch.t).tolist() == [pytest.approx(0.02)] * len(batch.t)  # the floor


def test_a_level_within_its_free_bits_feels_no_kl(build):
    """A level above them, by the mean of its images, feels all of it."""
    model = build("model=vwd", "model.beta=0.5").train()
    batch = batch_for(model)
    torch.manual_seed(7)
    bits = model.losses(batch).terms["kl_bits"].detach()
    means = torch.stack([bits[batch.t == t].mean() for t in (1, 2, 3)])
    model.free_bits = (means.min() + means.max()).item() / 2
    torch.manual_seed(7)
    losses = model.losses(batch)
    above = (means > model.free_bits)[batch.t - 1]
    assert above.any() and not above.all()
    charged = torch.where(above, bits, torch.tensor(model.free_bits)) * math.log(2)
    torch.testing.assert_close(losses.total, (losses.terms["reconstruction_sse"] + 0.5 * charged).mean())
    torch.testing.assert_close(losses.terms["kl_bits"], bits)  # what is logged is the whole of it
    leaf = bits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model._charged(leaf, batch.t).sum(), leaf)
    assert torch.equal(slope != 0, model._charged(bits, batch.t) == bits)


def test_eps_is_compared_with_the_noise(build):
    model = build("model=plain", "prediction=eps", "degradation=noise", "schedule=linear").train()
    batch = batch_for(model)
    torch.manual_seed(7)
    losses = model.losses(batch)
    torch.manual_seed(7)
    z = model.encoder(batch.x_t, batch.x_s, batch.t, batch.s).rsample()
    expected = (model.network(batch.x_t, batch.t, batch.s, Condition(z)) - batch.eps).square().sum((1, 2, 3))
    torch.testing.assert_close(losses.terms["reconstruction_sse"], expected, rtol=1e-5, atol=0)


def test_validation_weighs_the_kl_fully_and_stays_on_the_true_path(build):
    model = build(
        "model=vcd", "perturbation=rollout", "perturbation.sigma=0.0", "model.beta=0.03", "model.annealing=3000"
    ).eval()
    batch = batch_for(model)
    losses = model.losses(batch)
    torch.testing.assert_close(losses.total, losses.terms["loss"].mean(), rtol=1e-6, atol=0)
    q = model.encoder(batch.x_t, batch.x_s, batch.t, batch.s)
    torch.testing.assert_close(
        losses.terms["kl_bits"], model.prior.kl(q, batch.x_t, batch.t) / math.log(2), rtol=1e-6, atol=0
    )


def test_vcd_is_trained_on_the_states_of_its_own_rollout(build):
    """The terms of VCD are those of the states that `perturbation` shows, encoder and base included."""
    model = build("model=vcd", "degradation=black_blur", "perturbation=rollout", "perturbation.p=0.0",
                  "perturbation.p_warmup=0.0", "perturbation.true_share=0.0",
                  "perturbation.sigma=0.0").train()  # fmt: skip
    batch = batch_for(model)
    torch.manual_seed(7)
    losses = model.losses(batch)
    torch.manual_seed(7)
    x_t = model.perturbation(batch, model).base
    assert torch.equal(x_t[batch.t == 3], batch.x_t[batch.t == 3])
    assert ((x_t - batch.x_t).abs().amax((1, 2, 3))[batch.t < 3] > 1e-3).all()
    q = model.encoder(x_t, batch.x_s, batch.t, batch.s)
    xhat_s = x_t + model.network(x_t, batch.t, batch.s, Condition(q.rsample()))
    expected = (batch.x_s - xhat_s).square().sum((1, 2, 3))
    torch.testing.assert_close(losses.terms["reconstruction_sse"], expected, rtol=1e-5, atol=0)


def test_the_teacher_is_the_average_once_it_is_warm(build, tmp_path):
    model = build("model=vcd", "perturbation=rollout")
    assert model.averaged is None
    assert model.teacher(live=True) is model and model.teacher(live=False) is model

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            average = module.averaged
            assert module.teacher(live=True) is module and module.teacher(live=False) is average is not module
            pairs = zip(module.parameters(), average.parameters(), strict=True)
            away.append(max((mine - mean).abs().max().item() for mine, mean in pairs))

    away: list[float] = []
    data = DegradationDataModule(dataset=Digits(size=8, channels=1), degradation=model.degradation,
                                 prediction=model.prediction, batch_size=8, steps=4, flip=False, seed=0)  # fmt: skip
    trainer = L.Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
                        callbacks=[EMA(decay=0.9), Watch()], limit_val_batches=0, enable_progress_bar=False,
                        enable_model_summary=False)  # fmt: skip
    trainer.fit(model, data)
    assert away[0] == 0 and away[-1] > 0  # it follows


def test_gradients_reach_network_and_encoder(build):
    for overrides in (["model=vwd", "perturbation=gaussian"], ["model=vcd", "perturbation=rollout"]):
        model = build(*overrides).train()
        model.losses(batch_for(model)).total.backward()
        assert all(
            p.grad is not None and p.grad.any() for p in [*model.network.parameters(), *model.encoder.parameters()]
        )


@pytest.mark.parametrize("A", [1, 300, 20_000, 30_000])
def test_annealing_is_as_published(A):
    assert kl_weight(0, A) == 1.55e-4
    assert kl_weight(math.ceil(A / 3) - 1, A) == 1.55e-4
    assert kl_weight(A // 3 + A // 2, A) == pytest.approx(0.5, abs=2 / A) or A == 1
    assert kl_weight(math.ceil(A / 3) + A, A) == 1.0
    assert kl_weight(10 * A, A) == 1.0
    for step in range(math.ceil(A / 3), math.ceil(A / 3) + A, max(1, A // 7)):
        assert kl_weight(step, A) == pytest.approx(math.sin(math.pi / 2 * (step - A / 3) / A) ** 2, abs=1e-12)


def test_no_annealing_is_full_weight_throughout():
    assert [kl_weight(step, 0) for step in (0, 1, 10**6)] == [1.0, 1.0, 1.0]


# --- level by level ---------------------------------------------------------------------------------------------------


def test_means_by_level_are_those_of_a_hand_computation():
    metric = PerLevel(T=4)
    t = torch.tensor([1, 1, 2, 4, 4, 4])
    metric.update({"a": torch.tensor([1.0, 3.0, 10.0, 1.0, 2.0, 3.0]), "b": torch.arange(6.0)}, t)
    metric.update({"a": torch.tensor([5.0]), "b": torch.tensor([-1.0])}, torch.tensor([1]))
    means = {name: value.item() for name, value in metric.compute().items()}
    assert means == pytest.approx({
        "a/t01": 3.0, "a/t02": 10.0, "a/t04": 2.0, "a": 5.0,  # level 3 was not seen; the mean is that of the levels
        "b/t01": 0.0, "b/t02": 2.0, "b/t04": 4.0, "b": 2.0,
    })  # fmt: skip
    metric.reset()
    assert metric.count.sum() == 0
    metric.update({"a": torch.tensor([7.0]), "b": torch.tensor([0.0])}, torch.tensor([3]))
    assert {k: v.item() for k, v in metric.compute().items()} == {"a": 7.0, "a/t03": 7.0, "b": 0.0, "b/t03": 0.0}


@pytest.mark.parametrize("T", [1, 6, 32, 33, 50, 100, 1000])
def test_many_levels_are_grouped_and_named_by_what_they_hold(T):
    metric = PerLevel(T=T)
    values = torch.rand(T, dtype=torch.float64)
    metric.update({"a": values.float()}, torch.arange(1, T + 1))
    means = metric.compute()
    spans = [name.removeprefix("a/t").split("-") for name in means if name != "a"]
    assert len(spans) == (T if T <= 32 else 16)
    assert spans == sorted(spans)  # alphabetical order is that of the levels
    covered = []
    for span in spans:
        first, last = int(span[0]), int(span[-1])
        covered += range(first, last + 1)
        expected = values[first - 1 : last].mean().item()
        assert means[f"a/t{'-'.join(span)}"].item() == pytest.approx(expected, rel=1e-6)
    assert covered == list(range(1, T + 1))
    sizes = [int(span[-1]) - int(span[0]) for span in spans]
    assert max(sizes) - min(sizes) <= 1


def test_sums_do_not_lose_small_terms():
    metric = PerLevel(T=1)
    metric.update({"a": torch.full((1,), 1e8)}, torch.tensor([1]))
    for _ in range(100):
        metric.update({"a": torch.ones(1)}, torch.tensor([1]))
    assert metric.compute()["a"].item() == pytest.approx((1e8 + 100) / 101, rel=1e-7)


def test_active_units_are_those_whose_mean_varies_over_images():
    metric, n = ActiveUnits(T=3, latent=4), 1000
    mean = torch.randn(2 * n, 4) * torch.tensor([1.0, 0.2, 0.05, 0.0]) + torch.tensor([5.0, 0.0, -3.0, 7.0])
    t = torch.tensor([1, 2]).repeat(n)
    mean[t == 2, 0] = 5.0
    for rows in torch.arange(2 * n).split(300):
        metric.update(mean[rows], t[rows])
    assert metric.compute().tolist() == [
        2,
        1,
        0,
    ]  # variances 1, 0.04, 0.0025, 0; at level 2 the first is still; 3 unseen
    metric.reset()
    assert metric.compute().tolist() == [0, 0, 0]


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [["model=vwd", "perturbation=gaussian"], ["model=vcd", "perturbation=rollout"],
                                       ["model=plain", "degradation=noise"]])  # fmt: skip
def test_validation_repeats_and_leaves_the_random_state_alone(build, overrides, tmp_path):
    model = build(*overrides)
    data = DegradationDataModule(dataset=Digits(size=8, channels=1), degradation=model.degradation,
                                 prediction=model.prediction, batch_size=50, steps=1, flip=False, seed=0,
                                 val_images=120)  # fmt: skip
    results, states = [], []
    for _ in range(2):
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                            enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
        before = torch.get_rng_state()
        results.append(trainer.validate(model, data, verbose=False)[0])
        states.append(torch.equal(before, torch.get_rng_state()))
        torch.rand(100)  # other random numbers around it
    assert states == [True, True]
    assert results[0] == results[1]
    names = {"val/loss", "val/reconstruction_sse", "val/kl_bits"}
    assert results[0].keys() == names | {f"{n}/t{t:02}" for n in names for t in (1, 2, 3)} | {"val/active_units"}
    assert all(math.isfinite(value) for value in results[0].values())
    for name in names:
        levels = [results[0][f"{name}/t{t:02}"] for t in (1, 2, 3)]
        assert results[0][name] == pytest.approx(sum(levels) / 3, rel=1e-5)


# --- the model's own path ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [["model=vwd", "prediction=vxt", "sampler.steps=2"],
                                       ["model=vcd", "degradation=black_blur", "sampler.delta=0.2"],
                                       ["model=plain", "prediction=x0", "sampler=cold", "degradation=black_noise"]])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_path_is_encoded_at_the_states_that_decoding_reaches(build, overrides, temperature):
    """The walk again by hand: at each level the encoder sees the state reached and the truth one step on."""
    model, x0, n = build(*overrides).eval(), torch.rand(3, 1, 8, 8) * 2 - 1, 3
    found = model.encode_path(x0, PerImage(5, range(n)), temperature=temperature)

    D, T, randomness = model.degradation, model.degradation.T, PerImage(5, range(n))
    eps = D.draw(x0, randomness)
    spread = randomness.normal(T, 4)
    x = D(x0, torch.full((n,), T), eps)
    torch.testing.assert_close(found.x_T, x, rtol=0, atol=0)
    levels = [3, 2, 0] if "sampler.steps=2" in overrides else [3, 2, 1, 0]
    with torch.no_grad():
        for high, low in pairwise(levels):
            t, s = torch.full((n,), high), torch.full((n,), low)
            v = x + model.sampler.delta * randomness.normal(1, 8, 8) if model.sampler.delta else x
            goal = torch.zeros_like(s) if "sampler=cold" in overrides else s
            q = model.encoder(v, D(x0, goal, eps), t, goal)
            z = q.mean + temperature * q.stddev * spread[:, high - 1]
            torch.testing.assert_close(found.mean[high - 1], q.mean, rtol=0, atol=1e-5)
            torch.testing.assert_close(found.z[high - 1], z, rtol=0, atol=1e-5)
            torch.testing.assert_close(found.kl[high - 1], model.prior.kl(q, v, t), rtol=1e-4, atol=1e-5)
            out = model.network(v, t, goal, Condition(z))
            if "sampler=cold" in overrides:
                e = D.infer(v, out, t)
                x = v - D(out, t, e) + D(out, s, e)
            else:
                x = v + out
    again = model.sampler(model, found.x_T, found.noise.take(), latents=found.z).x0
    torch.testing.assert_close(again, x, rtol=0, atol=1e-5)
    assert torch.equal(again, model.sampler(model, found.x_T, found.noise.take(), latents=found.z).x0)
    for t in {1, 2, 3} - set(levels):  # what is not visited has no latent
        assert (found.z[t - 1] == 0).all() and (found.kl[t - 1] == 0).all()


def test_a_prior_is_fitted_to_the_same_latents_every_time(build):
    """Whatever the global random state and the mode, and each image with a randomness of its own."""
    images, fitted, modes = torch.rand(400, 1, 8, 8) * 2 - 1, [], []
    for seed, trains in ((1, True), (2, False)):
        model = build(
            "model=vwd", "prior=mixture", "prior.images=300", "prior.components=2", "network.unet.dropout=0.5"
        )
        scramble(model.encoder.down, 0.5)
        scramble(model.encoder.head, 2.0)  # units that are in use
        model.train(trains)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model.fit_prior(iter(images.split(100)))
        assert torch.equal(torch.get_rng_state(), before) and model.training == trains
        fitted.append(model.prior.state_dict())
        modes.append(model.network.training)
    assert modes == [True, False] and len(fitted[0]["units"]) > 0
    for name, value in fitted[0].items():
        assert torch.equal(value, fitted[1][name]), name


def test_the_rollout_of_a_model_with_dropout_has_none(build):
    """The same states from the same weights, in training as in evaluation, during warm-up and after; and training goes on."""
    for warmup in (0, 10**9):
        model = build("model=vcd", "perturbation.p=0.0", "perturbation.p_warmup=0.0", "perturbation.true_share=0.0",
                      "perturbation.sigma=0.0", "perturbation.longest=null", f"perturbation.warmup={warmup}",
                      "network.unet.dropout=0.5", "network.encoder.dropout=0.5")  # fmt: skip
        batch, states = batch_for(model), []
        for trains in (True, False):
            model.train(trains)
            torch.manual_seed(3)
            states.append(model.perturbation(batch, model).network)
            assert all(module.training == trains for module in model.modules())
        assert torch.equal(*states) and not torch.equal(states[0], batch.x_t)
        first, second = (model.train().network(batch.x_t, batch.t, batch.s) for _ in range(2))
        assert not torch.equal(first, second)  # the dropout is real


def test_the_mode_comes_back_even_after_an_error(build):
    model = build("model=vcd").train()
    with pytest.raises(ValueError, match="on the way"), model.evaluating():
        assert not model.training and not model.network.training
        raise ValueError("on the way")
    assert model.training and model.network.training
