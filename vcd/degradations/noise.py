"""Gaussian noise."""

from typing import final

from vcd.degradations.gaussian import GaussianDegradation, Identity
from vcd.schedules import Schedule


@final
class Noise(GaussianDegradation):
    """sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, eps standard normal (DDPM, 2006.11239, eq. 4)."""

    def __init__(self, *, T: int, schedule: Schedule):
        alpha_bar = schedule.alpha_bar(T)
        super().__init__(signal=alpha_bar.sqrt(), noise=(1 - alpha_bar).sqrt(), basis=Identity())
