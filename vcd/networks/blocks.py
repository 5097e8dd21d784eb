"""The parts that U-Net and encoder share: embeddings, residual blocks, attention and the way down."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vcd.errors import UserError
from vcd.levels import Levels


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or the largest divisor of `channels` below."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def zero(module: nn.Module) -> nn.Module:
    """The module with its parameters set to zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def silu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """SiLU, in place where no gradient is needed: nothing else may read the tensor."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Dropout(nn.Dropout):
    """nn.Dropout, with one random number of 64 bits for four values on a CPU: its mask takes up to a tenth of a step there.

    A value is kept with a probability that is a multiple of 2^-16, so exact to 8e-6, and divided by exactly that.
    """

    @property
    def kept(self) -> int:
        """How many of the 2^16 numbers of 16 bits keep a value."""
        return round((1.0 - self.p) * 2**16)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        some = self.training and 0 < self.kept < 2**16
        if not some or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        bits = bits.as_strided(x.shape, torch.empty_like(x).stride())
        return x * (bits < self.kept - 2**15).to(x.dtype).mul_(2**16 / self.kept)


class Entry(nn.Conv2d):
    """The first convolution, of squares of patch x patch pixels: (B,C,H,W) -> (B,C2,H/patch,W/patch).

    On a CPU its output, and with it all that follows, is channels-last, which is faster there.
    """

    def __init__(self, c_in: int, c_out: int, *, patch: int):
        super().__init__(c_in * patch**2, c_out, 3, padding=1)
        self.patch = patch

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        h = super().forward(F.pixel_unshuffle(x, self.patch))
        return h.contiguous(memory_format=torch.channels_last) if h.device.type == "cpu" else h


class LevelEmbedding(nn.Module):
    """Sinusoids of the level t/T (Vaswani et al. 2017; Ho et al. 2020), then two linear layers: (B,) -> (B, width)."""

    frequencies: Tensor

    def __init__(self, *, T: int, dim: int, width: int):
        super().__init__()
        self.T = T
        half = dim // 2
        self.register_buffer("frequencies", torch.exp(-math.log(10000.0) * torch.arange(half) / half), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Levels) -> Float[Tensor, "b width"]:
        angle = (1000.0 / self.T) * t.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))


class ResBlock(nn.Module):
    """norm, SiLU, conv; the embedding; norm, SiLU, dropout, zero conv; plus a skip (Nichol and Dhariwal 2021).

    With `film` the embedding scales and shifts the second norm's output, otherwise it is added before it.
    """

    def __init__(self, *, c_in: int, c_out: int, emb: int, dropout: float, film: bool):
        super().__init__()
        self.film = film
        self.norm1, self.conv1 = group_norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb, 2 * c_out if film else c_out)
        self.norm2, self.conv2 = group_norm(c_out), zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.dropout = Dropout(dropout)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 h w"]:
        h = self.conv1(silu(self.norm1(x)))
        e = self.emb(F.silu(emb))[:, :, None, None]
        if self.film:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h.add_(e))  # no gradient needs what a convolution returns
        return self.conv2(self.dropout(silu(h))).add_(self.skip(x))


class Attention(nn.Module):
    """Self-attention over positions, with a zero-initialised output."""

    def __init__(self, *, channels: int, heads: int):
        super().__init__()
        if channels % heads:
            raise UserError(
                f"network.unet.heads={heads} does not divide the {channels} channels of a resolution with attention"
            )
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2)
        a = F.scaled_dot_product_attention(*qkv.unbind(1))
        return x + self.out(a.transpose(-1, -2).reshape(b, c, h, w))


class Stage(nn.Module):
    """A residual block and, at the resolutions that have it, attention."""

    def __init__(self, *, c_in: int, c_out: int, emb: int, dropout: float, film: bool, attention: bool, heads: int):
        super().__init__()
        self.block = ResBlock(c_in=c_in, c_out=c_out, emb=emb, dropout=dropout, film=film)
        self.attention = Attention(channels=c_out, heads=heads) if attention else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 h w"]:
        return self.attention(self.block(x, emb))


class Up(nn.Module):
    """Nearest-neighbour doubling, cropped to the size of the skip it meets, and a 3x3 convolution.

    Without a crop both are one transposed convolution with stride 2, whose 4x4 kernel is the sum of what the 3x3 kernel
    sees of a doubled pixel: the same function of the same parameters for 4/9 of the multiplications.
    """

    spread: Tensor  # (4, 3): which of the three weights meet a pixel, for each of the four outputs that it reaches

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        spread = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c h2 w2"]:
        height, width = size
        if (height, width) == (2 * x.shape[2], 2 * x.shape[3]):
            kernel = torch.einsum("ak,oikl,bl->ioab", self.spread, self.conv.weight, self.spread)
            return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x[:, :, :height, :width])


class DownPath(nn.Module):
    """The way down: `Entry`, then per resolution `blocks` stages and a halving (not after the last).

    Returns every feature map; the last is the coarsest. `channels` lists the width of each, for the skips.
    """

    def __init__(
        self, *, c_in: int, dim: int, mults: Sequence[int | float], attention: Sequence[int], blocks: int, emb: int,
        dropout: float, film: bool, heads: int, patch: int,
    ):  # fmt: skip
        super().__init__()
        c = int(dim * mults[0])
        self.layers = nn.ModuleList([Entry(c_in, c, patch=patch)])
        self.channels = [c]
        for resolution, mult in enumerate(mults):
            for _ in range(blocks):
                stage = Stage(c_in=c, c_out=int(dim * mult), emb=emb, dropout=dropout, film=film,
                              attention=resolution in attention, heads=heads)  # fmt: skip
                c = int(dim * mult)
                self.layers.append(stage)
                self.channels.append(c)
            if resolution < len(mults) - 1:
                self.layers.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                self.channels.append(c)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            x = layer(x, emb) if isinstance(layer, Stage) else layer(x)
            maps.append(x)
        return maps


def coarsest(size: int, mults: Sequence[int | float], patch: int) -> int:
    """Side of the coarsest feature map; UserError where the image has no such patches or cannot be halved that often."""
    if patch < 1 or size % patch:
        raise UserError(f"network.unet.patch={patch} does not divide the side of the images, dataset.size={size}")
    size //= patch
    for _ in range(len(mults) - 1):
        if size < 2:
            raise UserError(f"network.unet.mults={list(mults)} halves the image more often than dataset.size and "
                            "network.unet.patch allow; shorten it")  # fmt: skip
        size = (size + 1) // 2
    return size
