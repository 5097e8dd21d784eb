"""A small convolutional autoencoder: latents that keep their place in the image (Rombach et al. 2022, arXiv:2112.10752)."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from vcd.batch import UNCONDITIONAL, Condition
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.networks.blocks import Up, group_norm
from vcd.networks.encoder import Posterior


class Residual(nn.Module):
    """norm, SiLU, conv, twice, plus a skip."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.body = nn.Sequential(
            group_norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1),
            group_norm(c_out), nn.SiLU(), nn.Conv2d(c_out, c_out, 3, padding=1),
        )  # fmt: skip
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        return self.skip(x) + self.body(x)


@final
class Encoder(Posterior):
    """(x_1, x_0, t, s) -> Normal over (B, maps * side * side), from x_0 alone; x_1 is black.

    dim: width; mults: width of each resolution in units of dim, the finest first; maps: channels of the latent.
    """

    def __init__(
        self, *, size: int, channels: int, dim: int, mults: Sequence[int | float], blocks: int, maps: int, latent: int
    ):  # fmt: skip
        side = coarsest(size, mults)
        if latent != maps * side**2:
            raise UserError(f"network.encoder.latent={latent} must be maps * side^2 = {maps * side**2}")
        super().__init__(latent=latent, shape=(maps, side, side))
        c, layers = int(dim * mults[0]), list[nn.Module]()
        layers.append(nn.Conv2d(channels, c, 3, padding=1))
        for i, mult in enumerate(mults):
            if i:
                layers.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
            for _ in range(blocks):
                layers.append(Residual(c, int(dim * mult)))
                c = int(dim * mult)
        self.body = nn.Sequential(*layers, group_norm(c), nn.SiLU(), nn.Conv2d(c, 2 * maps, 3, padding=1))

    def forward(self, x_t: Float[Tensor, "b c h w"], x_s: Float[Tensor, "b c h w"], t: Levels, s: Levels) -> Normal:
        mean, log_variance = self.body(x_s).float().chunk(2, dim=1)
        std = torch.exp(log_variance.clamp(-30, 20) / 2)
        return Normal(mean.flatten(1), std.flatten(1), validate_args=False)


@final
class Decoder(nn.Module):
    """(x_1, t, s, condition) -> x_0 (B,C,H,W), from the z of the condition alone."""

    def __init__(self, *, size: int, channels: int, dim: int, mults: Sequence[int | float], blocks: int, maps: int):
        super().__init__()
        side = coarsest(size, mults)
        self.shape = (maps, side, side)
        c, layers = int(dim * mults[-1]), list[nn.Module]()
        layers.append(nn.Conv2d(maps, c, 3, padding=1))
        for i, mult in reversed(list(enumerate(mults))):
            for _ in range(blocks):
                layers.append(Residual(c, int(dim * mult)))
                c = int(dim * mult)
            if i:
                layers.append(Double(c))
        self.body = nn.Sequential(*layers, group_norm(c), nn.SiLU(), nn.Conv2d(c, channels, 3, padding=1))

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Levels, s: Levels, condition: Condition = UNCONDITIONAL
    ) -> Float[Tensor, "b c h w"]:
        assert condition.z is not None
        return self.body(condition.z.reshape(-1, *self.shape)).float()


class Double(nn.Module):
    """Twice the size."""

    def __init__(self, channels: int):
        super().__init__()
        self.up = Up(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.up(x, (2 * x.shape[2], 2 * x.shape[3]))


def coarsest(size: int, mults: Sequence[int | float]) -> int:
    """Side of the latent; UserError where the image cannot be halved that often."""
    factor = 2 ** (len(mults) - 1)
    if size % factor:
        raise UserError(
            f"network.unet.mults={list(mults)} halves the image to 1/{factor}, which does not divide dataset.size={size}"
        )
    return size // factor
