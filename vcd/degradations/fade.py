"""Fading to black."""

from typing import final

import torch

from vcd.degradations.separable import SeparableLinear
from vcd.schedules import Schedule
from vcd.spaces import BLACK


@final
class Fade(SeparableLinear):
    """c_t (x0 - zero) + zero, c_t from the schedule: 1 at level 0, exactly 0 (a black image) at level T.

    "Blacking" of variational cold diffusion. A_t is sqrt(c_t) times the identity.
    """

    def __init__(self, *, T: int, size: int, schedule: Schedule, zero: float = BLACK):
        super().__init__(schedule.fade(T).sqrt()[:, None, None] * torch.eye(size, dtype=torch.float64), zero=zero)
