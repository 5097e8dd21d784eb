"""U-Net, encoder and the places where the latent enters: shapes, zeros, and attention computed a second time."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import scramble
from hydra.utils import instantiate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vcd.batch import Condition
from vcd.cli import CONF, explain
from vcd.errors import UserError
from vcd.networks import injection
from vcd.networks.blocks import Attention, Dropout, Entry, LevelEmbedding, ResBlock, Up
from vcd.networks.encoder import Encoder
from vcd.networks.unet import UNet

SIZES = (8, 28, 31, 32, 64)
STRUCTURES = sorted(  # the autoencoder's has latents on a grid: see test_latent.py
    path.stem for path in (CONF / "network").glob("[!_]*.yaml") if path.stem != "autoencoder"
)
INJECTIONS = (injection.EmbConcat, injection.EmbAdd, injection.Input, injection.Bottleneck, injection.Maps)
T, LATENT = 6, 5

pytestmark = pytest.mark.usefixtures("seed")


def unet(
    size: int = 8, channels: int = 1, inject: Callable[[injection.Widths], injection.Injection] | None = None, **changes
) -> UNet:
    options = {"T": T, "dim": 8, "mults": [1, 2], "attention": [1], "blocks": 1, **changes}
    return UNet(size=size, channels=channels, injection=inject, **options)


def encoder(size: int = 8, channels: int = 1, **changes) -> Encoder:
    options = {"T": T, "dim": 16, "mults": [1, 2], "attention": [1], "blocks": 1, "latent": LATENT, **changes}
    return Encoder(size=size, channels=channels, **options)


def inputs(size: int = 8, channels: int = 1, n: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    t = torch.arange(n) % T + 1
    return torch.randn(n, channels, size, size), t, t - 1


# --- the U-Net --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_published_structures_serve_every_size_and_begin_at_zero(compose, structure):
    cfg = compose(f"network={structure}", "network.unet.dim=8", "network.encoder.latent=4", f"T={T}")
    cfg.dataset.channels = 2
    for size in SIZES:
        if size % cfg.network.unet.patch:
            continue  # refused, in a sentence
        cfg.dataset.size = size
        x, t, s = inputs(size, channels=2, n=2)
        network, z = instantiate(cfg.network.unet).eval(), torch.randn(2, 4)
        with torch.no_grad():
            out = network(x, t, s, Condition(z))
            assert out.shape == x.shape and out.dtype == torch.float32
            assert (out == 0).all()
            out = scramble(network)(x, t, s, Condition(z))
            assert out.shape == x.shape and out.isfinite().all() and out.std() > 0
            q = instantiate(cfg.network.encoder).eval()(x, x, t, s)
        assert q.mean.shape == q.stddev.shape == (2, 4)


def test_a_row_does_not_depend_on_its_batch():
    network = scramble(unet(inject=partial(injection.EmbConcat, latent=LATENT)))
    (x, t, s), z = inputs(n=4), torch.randn(4, LATENT)
    whole = network(x, t, s, Condition(z))
    for i in range(4):
        row = slice(i, i + 1)
        torch.testing.assert_close(network(x[row], t[row], s[row], Condition(z[row])), whole[row], rtol=1e-5, atol=1e-4)


def test_t_and_s_are_read_and_told_apart():
    network, x = scramble(unet()), torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1)
    out = network(x, torch.tensor([3, 1, 3, 4]), torch.tensor([1, 3, 2, 1]))
    assert torch.pdist(out.flatten(1)).min() > 1e-3 * out.std()


@pytest.mark.parametrize("film", [True, False])
@pytest.mark.parametrize("inject", INJECTIONS, ids=lambda c: c.__name__)
def test_without_gradients_the_result_is_the_same_and_what_was_given_stays(film, inject):
    network = scramble(unet(film=film, inject=partial(inject, latent=LATENT))).eval()
    (x, t, s), z = inputs(), torch.randn(3, LATENT)
    given = x.clone(), z.clone()
    expected = network(x, t, s, Condition(z))
    with torch.no_grad():
        assert torch.equal(network(x, t, s, Condition(z)), expected)
    assert torch.equal(x, given[0]) and torch.equal(z, given[1])


@pytest.mark.parametrize("film", [True, False])
def test_every_parameter_takes_part(film):
    for inject in INJECTIONS:
        network, (x, t, s) = scramble(unet(inject=partial(inject, latent=LATENT), film=film)), inputs()
        network(x, t, s, Condition(torch.randn(3, LATENT))).square().sum().backward()
        assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_dropout_is_for_training_only():
    network, (x, t, s) = scramble(unet(dropout=0.5)), inputs()
    assert not torch.equal(network(x, t, s), network(x, t, s))
    network.eval()
    assert torch.equal(network(x, t, s), network(x, t, s))


def test_float32_comes_out_under_mixed_precision():
    (x, t, s), network, q = inputs(), scramble(unet()), encoder()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x, t, s).dtype == torch.float32
        assert q(x, x, t, s).mean.dtype == q(x, x, t, s).stddev.dtype == torch.float32


# --- the latent -------------------------------------------------------------------------------------------------------

each_injection = pytest.mark.parametrize("inject", INJECTIONS, ids=lambda c: c.__name__)
each_projection = pytest.mark.parametrize("nonlinear", [True, False], ids=["nonlinear", "linear"])


def test_every_injection_has_a_yaml(compose):
    names = [path.stem for path in (CONF / "injection").glob("*.yaml")]  # spatial: test_spatial.py
    built = (instantiate(compose(f"injection={name}").injection) for name in names)
    assert {type(make(injection.Widths(8, [8, 8]))) for make in built} == {*INJECTIONS, injection.Spatial}


@each_injection
@each_projection
def test_z_changes_the_output_image_by_image(inject, nonlinear):
    network, (x, t, s) = scramble(unet(inject=partial(inject, latent=LATENT, nonlinear=nonlinear))), inputs()
    z = torch.randn(3, LATENT)
    other = z.clone()
    other[1] += 1.0
    with torch.no_grad():
        moved = (network(x, t, s, Condition(z)) - network(x, t, s, Condition(other))).abs().amax((1, 2, 3))
    assert moved[1] > 1e-3
    assert moved[0] < 1e-5 and moved[2] < 1e-5


@each_injection
@each_projection
def test_training_learns_to_read_z(inject, nonlinear):
    """From the zeros of the start on: the target is decided by z alone."""
    network, (x, t, s) = unet(inject=partial(inject, latent=LATENT, nonlinear=nonlinear)), inputs(n=16)
    z = torch.randn(16, LATENT, requires_grad=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (network(x, t, s, Condition(z)) - z[:, :1, None, None].detach()).square().mean().backward()
        optimizer.step()
    z.grad = None
    network(x, t, s, Condition(z)).square().sum().backward()
    assert (z.grad.abs().amax(1) > 0).all()


@each_injection
def test_no_z_is_z_at_zero(inject):
    network, (x, t, s) = scramble(unet(inject=partial(inject, latent=LATENT))), inputs()
    with torch.no_grad():
        assert torch.equal(network(x, t, s), network(x, t, s, Condition(torch.zeros(3, LATENT))))
        assert not torch.equal(network(x, t, s), network(x, t, s, Condition(torch.ones(3, LATENT))))


def test_a_network_without_injection_does_not_read_z():
    network, (x, t, s) = scramble(unet()), inputs()
    assert torch.equal(network(x, t, s, Condition(torch.randn(3, LATENT))), network(x, t, s))


@each_projection
def test_the_published_projection_is_affine(nonlinear):
    project = scramble(injection.projection(LATENT, 7, nonlinear)).double()
    a, b = torch.randn(2, 4, LATENT, dtype=torch.float64)
    difference = project(0.3 * a + 0.7 * b) - (0.3 * project(a) + 0.7 * project(b))
    assert (difference.abs().max() < 1e-14) != nonlinear
    assert sum(isinstance(layer, nn.Linear) for layer in project) == 3


# --- the blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_an_explicit_softmax(heads):
    b, c, h, w = 2, 8, 3, 5
    attention = scramble(Attention(channels=c, heads=heads), 1.0).double()
    x = torch.randn(b, c, h, w, dtype=torch.float64)
    qkv = (attention.qkv.weight[:, :, 0, 0] @ attention.norm(x).reshape(b, c, h * w)) + attention.qkv.bias[:, None]
    q, k, v = qkv.split(c, dim=1)
    mixed = torch.zeros(b, c, h * w, dtype=torch.float64)
    d = c // heads
    for i in range(b):
        for head in range(heads):
            rows = slice(head * d, (head + 1) * d)
            for position in range(h * w):
                score = torch.stack([q[i, rows, position] @ k[i, rows, j] / math.sqrt(d) for j in range(h * w)])
                share = score.exp() / score.exp().sum()
                mixed[i, rows, position] = (v[i, rows] * share).sum(1)
    expected = x + (attention.out.weight[:, :, 0, 0] @ mixed + attention.out.bias[:, None]).reshape(b, c, h, w)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)


def test_residual_blocks_begin_as_the_identity():
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    for film in (True, False):
        assert torch.equal(ResBlock(c_in=8, c_out=8, emb=6, dropout=0.0, film=film)(x, emb), x)
    assert torch.equal(Attention(channels=8, heads=2)(x), x)


@pytest.mark.parametrize("film", [True, False])
def test_the_embedding_scales_and_shifts_or_is_added(film):
    block = scramble(ResBlock(c_in=8, c_out=4, emb=6, dropout=0.0, film=film))
    x, e, silu = torch.randn(2, 8, 5, 5), torch.randn(2, 6), nn.SiLU()
    h, emb = block.conv1(silu(block.norm1(x))), block.emb(silu(e))[:, :, None, None]
    h = block.norm2(h) * (1 + emb[:, :4]) + emb[:, 4:] if film else block.norm2(h + emb)
    torch.testing.assert_close(block(x, e), block.skip(x) + block.conv2(silu(h)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 6, 1000])
@pytest.mark.parametrize("dim", [4, 32])
def test_the_embedding_tells_all_levels_apart(levels, dim):
    embedding = LevelEmbedding(T=levels, dim=dim, width=64)
    t = torch.arange(levels + 1)
    waves = 1000 / levels * t[:, None] * embedding.frequencies
    expected = torch.cat([waves.cos(), waves.sin()], 1)
    assert torch.pdist(expected).min() > 0.05 if dim == 32 else torch.pdist(expected).min() > 1e-3
    with torch.no_grad():
        out = embedding(t)
    torch.testing.assert_close(out, embedding.mlp(expected), rtol=0, atol=1e-5)
    assert out.shape == (levels + 1, 64) and torch.pdist(out).min() > 1e-5


@pytest.mark.parametrize("size", [(8, 8), (8, 6), (7, 7), (8, 5), (2, 2), (1, 1)])
def test_doubling_is_a_nearest_neighbour_and_a_convolution_in_value_and_gradient(size):
    up = scramble(Up(3)).double()
    x = torch.randn(2, 3, *((side + 1) // 2 for side in size), dtype=torch.float64, requires_grad=True)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : size[0], : size[1]]
    found, plain = up(x, size), up.conv(doubled)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(plain)
    inputs = (x, *up.parameters())
    for a, b in zip(torch.autograd.grad((found * weights).sum(), inputs),
                    torch.autograd.grad((plain * weights).sum(), inputs), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert set(up.state_dict()) == {"conv.weight", "conv.bias"}


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 1 / 3, 0.999])
def test_dropout_keeps_with_the_probability_it_says_and_the_mean_exactly(p):
    dropout = Dropout(p)
    assert abs(dropout.kept / 2**16 - (1 - p)) <= 2**-17 < 1e-4
    every = torch.arange(2**16).to(torch.int16)  # each number of 16 bits once
    assert (every < dropout.kept - 2**15).sum() == dropout.kept
    values = dropout(torch.ones(100_003)).unique()
    assert set(values.tolist()) <= {0.0, torch.tensor(2**16 / dropout.kept).item()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_draws_every_value_on_its_own(layout):
    """Shares and products of neighbours, along every axis, within 5 standard deviations; the gradient has the same mask."""
    x = torch.ones(8, 16, 33, 37).contiguous(memory_format=layout).requires_grad_()
    y = Dropout(0.2)(x)
    assert y.stride() == x.stride()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)
    kept = (y > 0).double() - 0.8
    assert abs(kept.mean()) < 5 * (0.16 / kept.numel()) ** 0.5
    for axis in range(4):
        assert abs((kept * kept.roll(1, axis)).mean()) < 5 * 0.16 / kept.numel() ** 0.5


def test_dropout_does_nothing_outside_training_and_the_same_from_the_same_seed():
    x, dropout = torch.randn(4, 3, 5), Dropout(0.5)
    assert dropout.eval()(x) is x
    dropout.train()
    first, second = (torch.manual_seed(seed) and dropout(x) for seed in (1, 1))
    assert torch.equal(first, second) and not torch.equal(first, dropout(x))
    assert torch.equal(Dropout(0.0)(x), x) and (Dropout(1.0)(x) == 0).all()
    with pytest.raises(ValueError, match="dropout probability"):
        Dropout(1.5)


def test_channels_last_is_no_part_of_the_result_or_of_the_checkpoint():
    layer, x = scramble(Entry(3, 4, patch=1)), torch.randn(2, 3, 8, 8)
    assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    network = unet()
    assert all(p.is_contiguous() for p in network.parameters())


# --- positions of several pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("network", [unet, encoder])
def test_patches_are_channels_of_a_smaller_image(network, patch):
    whole = scramble(network(size=8, channels=2, patch=patch)).eval()
    small = network(size=8 // patch, channels=2 * patch**2).eval()
    small.load_state_dict(whole.state_dict())
    x, t, s = inputs(8, channels=2)
    if network is unet:
        out, expected = whole(x, t, s), small(cut(x, patch), t, s)
        assert out.shape == x.shape
        torch.testing.assert_close(cut(out, patch), expected)
    else:
        x_s = torch.randn_like(x)
        q, expected = whole(x, x_s, t, s), small(cut(x, patch), cut(x_s, patch), t, s)
        torch.testing.assert_close((q.mean, q.stddev), (expected.mean, expected.stddev))


def cut(x: torch.Tensor, patch: int) -> torch.Tensor:
    """Every patch as the channels of one pixel, written out: channel, row in the patch, column in the patch."""
    squares = [
        x[:, c : c + 1, i::patch, j::patch] for c in range(x.shape[1]) for i in range(patch) for j in range(patch)
    ]
    return torch.cat(squares, dim=1)


def test_patches_of_2x2_take_a_quarter_of_the_multiplications():
    x, t, s = inputs(32)
    counts = []
    for patch in (1, 2):
        network = unet(size=32, dim=32, attention=[], patch=patch)
        with FlopCounterMode(display=False) as counter:
            network(x, t, s)
        counts.append(counter.get_total_flops())
    assert 0.23 < counts[1] / counts[0] < 0.27


@pytest.mark.parametrize("network", [unet, encoder])
@pytest.mark.parametrize("patch", [0, -2, 3, 16])
def test_patches_that_do_not_tile_the_image_are_refused(network, patch):
    with pytest.raises(
        UserError, match=rf"network.unet.patch={patch} does not divide the side of the images, dataset.size=8"
    ):
        network(size=8, patch=patch)


# --- the encoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_the_encoder_has_half_the_width_and_gives_mean_and_std(size):
    q, (x, t, s) = encoder(size, channels=3), inputs(size, channels=3)
    assert q.down.channels == [8, 8, 8, 16]  # dim // 2 times mults: after the first layer, a block, a halving, a block
    z = q(x, torch.randn_like(x), t, s)
    assert z.mean.shape == z.stddev.shape == (3, LATENT)


def test_the_std_stays_within_its_bounds_whatever_the_weights():
    q, (x, t, s) = encoder(), inputs()
    for size in (0.0, 1.0, 1e3, 1e6):
        with torch.no_grad():
            q.head.weight.normal_(std=size)
            std = q(x, x, t, s).stddev
        assert math.exp(-5) * (1 - 1e-6) <= std.min() and std.max() <= math.exp(5) * (1 + 1e-6)
    with torch.no_grad():  # log-variance l gives std exp(5 tanh(l / 10)), exp(l / 2) where it is small
        q.head.weight.zero_()
        q.head.bias.copy_(torch.cat([torch.zeros(LATENT), torch.linspace(-0.4, 0.4, LATENT)]))
    torch.testing.assert_close(q(x, x, t, s).stddev[0], torch.linspace(-0.2, 0.2, LATENT).exp(), rtol=1e-3, atol=0)


def test_the_encoder_reads_both_images_and_both_levels():
    q, (x, t, s) = scramble(encoder()), inputs()
    y = torch.randn_like(x)
    reference = q(x, y, t, s).mean
    for other in ((y, y, t, s), (x, x, t, s), (x, y, t + 1, s), (x, y, t, s + 1), (y, x, t, s)):
        assert ((q(*other).mean - reference).abs().amax(1) > 1e-4).all()


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [unet, encoder])
def test_too_many_halvings_are_refused(network):
    network(8, mults=[1, 1, 1, 1], attention=[])  # 8, 4, 2, 1
    with pytest.raises(
        UserError,
        match=r"network.unet.mults=\[1, 1, 1, 1, 1\] halves .* than dataset.size and network.unet.patch allow",
    ):
        network(8, mults=[1, 1, 1, 1, 1], attention=[])


@pytest.mark.parametrize("network", [unet, encoder])
def test_heads_that_do_not_divide_the_channels_are_refused(network):
    with pytest.raises(UserError, match=r"network.unet.heads=3 does not divide the \d+ channels"):
        network(heads=3)


@pytest.mark.parametrize("latent", [0, -1])
def test_a_latent_without_dimensions_is_refused(compose, latent):
    cfg = compose(f"network.encoder.latent={latent}")
    with pytest.raises(Exception) as caught:
        instantiate(cfg.network.unet)
    assert explain(caught.value, "train").startswith(f"network.encoder.latent={latent}: ")


def test_images_of_another_number_of_channels_are_refused():
    x, t, s = inputs(channels=1)
    with pytest.raises(UserError, match=r"3 channels, the images 1; set dataset.channels"):
        unet(channels=3)(x, t, s)
