"""How training draws its levels, and a degradation with levels in between, from the data module to the report."""

import math

import pytest
import scipy.stats
import torch
from conftest import TINY, scramble
from test_datamodule import Numbered

from vcd import training
from vcd.batch import Degraded
from vcd.data.datamodule import DegradationDataModule
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.levels import Even, Stratified, Uniform
from vcd.models.plain import Plain
from vcd.monitoring import ActiveUnits, PerLevel
from vcd.predictions import X0, VXt, Xt
from vcd.randomness import PerImage
from vcd.samplers import Naive
from vcd.spaces import Pixels

T = 6
pytestmark = pytest.mark.usefixtures("seed")
each = pytest.mark.parametrize("sampler", [Stratified(), Uniform()], ids=["stratified", "uniform"])


class Whole(Degradation):
    """x0 (1 - t/T), at t = 0..T."""

    def forward(self, x0, t, eps=None):
        return x0.float() * (1 - t / self.T)[:, None, None, None]


class Dim(Whole):
    """The same at every real t."""

    continuous = True


# --- the samplers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "levels"), [(64, 6), (16, 1000), (1, 6), (7, 3)])
def test_stratified_is_what_version_0_1_drew(n, levels):
    for seed in range(20):
        torch.manual_seed(seed)
        found = Stratified().draw(n, Whole(T=levels))
        torch.manual_seed(seed)
        i = torch.randperm(n)
        u = torch.rand(())
        assert torch.equal(found, 1 + (levels * (i + u) / n).long().clamp(max=levels - 1))


@pytest.mark.parametrize(("n", "levels"), [(64, 6), (12, 6), (4, 6), (1000, 7)])
def test_stratified_gives_every_level_its_share_in_random_order(n, levels):
    draws = torch.stack([Stratified().draw(n, Whole(T=levels)) for _ in range(200)])
    counts = torch.stack([torch.bincount(row, minlength=levels + 1)[1:] for row in draws])
    assert counts.min() >= math.floor(n / levels) - 1 and counts.max() <= math.ceil(n / levels) + 1
    assert counts.sum(0).double().std() < 0.1 * counts.sum(0).double().mean()
    assert n == 1 or (draws[:, 0] != draws[0, 0]).any()


def test_uniform_draws_each_image_on_its_own():
    t = Uniform().draw(60_000, Whole(T=T))
    counts = torch.bincount(t, minlength=T + 1)
    assert counts[0] == 0 and len(counts) == T + 1
    assert scipy.stats.chisquare(counts[1:].numpy()).pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([t[:-1], t[1:]]).double())[0, 1]) < 0.03


@each
def test_a_continuous_degradation_gets_real_levels(sampler):
    t = torch.cat([sampler.draw(50, Dim(T=T)) for _ in range(400)])
    assert t.is_floating_point() and t.min() > 0 and t.max() <= T and (t != t.round()).double().mean() > 0.99
    assert scipy.stats.kstest((t / T).numpy(), "uniform").pvalue > 1e-3


def test_a_real_level_is_never_0_whatever_float32_rounds():
    class Edge(Even):
        def positions(self, n, T, device):
            return torch.full((n,), float(T))  # T (i + u) / n with u next to 1

    assert (Edge().draw(3, Dim(T=T)) > 0).all() and (Edge().draw(3, Whole(T=T)) == T).all()


# --- levels in between ------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("prediction", [VXt(), X0()], ids=["vxt", "x0"])
def test_the_data_module_draws_and_degrades_at_real_levels(sampler, prediction):
    D = Dim(T=T)
    data = DegradationDataModule(dataset=Numbered(train=50, val=20), degradation=D, prediction=prediction,
                                 level_sampler=sampler, batch_size=40, steps=3, flip=False, seed=0)  # fmt: skip
    for raw in data.train_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        assert batch.t.is_floating_point() and (batch.t != batch.t.round()).any()
        assert ((batch.s >= 0) & (batch.s < batch.t)).all() and batch.s.dtype == batch.t.dtype
        assert isinstance(prediction, X0) == bool((batch.s == 0).all())
        assert torch.equal(batch.x_t, D(batch.x0, batch.t)) and torch.equal(batch.x_s, D(batch.x0, batch.s))


