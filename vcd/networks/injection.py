"""Where the latent z enters the U-Net (conf/network: injection): one class per place.

Each place is a hook that leaves its argument alone unless the class is for that place. z is projected by an MLP, or,
as published for VCD, by linear layers without a nonlinearity (`nonlinear=false`).
"""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vcd.errors import UserError
from vcd.levels import Levels
from vcd.networks.cells import Cells


def projection(d: int, width: int, nonlinear: bool) -> nn.Sequential:
    """z (B, d) -> (B, width) by three linear layers, with SiLU between them or, as published, nothing."""
    between = nn.SiLU if nonlinear else nn.Identity
    return nn.Sequential(nn.Linear(d, d), between(), nn.Linear(d, d), between(), nn.Linear(d, width))


@dataclass(frozen=True)
class Widths:
    """What an injection has to fit: the embedding's width, and the channels of the feature maps of the way down."""

    emb: int
    maps: Sequence[int]


class Injection(nn.Module, ABC):
    """The hooks, all of them the identity. The U-Net makes its injection, since it knows the widths."""

    extra = 0  # channels by which the embedding grows
    shape: tuple[int, ...] | None = None  # what z is seen as, where its numbers have a place in the image

    def __init__(self, widths: Widths, *, latent: int):
        super().__init__()
        if latent < 1:
            raise UserError(f"network.encoder.latent={latent}: the latent needs at least one dimension")
        self.latent = latent

    def at(self, z: Float[Tensor, "b d"], s: Levels) -> Float[Tensor, "b d"]:
        """z as the other hooks see it where level s is asked for."""
        return z

    def embed(self, emb: Float[Tensor, "b e"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b e2"]:
        return emb

    def input(self, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return h

    def bottleneck(self, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return h

    def map(self, i: int, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return h


@final
class EmbConcat(Injection):
    """z beside the level embedding, seen by every block: the published default."""

    def __init__(self, widths: Widths, *, latent: int, nonlinear: bool = True):
        super().__init__(widths, latent=latent)
        self.extra = latent
        self.project = projection(latent, latent, nonlinear)

    def embed(self, emb: Float[Tensor, "b e"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b e2"]:
        return torch.cat([emb, self.project(z)], dim=1)


@final
class EmbAdd(Injection):
    """z added to the level embedding."""

    def __init__(self, widths: Widths, *, latent: int, nonlinear: bool = True):
        super().__init__(widths, latent=latent)
        self.project = projection(latent, widths.emb, nonlinear)

    def embed(self, emb: Float[Tensor, "b e"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b e2"]:
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


@final
class Input(Injection):
    """z as a map added to the first features."""

    def __init__(self, widths: Widths, *, latent: int, nonlinear: bool = True):
        super().__init__(widths, latent=latent)
        self.add = LatentMap(latent=latent, channels=widths.maps[0], nonlinear=nonlinear)

    def input(self, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return self.add(h, z)


@final
class Bottleneck(Injection):
    """z as a map added at the coarsest resolution."""

    def __init__(self, widths: Widths, *, latent: int, nonlinear: bool = True):
        super().__init__(widths, latent=latent)
        self.add = LatentMap(latent=latent, channels=widths.maps[-1], nonlinear=nonlinear)

    def bottleneck(self, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return self.add(h, z)


@final
class Maps(Injection):
    """z as a map added to every feature map of the way down."""

    def __init__(self, widths: Widths, *, latent: int, nonlinear: bool = True):
        super().__init__(widths, latent=latent)
        self.add = nn.ModuleList(LatentMap(latent=latent, channels=c, nonlinear=nonlinear) for c in widths.maps)

    def map(self, i: int, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return self.add[i](h, z)


class CellMap(nn.Module):
    """z (B, maps * cells) as the map that it is: the same small network at every cell, so that each stays in its place."""

    def __init__(self, *, cells: Cells, channels: int, width: int = 16):
        super().__init__()
        self.shape = cells.shape
        self.project = nn.Sequential(nn.Conv2d(cells.maps, width, 1), nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU())
        self.mix = nn.Conv2d(width, channels, 1)

    def forward(self, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        coarse = self.project(z.unflatten(1, self.shape))
        return h + self.mix(F.interpolate(coarse, size=h.shape[2:], mode="bilinear"))


@final
class Spatial(Injection):
    """z as a map whose cells have a place in the image (`Cells`), added there to every feature map of the way down."""

    def __init__(self, widths: Widths, *, latent: int, maps: int, grid: int, size: int, T: int, coarse: bool = True):
        super().__init__(widths, latent=latent)
        self.cells = Cells(latent=latent, maps=maps, grid=grid, size=size, T=T, coarse=coarse)
        self.shape = self.cells.shape
        self.add = nn.ModuleList(CellMap(cells=self.cells, channels=c) for c in widths.maps)

    def at(self, z: Float[Tensor, "b d"], s: Levels) -> Float[Tensor, "b d"]:
        return self.cells.spread(z, s)

    def map(self, i: int, h: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        return self.add[i](h, z)
