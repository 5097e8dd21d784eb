"""Blur and noise in one: blurring diffusion."""

import math
from typing import final

import torch

from vcd.degradations.gaussian import DCT, GaussianDegradation, heat
from vcd.errors import UserError
from vcd.schedules import Schedule


@final
class BlurNoise(GaussianDegradation):
    """x_t = B^-1(a_t d_t . B x0) + sqrt(1 - a_t^2) eps, B the DCT (Hoogeboom and Salimans 2022, arXiv:2209.05557).

    a_t^2 is the schedule's alpha_bar; d_t = (1 - floor) exp(-lambda sigma_t^2 / 2) + floor, with
    sigma_t = sigma_max sin^2(pi t / 2T) pixels and lambda = f_i^2 + f_j^2, f_k = pi k / N. sigma_max = 0 is
    `degradation=noise`. UserError for a negative sigma_max or a floor outside (0, 1].
    """

    def __init__(self, *, T: int, size: int, schedule: Schedule, sigma_max: float, floor: float = 0.001):
        if sigma_max < 0 or not 0 < floor <= 1:
            raise UserError(
                f"degradation.sigma_max={sigma_max}, degradation.floor={floor}: sigma_max must not be negative, "
                "and floor must lie in (0, 1]"
            )
        alpha_bar = schedule.alpha_bar(T)
        u = torch.arange(T + 1, dtype=torch.float64) / T
        kept = (1 - floor) * heat(sigma_max * torch.sin(math.pi / 2 * u) ** 2, size) + floor
        super().__init__(
            signal=alpha_bar.sqrt()[:, None, None] * kept, noise=(1 - alpha_bar).sqrt(), basis=DCT(size=size)
        )
