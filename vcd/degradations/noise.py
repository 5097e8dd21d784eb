"""Gaussian noise."""

from typing import final

from vcd.degradations.gaussian import GaussianDegradation, Identity
from vcd.schedules import Schedule


@final
class Noise(GaussianDegradation):
    """signal_t x0 + noise_t eps, eps standard normal; sqrt(abar_t) and sqrt(1 - abar_t) for DDPM (2006.11239, eq. 4).

    continuous: training draws real levels, between which the log of noise to signal is interpolated.
    """

    def __init__(self, *, T: int, schedule: Schedule, continuous: bool = False):
        signal, noise = schedule.signal_and_noise(T)
        super().__init__(signal=signal, noise=noise, basis=Identity())
        self.continuous = continuous
