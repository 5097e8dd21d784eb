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
    `published` takes VCD's factors and its remainder, see `pixel_factors`; still means, where VCD keeps one pixel.
    UserError if T is above size - 1 (not if `published`).
    """

    def __init__(self, *, T: int, size: int, published: bool):
        pixel = torch.arange(size)
        if published:
            block = pixel // pixel_factors(T, size=size)[:, None]
        else:
            block = pixel * pixel_blocks(T, size=size)[:, None] // size
        super().__init__(block_mean_table(block))


def block_mean_table(block: Int[Tensor, "levels n"]) -> Table:
    """A_t[i, j] = 1 / |block| where pixels i and j have the same block number, else 0; (T+1, N, N), float64."""
    same = (block[:, :, None] == block[:, None, :]).double()
    return same / same.sum(-1, keepdim=True)
