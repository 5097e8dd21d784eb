"""Lower and lower resolution: super-resolution is the way back."""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from vcd.degradations.separable import SeparableLinear, Table
from vcd.errors import UserError
from vcd.schedules import Number, check_levels


@final
class Downsample(SeparableLinear):
    """x_t: x_{t-1} reduced to n_t pixels a side (bicubic, no antialiasing), then enlarged (nearest neighbour).

    n_t = size / factor^(t/T), rounded down. Bansal et al. (2208.09392) halve it: T=3 and factor=8, T=4 and factor=16.
    It aliases: the contrast of x_t can grow a little from one level to the next. UserError if factor is not in (1, size].
    """

    def __init__(self, *, T: int, size: int, factor: Number = 8):
        if not 1 < factor <= size:
            raise UserError(
                f"degradation.factor={factor}: the resolution falls by more than 1, and to one pixel at most, {size}"
            )
        super().__init__(resolution_table(sides(T, size, factor), size))


def sides(T: int, size: int, factor: Number) -> list[int]:
    """Pixels a side at level t, (T+1,)."""
    check_levels(T)
    return [int(size / factor ** (t / T) + 1e-9) for t in range(T + 1)]


def resolution_table(n: list[int], size: int) -> Table:
    """A_t = U_t R_t A_{t-1}, R_t and U_t what torch's interpolation makes of the identity; (T+1, N, N), float64."""
    A = torch.eye(size, dtype=torch.float64)
    table = [A]
    for small in n[1:]:
        A = _resized(_resized(A, small, mode="bicubic"), size, mode="nearest")
        table.append(A)
    return torch.stack(table)


def _resized(A: Float64[Tensor, "m n"], rows: int, mode: str) -> Float64[Tensor, "k n"]:
    align = False if mode == "bicubic" else None
    return F.interpolate(A[None, None], (rows, A.shape[1]), mode=mode, align_corners=align)[0, 0]
