"""Where the latent z enters the U-Net (conf/network: injection): one class a place.

Each place is a hook that leaves its argument alone unless the class is for that place. z is projected by an MLP, or,
as published for VCD, by linear layers without a nonlinearity (`nonlinear=false`).
"""

from abc import ABC
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vcd.errors import UserError


def projection(d: int, width: int, nonlinear: bool) -> nn.Sequential:
    """z (B, d) -> (B, width) by three linear layers, with SiLU between them or, as published, nothing."""
    between = nn.SiLU if nonlinear else nn.Identity
    return nn.Sequential(nn.Linear(d, d), between(), nn.Linear(d, d), between(), nn.Linear(d, width))


class Injection(nn.Module, ABC):
    """The hooks, all of them the identity. `bind` is called once, when the U-Net knows its sizes."""

    extra = 0  # channels by which the embedding grows

    def __init__(self, *, latent: int, nonlinear: bool = True):
        super().__init__()
        if latent < 1:
            raise UserError(f"network.encoder.latent={latent}: the latent needs at least one dimension")
        self.latent, self.nonlinear = latent, nonlinear

    def bind(self, *, emb: int, maps: Sequence[int], bottleneck: int) -> None:
        """Make the layers: `emb` is the embedding's width, `maps` and `bottleneck` the feature maps' channels."""

    def embed(self, emb: Float[Tensor, "b e"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b e2"]:
        return emb

    def start(self, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return h

    def bottleneck(self, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return h

    def map(self, i: int, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return h


class EmbConcat(Injection):
    """z beside the level embedding, seen by every block: the published default."""

    def bind(self, *, emb: int, maps: Sequence[int], bottleneck: int) -> None:
        self.extra = self.latent
        self.project = projection(self.latent, self.latent, self.nonlinear)

    def embed(self, emb, z):
        return torch.cat([emb, self.project(z)], dim=1)


class EmbAdd(Injection):
    """z added to the level embedding."""

    def bind(self, *, emb: int, maps: Sequence[int], bottleneck: int) -> None:
        self.project = projection(self.latent, emb, self.nonlinear)

    def embed(self, emb, z):
        return emb + self.project(z)


class LatentMap(nn.Module):
    """z (B, d) as a coarse feature map, brought to the size and channels of the map it is added to."""

    def __init__(self, *, latent: int, channels: int, nonlinear: bool, grid: int = 4, width: int = 16):
        super().__init__()
        self.grid = grid
        self.project = projection(latent, width * grid * grid, nonlinear)
        self.mix = nn.Conv2d(width, channels, 1)

    def forward(self, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        coarse = self.project(z).reshape(z.shape[0], -1, self.grid, self.grid)
        return h + self.mix(F.interpolate(coarse, size=h.shape[2:], mode="bilinear"))


class Start(Injection):
    """z as a map added to the first features."""

    def bind(self, *, emb: int, maps: Sequence[int], bottleneck: int) -> None:
        self.add = LatentMap(latent=self.latent, channels=maps[0], nonlinear=self.nonlinear)

    def start(self, h, z):
        return self.add(h, z)


class Bottleneck(Injection):
    """z as a map added at the coarsest resolution."""

    def bind(self, *, emb: int, maps: Sequence[int], bottleneck: int) -> None:
        self.add = LatentMap(latent=self.latent, channels=bottleneck, nonlinear=self.nonlinear)

    def bottleneck(self, h, z):
        return self.add(h, z)


class Maps(Injection):
    """z as a map added to every feature map of the way down."""

    def bind(self, *, emb: int, maps: Sequence[int], bottleneck: int) -> None:
        self.add = nn.ModuleList(LatentMap(latent=self.latent, channels=c, nonlinear=self.nonlinear) for c in maps)

    def map(self, i, h, z):
        return self.add[i](h, z)
