"""Levels of training that are drawn by how noisy they are."""

from typing import cast, final

import torch

from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.levels import Graded, Levels, LevelSampler
from vcd.predictions import gaussian
from vcd.schedules import Number


@final
class LogNormal(LevelSampler):
    """ln(noise / signal) normal with this mean and std (Karras et al. 2022, arXiv:2206.00364, table 1: -1.2, 1.2)."""

    def __init__(self, *, mean: Number = -1.2, std: Number = 1.2):
        if not std > 0:
            raise UserError(f"level_sampler.std={std} must be above 0")
        self.mean, self.std = mean, std

    def draw(self, n: int, D: Graded, device: torch.device | str = "cpu") -> Levels:
        noise = gaussian(cast(Degradation, D), "level_sampler=log_normal", "take level_sampler=stratified")
        t = noise.level_of(self.mean + self.std * torch.randn(n, device=device))
        return t if D.continuous else t.round().long()
