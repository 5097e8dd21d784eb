"""Latents that have a place in the image: which of their numbers are free where level s is restored."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vcd.degradations.base import exactly
from vcd.errors import UserError
from vcd.levels import Levels


@final
class Cells(nn.Module):
    """z (B, maps * grid * grid) as `maps` numbers in each of grid x grid cells of the image, row by row.

    coarse: towards level s there are about size^(1 - s/T) waves across the image, where blur widens by a factor per
    level, and no more cells are needed across: squares of cells share the value of their first one, and the others are
    not in use. Else every cell is, at every level. `groups[s, i, j]` is 1 where cell j has the value of cell i.
    """

    groups: Tensor

    def __init__(self, *, latent: int, maps: int, grid: int, size: int, T: int, coarse: bool):
        super().__init__()
        if maps < 1 or not 1 <= grid <= size:
            raise UserError(
                f"network.encoder.maps={maps} and grid={grid}: at least one map, and 1 to {size} cells across"
            )
        if latent != maps * grid**2:
            raise UserError(f"network.encoder.latent={latent} must be maps * grid^2 = {maps * grid**2}")
        self.maps, self.shape = maps, (maps, grid, grid)
        table = torch.zeros(T + 1, grid**2, grid**2)
        for s in range(T + 1):
            most = size ** (1 - s / T) if coarse else grid
            side = max(d for d in range(1, grid + 1) if grid % d == 0 and (d == 1 or d <= most))
            first = torch.arange(grid) // (grid // side) * (grid // side)
            table[s, (first[:, None] * grid + first).flatten(), torch.arange(grid**2)] = 1
        self.register_buffer("groups", table, persistent=False)

    def pool(self, x: Float[Tensor, "b d"], s: Levels) -> Float[Tensor, "b d"]:
        """The mean of the cells that share, at the first of them; 0 at the others."""
        groups = self.groups[s.long()]
        return self._product(x, (groups / groups.sum(2, keepdim=True).clamp(min=1)).mT)

    def spread(self, z: Float[Tensor, "b d"], s: Levels) -> Float[Tensor, "b d"]:
        """The value of every cell, its own or the shared one."""
        return self._product(z, self.groups[s.long()])

    def inside(self, place: Sequence[int | float], s: int) -> Bool[Tensor, " d"]:
        """The numbers of the cells that are in `place`, (top, left, bottom, right) in fractions of the image: those with
        their centre in it, and of cells that share a value at level s all or none."""
        centre = (torch.arange(self.shape[1], device=self.groups.device) + 0.5) / self.shape[1]
        top, left, bottom, right = place
        down, across = (centre > top) & (centre < bottom), (centre > left) & (centre < right)
        outside = (~(down[:, None] & across)).flatten().to(self.groups.dtype)
        groups = self.groups[s]
        return (groups.mT @ groups @ outside == 0).repeat(self.maps)

    def _product(self, z: Float[Tensor, "b d"], by: Float[Tensor, "b i j"]) -> Float[Tensor, "b d"]:
        with exactly(z.device):
            return (z.unflatten(1, (self.maps, -1)) @ by.to(z.dtype)).flatten(1)
