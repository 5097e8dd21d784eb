"""How much each level counts in the loss of a denoiser, as a weight on ||x_0 - xhat_0||^2, or on each of its coefficients
where the signal depends on the frequency."""

from abc import ABC, abstractmethod
from typing import final

import torch

from vcd.degradations.gaussian import GaussianDegradation
from vcd.errors import UserError
from vcd.levels import Levels, per_image
from vcd.predictions import Gain
from vcd.schedules import Number


class Weight(ABC):
    """A function of the level."""

    @abstractmethod
    def __call__(self, t: Levels, D: GaussianDegradation) -> Gain:
        """The weights of these levels."""


class OfSNR(Weight, ABC):
    """A function of the ratio of signal to noise power."""

    def __call__(self, t: Levels, D: GaussianDegradation) -> Gain:
        signal, noise = D.at(t)
        return self.of_snr((signal / noise) ** 2)

    @abstractmethod
    def of_snr(self, snr: Gain) -> Gain:
        """The weight at this ratio."""


@final
class Simple(OfSNR):
    """The squared error of eps, whatever is predicted: DDPM's L_simple, and score matching weighted by sigma^2.

    Where the signal is a blur C_t it is |C_t (x_0 - xhat_0)|^2 / noise_t^2: soft score matching (arXiv:2209.05442).
    """

    def of_snr(self, snr: Gain) -> Gain:
        return snr


@final
class Flat(OfSNR):
    """The squared error of x_0, whatever is predicted."""

    def of_snr(self, snr: Gain) -> Gain:
        return torch.ones_like(snr)


@final
class MinSNR(OfSNR):
    """min(SNR, gamma): clean levels count no more than gamma (Hang et al. 2023, arXiv:2303.09556, eq. 8)."""

    def __init__(self, *, gamma: Number = 5.0):
        if not gamma > 0:
            raise UserError(f"weight.gamma={gamma} must be above 0")
        self.gamma = gamma

    def of_snr(self, snr: Gain) -> Gain:
        return snr.clamp(max=self.gamma)


@final
class Preconditioned(OfSNR):
    """1 / c_out^2 of EDM's preconditioning, (SNR + 1 / sd^2) (Karras et al. 2022, arXiv:2206.00364, table 1)."""

    def __init__(self, *, sd: Number = 0.5):
        self.sd = sd

    def of_snr(self, snr: Gain) -> Gain:
        return snr + 1 / self.sd**2


@final
class Likelihood(Weight):
    """The bound's own: T (SNR_{t-1} - SNR_t) / 2, which is maximum likelihood (Song et al. 2021, arXiv:2101.09258)."""

    def __call__(self, t: Levels, D: GaussianDegradation) -> Gain:
        (a_t, n_t), (a_s, n_s) = D.at(t), D.at((t - 1).clamp(min=1))
        first = (a_t / n_t) ** 2  # the step to level 0 has no finite gain: it counts as the squared error of eps
        return torch.where(per_image(t) <= 1, first, D.T / 2 * ((a_s / n_s) ** 2 - first))