def test_a_real_s_is_uniform_below_t():
    t = torch.full((20_000,), 3.7)
    s = VXt().level(t)
    assert (s < t).all() and scipy.stats.kstest((s / 3.7).numpy(), "uniform").pvalue > 1e-3


def in_between(compose, prediction):
    """A tiny model on `Dim`, from parts that a config makes."""
    parts = vars(training.build(compose(*TINY, "model=plain")))
    parts = parts["_modules"] | parts
    names = ("perturbation", "network", "start", "sampler", "encoder", "prior", "optimizer", "scheduler")
    return Plain(
        degradation=Dim(T=3), prediction=prediction, beta=0.1, annealing=0, **{name: parts[name] for name in names}
    )


def test_the_next_level_is_refused_where_there_is_none(compose):
    with pytest.raises(UserError, match="prediction=xt needs a next level, .* take prediction=vxt or x0"):
        in_between(compose, Xt())


def test_what_is_monitored_counts_a_real_level_to_the_next_whole_one():
    metric = PerLevel(T=3)
    metric.update({"a": torch.tensor([1.0, 3.0, 10.0, 4.0])}, torch.tensor([0.2, 1.0, 1.01, 3.0]))
    means = {name: value.item() for name, value in metric.compute().items()}
    assert means == pytest.approx({"a/t01": 2.0, "a/t02": 10.0, "a/t03": 4.0, "a": 16 / 3})
    many = PerLevel(T=1000)
    many.update({"a": torch.tensor([1.0, 2.0])}, torch.tensor([1e-6, 1000.0]))
    assert len(many.compute()) == 3
    units = ActiveUnits(T=3, latent=1)
    units.update(torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([1.5, 1.6, 0.5]))
    assert units.compute().tolist() == [0, 1, 0]


def test_a_model_trains_and_samples_with_levels_in_between(compose):
    """The network reads real t and s; sampling visits the whole levels, a grid like any other."""
    model = in_between(compose, VXt())
    x0, t = torch.rand(8, 1, 8, 8) * 2 - 1, Stratified().draw(8, Dim(T=3))
    s = VXt().level(t)
    D = model.degradation
    losses = model.train().losses(Degraded(x0, t, s, D(x0, t), D(x0, s), None, torch.zeros(8, dtype=torch.long)))
    losses.total.backward()
    assert losses.total.isfinite() and all(p.grad is not None for p in model.encoder.parameters())
    model.levels.update(losses.terms, t)
    x = model.eval().sample(PerImage(0, range(2))).x0
    assert x.shape == (2, 1, 8, 8) and x.isfinite().all()


def test_the_network_tells_real_levels_apart(compose):
    network = scramble(training.build(compose(*TINY)).network)
    x, t = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1), torch.tensor([1.0, 1.3, 2.0])
    out = network(x, t, torch.zeros(3))
    assert torch.pdist(out.flatten(1)).min() > 1e-3 * out.std()
    torch.testing.assert_close(
        out[::2], network(x[::2], torch.tensor([1, 2]), torch.zeros(2, dtype=torch.long)), rtol=0, atol=1e-4
    )


def test_a_restoring_sampler_goes_the_way_back_exactly():
    """With the truth for an estimate, x_s is D(x0, s) at every level of the grid."""

    class Truth:
        def __init__(self, x0):
            self.degradation, self.space, self.x0 = Dim(T=T), Pixels(), x0

        def restore(self, x_t, t, s, condition):
            return self.x0

    x0 = torch.rand(3, 1, 8, 8)
    trajectory = Naive()(Truth(x0), torch.zeros_like(x0), PerImage(0, range(3)))
    for t, x in zip(trajectory.levels, trajectory.states, strict=True):
        torch.testing.assert_close(x, Dim(T=T)(x0, t.expand(3)), rtol=0, atol=1e-6)
