"""Schedules of noise beyond DDPM's: score-based models, EDM and VDM, each as signal and noise of every level.

Sigmas are in units of images in [-1, 1], twice the papers' that use [0, 1].
"""

import math
from abc import ABC, abstractmethod
from typing import final

import torch

from vcd.errors import UserError
from vcd.schedules import Levels, Number, Schedule, check_levels, to_zero


class VariancePreserving(Schedule, ABC):
    """signal^2 + noise^2 = 1, and a fade of the same shape."""

    def fade(self, T: int) -> Levels:
        return to_zero(self.alpha_bar(T).sqrt())


@final
class VP(VariancePreserving):
    """exp(-int beta) with beta growing linearly in t/T (Song et al. 2021, arXiv:2011.13456, eq. 32)."""

    def __init__(self, *, beta_min: Number = 0.1, beta_max: Number = 20.0):
        self.beta_min, self.beta_max = _rising("schedule.beta_min", beta_min, "schedule.beta_max", beta_max, least=0)

    def alpha_bar(self, T: int) -> Levels:
        u = torch.arange(check_levels(T) + 1, dtype=torch.float64) / T
        return torch.exp(-(u**2) * (self.beta_max - self.beta_min) / 2 - u * self.beta_min)


@final
class LogSNR(VariancePreserving):
    """-ln SNR falls linearly from gamma_1 at level T to gamma_0 at level 1 (Kingma et al. 2021, arXiv:2107.00630)."""

    def __init__(self, *, gamma_0: Number = -13.3, gamma_1: Number = 5.0):
        self.gamma_0, self.gamma_1 = _rising("schedule.gamma_0", gamma_0, "schedule.gamma_1", gamma_1)

    def alpha_bar(self, T: int) -> Levels:
        return torch.cat([torch.ones(1, dtype=torch.float64), torch.sigmoid(-self._gamma(T))])

    def signal_and_noise(self, T: int) -> tuple[Levels, Levels]:
        """sqrt(sigmoid(-gamma)) and sqrt(sigmoid(gamma)): 1 - sigmoid would lose the small noise of level 1."""
        noise = torch.sigmoid(self._gamma(T)).sqrt()
        return self.alpha_bar(T).sqrt(), torch.cat([torch.zeros(1, dtype=torch.float64), noise])

    def _gamma(self, T: int) -> Levels:
        return torch.linspace(self.gamma_1, self.gamma_0, check_levels(T), dtype=torch.float64).flip(0)


@final
class SubVP(Schedule):
    """VP's signal with noise 1 - signal^2, which is smaller (Song et al. 2021, arXiv:2011.13456, eq. 35)."""

    def __init__(self, *, beta_min: Number = 0.1, beta_max: Number = 20.0):
        self.vp = VP(beta_min=beta_min, beta_max=beta_max)

    def fade(self, T: int) -> Levels:
        return self.vp.fade(T)

    def alpha_bar(self, T: int) -> Levels:
        return self.vp.alpha_bar(T)

    def signal_and_noise(self, T: int) -> tuple[Levels, Levels]:
        kept = self.alpha_bar(T)
        return kept.sqrt(), 1 - kept


class VarianceExploding(Schedule, ABC):
    """The image is kept, and noise is added to it: signal 1, noise sigma_t."""

    @abstractmethod
    def sigma(self, T: int) -> Levels:
        """Noise of levels 1..T, rising."""

    def signal_and_noise(self, T: int) -> tuple[Levels, Levels]:
        sigma = self.sigma(check_levels(T))
        return torch.ones(T + 1, dtype=torch.float64), torch.cat([torch.zeros(1, dtype=torch.float64), sigma])

    def fade(self, T: int) -> Levels:
        raise UserError(
            f"schedule={type(self).__name__.lower()} keeps the image: it cannot fade; take schedule=cosine or vp"
        )

    def alpha_bar(self, T: int) -> Levels:
        raise UserError(
            f"schedule={type(self).__name__.lower()} adds noise without fading: it is for degradation=noise"
        )


@final
class Geometric(VarianceExploding):
    """sigma_t log-spaced: NCSN (Song and Ermon 2019, arXiv:1907.05600), NCSNv2 and the VE SDE (arXiv:2011.13456)."""

    def __init__(self, *, sigma_min: Number = 0.02, sigma_max: Number = 100.0):
        self.sigma_min, self.sigma_max = _rising(
            "schedule.sigma_min", sigma_min, "schedule.sigma_max", sigma_max, least=0
        )

    def sigma(self, T: int) -> Levels:
        return torch.linspace(math.log(self.sigma_max), math.log(self.sigma_min), T, dtype=torch.float64).exp().flip(0)


@final
class Karras(VarianceExploding):
    """sigma^(1/rho) evenly spaced: EDM (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""

    def __init__(self, *, sigma_min: Number = 0.002, sigma_max: Number = 80.0, rho: Number = 7.0):
        self.sigma_min, self.sigma_max = _rising(
            "schedule.sigma_min", sigma_min, "schedule.sigma_max", sigma_max, least=0
        )
        self.rho = rho

    def sigma(self, T: int) -> Levels:
        ends = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return torch.linspace(*ends, T, dtype=torch.float64).pow(self.rho).flip(0)


def _rising(low_key: str, low: Number, high_key: str, high: Number, least: Number = -math.inf) -> tuple[Number, Number]:
    if not least < low < high:
        above = "" if least == -math.inf else f", above {least}"
        raise UserError(f"{low_key}={low} must be less than {high_key}={high}{above}")
    return low, high
