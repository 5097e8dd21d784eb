"""Rounding, as part of a composed degradation."""

from typing import final

import torch

from vcd.degradations.base import Degradation, Eps, Images
from vcd.errors import UserError
from vcd.levels import Levels


@final
class Quantise(Degradation):
    """x rounded to the nearest of 2^bits values from -1 to 1, at every level but 0: faint traces of x0 die.

    Rounding twice is rounding once; Bansal et al. (2208.09392) cut off the fraction instead, which is not. At level 0 x
    stays as it is. Values outside [-1, 1] are clamped. UserError unless 1 <= bits <= 16.
    """

    def __init__(self, *, T: int, bits: int = 8):
        if not 1 <= bits <= 16:
            raise UserError(f"degradation.bits={bits}: choose 1 to 16")
        super().__init__(T=T)
        self.steps = 2**bits - 1

    def forward(self, x0: Images, t: Levels, eps: Eps | None = None) -> Images:
        x = x0.double() if x0.dtype == torch.float64 else x0.float()
        rounded = ((x.clamp(-1, 1) + 1) * (self.steps / 2)).round() * (2 / self.steps) - 1
        return torch.where((t > 0)[:, None, None, None], rounded, x)
