"""Latents with a place: which cells are in use at a level, that what they say stays where they are, exchange there."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import TINY, composition, scramble
from hydra.errors import InstantiationException
from torch import nn

from vcd import identity, steering, training
from vcd.api import Trained
from vcd.batch import Condition, Degraded
from vcd.errors import UserError
from vcd.models.variational import Variational
from vcd.models.vwd import VWD
from vcd.networks import encoder, injection
from vcd.networks.cells import Cells
from vcd.networks.unet import UNet
from vcd.randomness import PerImage
from vcd.request import Request
from vcd.tasks import exchange

pytestmark = pytest.mark.usefixtures("seed")

MAPS, GRID, T = 2, 4, 6
SPATIAL = [*(o for o in TINY if o not in ("T=3", "network.encoder.latent=4")), f"T={T}", "model=vwd",
           "degradation=black_blur", "injection=spatial", f"network.encoder.maps={MAPS}",
           f"network.encoder.grid={GRID}"]  # fmt: skip


def cells(coarse: bool = True, size: int = 32, grid: int = GRID) -> Cells:
    return Cells(latent=MAPS * grid**2, maps=MAPS, grid=grid, size=size, T=T, coarse=coarse)


def posterior(coarse: bool = True, **changes) -> encoder.Spatial:
    return encoder.Spatial(**dict(size=8, channels=1, T=T, maps=MAPS, grid=GRID, coarse=coarse, latent=MAPS * GRID**2,
                                  dim=8, mults=(1,), attention=()) | changes)  # fmt: skip


def in_use(c: Cells, s: int) -> torch.Tensor:
    """(d,): which numbers are."""
    return c.groups[s].any(1).repeat(c.maps)


@pytest.fixture(scope="module")
def model(compose) -> Variational:
    return scramble(training.build(compose(*SPATIAL)), 0.2).eval()


def untrained(compose) -> Variational:
    """As it is made, but for the last convolution."""
    model = training.build(compose(*SPATIAL)).eval()
    nn.init.normal_(model.network.out.weight, std=0.05)
    return model


def pair(model: Variational, n: int = 3) -> tuple[steering.Path, steering.Path]:
    target, source = (steering.draw(model, PerImage(0, range(first, first + n))) for first in (0, 100))
    return target, replace(source, noise=target.noise)


# --- which cells are in use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [1, 4, 6, 8])
def test_there_are_as_many_cells_as_there_are_waves_to_restore(grid):
    c = cells(grid=grid)
    assert (c.groups.sum(1) == 1).all()  # every cell has one value
    sides = [math.isqrt(int(c.groups[s].any(1).sum())) for s in range(T + 1)]
    assert sides == sorted(sides, reverse=True) and sides[0] == grid and sides[T] == 1
    for s, side in enumerate(sides):
        assert grid % side == 0 and side <= max(1, 32 ** (1 - s / T))
        whole = c.groups[s].mT @ c.groups[s]  # which share: squares
        assert (whole.sum(1) == (grid // side) ** 2).all()


def test_all_cells_are_in_use_where_none_share():
    assert torch.equal(cells(coarse=False).groups, torch.eye(GRID**2).expand(T + 1, -1, -1))


def test_pooling_is_the_mean_of_what_shares_and_spreading_repeats_it():
    c, s = cells(), torch.tensor([4] * 3)
    x = torch.randn(3, MAPS, GRID, GRID)
    side = math.isqrt(int(c.groups[4].any(1).sum()))
    mean = nn.functional.avg_pool2d(x, GRID // side)
    spread = c.spread(c.pool(x.flatten(1), s), s).unflatten(1, c.shape)
    assert side == 2
    torch.testing.assert_close(spread, mean.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(c.pool(spread.flatten(1), s), c.pool(x.flatten(1), s))


@torch.no_grad()
def test_cells_that_are_not_in_use_cost_nothing():
    q_of = scramble(posterior())
    x, t = torch.randn(T, 1, 8, 8), torch.arange(1, T + 1)
    q = q_of(x, x + 1, t, t - 1)
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros(()), torch.ones(())))
    for i, s in enumerate(range(T)):
        used = in_use(q_of.cells, s)
        assert (q.mean[i, ~used] == 0).all() and (q.stddev[i, ~used] == 1).all() and (kl[i, ~used] == 0).all()
        assert (kl[i, used] > 1e-4).all()


@torch.no_grad()
@pytest.mark.parametrize("side", [2, 4])
def test_a_cell_is_encoded_from_where_it_is(side):
    """The way down sees far, but where nothing else differs, what changes in a corner changes the corner's cell most."""
    q_of = posterior(coarse=False, grid=side, latent=MAPS * side**2)
    x = torch.zeros(1, 1, 8, 8)
    other = x.clone()
    other[..., :1, :1] = 1.0
    t = torch.ones(1, dtype=torch.long)
    moved = (q_of(x, x, t, t - 1).mean - q_of(other, other, t, t - 1).mean).abs().reshape(MAPS, -1).sum(0)
    assert moved.argmax() == 0 and moved[0] > 0


