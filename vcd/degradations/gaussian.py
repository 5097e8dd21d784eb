"""Degradations with Gaussian noise: a signal that is kept, per frequency where there is a basis, and noise."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from vcd.degradations.base import Degradation, Images, exactly
from vcd.errors import UserError
from vcd.levels import Levels, per_image
from vcd.randomness import PerImage


class Basis(nn.Module, ABC):
    """An orthonormal basis B of images."""

    @abstractmethod
    def forward(self, x: Images) -> Images:
        """The coefficients B x."""

    @abstractmethod
    def inverse(self, u: Images) -> Images:
        """The image B^-1 u."""

    @abstractmethod
    def scale(self, x: Images, by: Tensor) -> Images:
        """B^-1(by . B x), and exactly x where `by` is 1."""


@final
class Identity(Basis):
    """The pixels."""

    def forward(self, x: Images) -> Images:
        return x

    def inverse(self, u: Images) -> Images:
        return u

    def scale(self, x: Images, by: Tensor) -> Images:
        return by * x


def dct_matrix(size: int) -> Float64[Tensor, "n n"]:
    """The orthonormal DCT-II: row k is the wave of k half-periods, f_k = pi k / N."""
    k = torch.arange(size, dtype=torch.float64)
    C = math.sqrt(2 / size) * torch.cos(math.pi / size * k[:, None] * (k + 0.5))
    C[0] /= math.sqrt(2)
    return C


def heat(sigma: Float64[Tensor, " levels"], size: int) -> Float64[Tensor, "levels n n"]:
    """What a Gaussian blur of std sigma_t pixels leaves of every wave: exp(-(f_i^2 + f_j^2) sigma_t^2 / 2), f_k = pi k / N."""
    f = math.pi * torch.arange(size, dtype=torch.float64) / size
    return torch.exp(-(f[:, None] ** 2 + f**2) * sigma[:, None, None] ** 2 / 2)


class Sides(Basis, ABC):
    """One orthonormal matrix C for both sides of the image: C x C^T."""

    C: Tensor

    def __init__(self, C: Float[Tensor, "n n"]):
        super().__init__()
        self.register_buffer("C", C)

    def forward(self, x: Images) -> Images:
        return self.C @ x @ self.C.mT

    def inverse(self, u: Images) -> Images:
        return self.C.mT @ u @ self.C

    def scale(self, x: Images, by: Tensor) -> Images:
        return x + self.inverse((by - 1) * self(x))


@final
class DCT(Sides):
    """Cosines with reflecting borders: the eigenvectors of the heat equation."""

    def __init__(self, *, size: int):
        super().__init__(dct_matrix(size).float())


@dataclass(frozen=True)
class Posterior:
    """A Gaussian with mean (b, c, h, w) and standard deviation per image, or per image and coefficient of the basis."""

    mean: Images
    std: Float[Tensor, "b 1 h2 w2"]
    basis: Basis

    def sample(self, eps: Images) -> Images:
        """A draw; eps is standard normal."""
        return self.mean + self.basis.inverse(self.std * eps)


class Noisy(Degradation, ABC):
    """x_t = mean_t(x0) + noise_t eps, eps standard normal and mean_t linear: DDPM and its samplers need no more.

    `noise` (T+1,) is a buffer, 0 at level 0.
    """

    stochastic = True
    noise: Tensor

    @abstractmethod
    def mean(self, x0: Images, t: Levels) -> Images:
        """x_t without its noise."""

    @abstractmethod
    def noise_at(self, t: Levels) -> Float[Tensor, "b 1 1 1"]:
        """noise_t, ready to multiply images with."""

    @abstractmethod
    def posterior(self, x_t: Images, x0: Images, t: Levels, s: Levels, eta: float = 1.0) -> "Posterior":
        """q(x_s | x_t, x0) (eta = 1), or one with less noise that has the same q(x_s | x0)."""

    def forward(self, x0: Images, t: Levels, eps: Images | None = None) -> Images:
        """x_t in float32. ValueError without eps."""
        if eps is None:
            raise ValueError("this degradation needs its eps: pass eps=degradation.draw(x0)")
        return self.mean(x0, t) + self.noise_at(t) * eps.to(self.noise.dtype)

    def draw(self, x0: Images, randomness: PerImage | None = None) -> Images:
        """Standard normal like x0."""
        if randomness is None:
            return torch.randn(x0.shape, device=x0.device, dtype=self.noise.dtype)
        return randomness.normal(*x0.shape[1:]).to(x0.device, self.noise.dtype)

    def infer(self, x_t: Images, x0: Images, t: Levels) -> Images:
        """(x_t - mean_t(x0)) / noise_t; 0 at level 0, which holds no noise."""
        noise, left = self.noise_at(t), x_t.to(self.noise.dtype) - self.mean(x0, t)
        return torch.where(noise > 0, left / noise.clamp(min=torch.finfo(noise.dtype).tiny), 0)


class GaussianDegradation(Noisy, ABC):
    """x_t = B^-1(signal_t . B x0) + noise_t eps, eps standard normal.

    The basis B is the pixels (ordinary noise) or the DCT (blur with noise: Hoogeboom and Salimans 2022,
    arXiv:2209.05557). signal (T+1,) or (T+1, H, W) and noise (T+1,) are 1 and 0 at level 0. DDPM, DDIM, the predictions
    of eps and v, and the bound read nothing else.

    Examples:
        >>> noise = torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> class Cone(GaussianDegradation):
        ...     def __init__(self):
        ...         super().__init__(signal=(1 - noise**2).sqrt().clamp(min=0.01), noise=noise, basis=Identity())
        >>> D, x0 = Cone(), torch.zeros(1, 1, 2, 2)
        >>> t, s = torch.tensor([3]), torch.tensor([2])
        >>> x_t = D(x0, t, D.draw(x0))
        >>> step = D.posterior(x_t, x0, t, s)  # q(x_s | x_t, x_0): its mean keeps part of x_t's noise
        >>> bool((step.mean.abs() < x_t.abs()).all()), bool(step.std < D.noise[2])
        (True, True)
    """

    signal: Tensor
    log_ratio: Tensor

    def __init__(self, *, signal: Float64[Tensor, "levels *grid"], noise: Float64[Tensor, " levels"], basis: Basis):
        super().__init__(T=len(noise) - 1)
        self.basis = basis
        self.register_buffer("signal", signal.float())
        self.register_buffer("noise", noise.float())
        flat = signal.ndim == 1
        self.preserving = flat and bool(torch.allclose(signal**2 + noise**2, torch.ones_like(noise)))
        self.fades = bool(signal[-1].max() < 1)
        ratio = (noise[1:] / signal[1:]).log() if flat else torch.zeros(0, dtype=torch.float64)
        self.register_buffer("log_ratio", ratio, persistent=False)  # ln(noise / signal) of levels 1..T, float64

    def mean(self, x0: Images, t: Levels) -> Images:
        """B^-1(signal_t . B x0)."""
        signal, _ = self.at(t)
        with exactly(x0.device):
            return self.basis.scale(x0.to(signal.dtype), signal)

    def noise_at(self, t: Levels) -> Float[Tensor, "b 1 1 1"]:
        return self.at(t)[1]

    def at(self, t: Levels) -> tuple[Tensor, Tensor]:
        """signal_t and noise_t, ready to multiply coefficients and images with; for real t see `between`."""
        signal, noise = self.between(t) if t.is_floating_point() else (self.signal[t], self.noise[t])
        return per_image(signal), per_image(noise)

    def between(self, t: Levels) -> tuple[Tensor, Tensor]:
        """Signal and noise at real levels: ln(noise / signal) is linear between levels 1..T; below 1 it is level 1's.

        UserError where the signal depends on the frequency.
        """
        ratio = _interpolate(self._flat(), t.double() - 1)
        if self.preserving:
            signal, noise = torch.sigmoid(-2 * ratio).sqrt(), torch.sigmoid(2 * ratio).sqrt()
        else:
            signal = _interpolate(self.signal[1:].double(), t.double() - 1)
            noise = signal * ratio.exp()
        return signal.to(self.signal.dtype), noise.to(self.noise.dtype)

    def level_of(self, log_ratio: Tensor) -> Levels:
        """The real level with this ln(noise / signal), at least 1 and at most T."""
        known = self._flat().contiguous()
        wanted = log_ratio.double().clamp(known[0], known[-1])
        above = torch.searchsorted(known, wanted).clamp(1, max(1, self.T - 1))
        if self.T == 1:
            return torch.ones_like(wanted).float()
        low, high = known[above - 1], known[above]
        return (above + (wanted - low) / (high - low)).float()

    def _flat(self) -> Tensor:
        if len(self.log_ratio) == 0:
            raise UserError(
                "this degradation keeps the signal per frequency: it has no single ratio of noise to signal"
            )
        return self.log_ratio

    def normalise(self, x: Images, t: Levels) -> Images:
        """x_t brought to about unit power, where the signal does not fade as the noise grows."""
        if self.preserving or self.signal.ndim > 1:
            return x
        signal, noise = self.at(t)
        return x / (signal**2 + noise**2).sqrt()

    def posterior(self, x_t: Images, x0: Images, t: Levels, s: Levels, eta: float = 1.0) -> Posterior:
        """q(x_s | x_t, x0), exactly (eta = 1; Ho et al. 2020, eq. 7), or with less noise (Song et al. 2020, eq. 12, 16).

        With r the ratio of signal to noise at t by that at s, the share eta^2 (1 - r^2) of the noise at s is new; the
        rest is the noise that x_t holds. In this form float32 does not cancel where the signal is near 1, and nothing
        is divided by a small signal alone.
        """
        (signal_t, noise_t), (signal_s, noise_s) = self.at(t), self.at(s)
        lowest = torch.finfo(noise_t.dtype).tiny  # where all signal is lost at s already
        new = eta**2 * (1 - (signal_t * noise_s / (signal_s * noise_t).clamp(min=lowest)) ** 2)
        eps = self.basis(self.infer(x_t, x0, t))
        mean = self.basis.inverse(signal_s * self.basis(x0) + noise_s * (1 - new).sqrt() * eps)
        return Posterior(mean, noise_s * new.sqrt(), self.basis)


def _interpolate(table: Tensor, at: Tensor) -> Tensor:
    """Linearly between the entries of a table, and constant beyond its ends."""
    at = at.clamp(0, len(table) - 1)
    low = at.floor().long().clamp(max=max(0, len(table) - 2))
    high = (low + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[low], table[high], (at - low).to(table.dtype))
