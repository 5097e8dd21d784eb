"""Pixelation."""

from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from vcd.degradations.separable import SeparableLinear, Table
from vcd.schedules import pixel_blocks, pixel_factors


@final
class Pixelate(SeparableLinear):
    """Every block of pixels becomes its mean: the means of all blocks are what level t keeps.

    A level has n_t blocks a side, of lengths that differ by at most one pixel, n_t falling to 1 (the channel mean) at
    level T. With lengths as equal as that, every level is more severe than the one before; with blocks of factor_t
    pixels and a remainder at the edge it need not be (digits at T=6: 4+4, 5+3, 6+2 bring x_t *nearer* to x0).
    `published` is VCD's own: every block becomes one of its pixels, see `nearest_table`; the first level changes
    nothing, and the last keeps the image's first pixel. UserError if T is above size - 1 (not if `published`).
    """

    def __init__(self, *, T: int, size: int, published: bool):
        if published:
            table = nearest_table(pixel_factors(T, size=size), size)
        else:
            table = block_mean_table(torch.arange(size) * pixel_blocks(T, size=size)[:, None] // size)
        super().__init__(table)


def block_mean_table(block: Int[Tensor, "levels n"]) -> Table:
    """A_t[i, j] = 1 / |block| where pixels i and j have the same block number, else 0; (T+1, N, N), float64."""
    same = (block[:, :, None] == block[:, None, :]).double()
    return same / same.sum(-1, keepdim=True)


def nearest_table(factor: Int[Tensor, " levels"], size: int) -> Table:
    """A_t x is x resized by 1 / factor_t and back to `size`, to the nearest pixel each time; (T+1, N, N), float64.

    As VCD does it (Feucht, VariationalColdDiffusion, scripts/degradation.py: torch's interpolate by scale_factor, then
    by size, mode nearest). Down, pixel i of n = floor(N / factor) is pixel i factor; up, pixel j is pixel floor(j n / N).
    So a side has n blocks of N / n pixels, and each block shows one pixel of the image, not always one of its own.
    """
    factor = factor[:, None]
    blocks = (size // factor).clamp(min=1)
    shown = torch.arange(size) * blocks // size * factor
    return torch.nn.functional.one_hot(shown, size).double()