# --- the network ------------------------------------------------------------------------------------------------------


def network(size: int = 32, patch: int = 1) -> UNet:
    """Untrained, but for an output that is not zero."""
    inject = partial(injection.Spatial, latent=MAPS * GRID**2, maps=MAPS, grid=GRID, size=size, T=T)
    found = UNet(size=size, channels=3, T=T, dim=8, mults=(1, 2), injection=inject, patch=patch)
    nn.init.normal_(found.out.weight, std=0.1)
    return found


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2])
def test_the_network_hears_a_cell_at_its_place(patch):
    net, x, z = network(patch=patch), torch.randn(1, 3, 32, 32), torch.randn(1, MAPS, GRID, GRID)
    other = z.clone()
    other[:, :, 1, 2] += 1.0
    t, s = torch.tensor([1]), torch.tensor([0])
    moved = (net(x, t, s, Condition(z.flatten(1))) - net(x, t, s, Condition(other.flatten(1)))).square().sum((0, 1))
    near = moved[4:20, 12:28].sum()  # the cell, 8 x 8 pixels, and half a cell around it
    assert near > 0.8 * moved.sum() > 0


@torch.no_grad()
def test_the_network_hears_the_cells_in_use_alone():
    net, x = network(), torch.randn(1, 3, 32, 32)
    for s in range(T):
        used = in_use(net.injection.cells, s)
        at = [torch.tensor([s + 1]), torch.tensor([s])]
        z = torch.randn(1, MAPS * GRID**2)
        idle, heard = z + ~used, z + used
        before = net(x, *at, Condition(z))
        assert torch.equal(net(x, *at, Condition(idle)), before)
        assert not torch.equal(net(x, *at, Condition(heard)), before)


def test_the_bound_trains_both_ends(compose):
    model = scramble(training.build(compose(*SPATIAL)), 0.1).train()
    x0, D = torch.rand(12, 1, 8, 8) * 2 - 1, model.degradation
    t = torch.arange(12) % D.T + 1
    batch = Degraded(x0, t, t - 1, D(x0, t, None), D(x0, t - 1, None), None, torch.zeros(12, dtype=torch.long))
    model.losses(batch).total.backward()
    for part in (model.encoder.head, model.network.injection):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


# --- exchange at a place ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_everywhere_is_the_exchange_of_the_latent_and_a_place_is_the_cells_in_it(model):
    target, source = pair(model)
    levels = steering.levels_of(model)
    everywhere = steering.exchange(target, source, levels, steering.at_place(model, [0, 0, 1, 1]))
    whole = steering.exchange(target, source, levels)
    assert torch.equal(everywhere.z, whole.z) and torch.equal(everywhere.x_T, whole.x_T)

    left = steering.at_place(model, [0, 0, 1, 0.5])
    half = steering.exchange(target, source, levels, left)
    assert torch.equal(half.x_T, target.x_T)
    assert torch.equal(half.z[left[:, None].expand_as(half.z)], source.z[left[:, None].expand_as(half.z)])
    assert torch.equal(half.z[~left[:, None].expand_as(half.z)], target.z[~left[:, None].expand_as(half.z)])
    maps = left.unflatten(1, (MAPS, GRID, GRID))
    assert maps[0, :, :, :2].all() and not maps[0, :, :, 2:].any()
    assert not maps[T - 1].any()  # one cell for the whole image is not of its left half


