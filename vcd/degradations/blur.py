"""Blur by the heat equation."""

import math
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from vcd.degradations.gaussian import dct_matrix
from vcd.degradations.separable import SeparableLinear, Table
from vcd.schedules import Number, log_sigma


@final
class Blur(SeparableLinear):
    """exp(-(f_i^2 + f_j^2) sigma_t^2 / 2) on the orthonormal DCT-II of the image, f_k = pi k / N.

    The heat equation with reflecting borders (Rissanen et al., 2206.13397, eq. 7); sigma_t in pixels, log-spaced.
    At sigma_max = N the first wave keeps exp(-pi^2/2) = 0.72 %: level T is nearly, not exactly, flat.
    Published: VCD 1..N with `repeat_last`; Rissanen .5..20 (MNIST), .5..24 (CIFAR-10), .5..128 (AFHQ 256) without.
    """

    def __init__(self, *, T: int, size: int, sigma_min: Number, sigma_max: Number, repeat_last: bool):
        sigma = log_sigma(T, sigma_min=sigma_min, sigma_max=sigma_max, repeat_last=repeat_last)
        super().__init__(heat_table(sigma, size))


def heat_table(sigma: Float64[Tensor, " levels"], size: int) -> Table:
    """A_t = C^T diag(exp(-f^2 sigma_t^2 / 2)) C with C the orthonormal DCT-II matrix, (T+1, N, N), float64."""
    C = dct_matrix(size)
    f = math.pi * torch.arange(size, dtype=torch.float64) / size
    table = C.T @ (torch.exp(-(f**2) * sigma[:, None] ** 2 / 2)[:, :, None] * C)
    table[sigma == 0] = torch.eye(size, dtype=torch.float64)  # exactly
    return table