def test_left_and_right_are_everything_where_no_cells_share(compose):
    model = training.build(compose(*SPATIAL, "network.encoder.coarse=false")).eval()
    left, right = (steering.at_place(model, place) for place in ([0, 0, 1, 0.5], [0, 0.5, 1, 1]))
    assert torch.equal(left, ~right) and left.any() and right.any()


@torch.no_grad()
def test_the_image_changes_at_the_place(compose):
    """Of an untrained model: what training makes of it is in RESULTS.md."""
    model = untrained(compose)
    target, source = pair(model, 8)
    before = steering.decode(model, target, keep=2).x0
    units = steering.at_place(model, [0, 0, 1, 0.5])
    after = steering.decode(model, steering.exchange(target, source, [1, 2, 3], units), keep=2).x0
    changed = (after - before).square().sum((0, 1, 2))
    assert changed[:4].sum() > 4 * changed[4:].sum() > 0


def test_the_task_and_the_api_take_a_place(compose, tmp_path):
    model = untrained(compose)
    asked = dict(n=2, seed=0, images=None, sources=None, levels=[1, 2], posterior=0.0, temperatures=[1.0], variations=2,
                 weights=3)  # fmt: skip
    for place in (None, [0.0, 0.0, 0.5, 1.0]):
        (file,) = exchange.run({"VWD": model}, Request(**asked, place=place), tmp_path)
        drawn = file.read_bytes()
        if place is None:
            everywhere = drawn
    assert drawn != everywhere
    trained = Trained(model)
    pair = trained.draw([0]), trained.draw([1])
    here = trained.exchange(*pair, 1, place=(0, 0, 0.5, 1))
    assert here.shape == (1, 1, 8, 8) and not torch.equal(here, trained.exchange(*pair, 1))
    assert trained.exchange(trained.sample(1), trained.sample([1]), 1, place=(0, 0, 0.5, 1)).shape == here.shape


# --- runs and mistakes ------------------------------------------------------------------------------------------------


def test_its_choices_are_the_run_s_and_its_weights_come_back():
    digests = {identity.digest(composition(*SPATIAL, *change)) for change in (
        [], ["network.encoder.maps=3"], ["network.encoder.grid=2"], ["network.encoder.coarse=false"])}  # fmt: skip
    assert len(digests) == 4
    one, other = (scramble(training.build(composition(*SPATIAL)), seed=seed).eval() for seed in (1, 2))
    other.load_state_dict(one.state_dict())
    drawn = [steering.decode(m, steering.draw(m, PerImage(0, range(2))), keep=2).x0 for m in (one, other)]
    assert torch.equal(*drawn)
    assert not any("groups" in name for name in one.state_dict())  # what follows from the config is not stored


@pytest.mark.parametrize(
    "change, sentence",
    [
        (["network.encoder.grid=9"], "1 to 8 cells across"),
        (["network.encoder.latent=31"], "must be maps . grid.2 = 32"),
        (["network.unet.patch=4"], "finer than the encoder's finest features"),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence):
    with pytest.raises(InstantiationException, match=sentence):
        training.build(composition(*SPATIAL, *change))


def test_both_ends_see_z_alike(model):
    dense = encoder.Encoder(size=8, channels=1, T=T, latent=MAPS * GRID**2)
    with pytest.raises(UserError, match="injection=spatial sets both"):
        VWD(degradation=model.degradation, start=model.start, perturbation=model.perturbation, network=model.network,
            encoder=dense)  # fmt: skip


def test_a_place_that_is_none_is_refused(model, compose):
    dense = training.build(compose(*TINY)).eval()
    for steered, place, sentence in (
        (dense, [0, 0, 1, 0.5], "train with injection=spatial"),
        (model, [0.5, 0, 0.5, 1], "are fractions of the image"),
        (model, [0.5, 0, 1], "are fractions of the image"),
        (model, [0, 0, 0.01, 0.01], "holds no cell: there are 4 across"),
    ):
        with pytest.raises(UserError, match=sentence):
            steering.at_place(steered, place)
