"""Degradations with Gaussian noise: a signal that is kept, per frequency where there is a basis, and noise."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from vcd.degradations.base import Degradation, Images, exactly
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


@final
class DCT(Basis):
    """Cosines with reflecting borders: the eigenvectors of the heat equation."""

    C: Tensor

    def __init__(self, *, size: int):
        super().__init__()
        self.register_buffer("C", dct_matrix(size).float())

    def forward(self, x: Images) -> Images:
        return self.C @ x @ self.C.mT

    def inverse(self, u: Images) -> Images:
        return self.C.mT @ u @ self.C

    def scale(self, x: Images, by: Tensor) -> Images:
        return x + self.inverse((by - 1) * self(x))


@dataclass(frozen=True)
class Posterior:
    """A Gaussian with mean (b, c, h, w) and standard deviation per image, or per image and coefficient of the basis."""

    mean: Images
    std: Float[Tensor, "b 1 h2 w2"]
    basis: Basis

    def sample(self, eps: Images) -> Images:
        """A draw; eps is standard normal."""
        return self.mean + self.basis.inverse(self.std * eps)


class GaussianDegradation(Degradation, ABC):
    """x_t = B^-1(signal_t . B x0) + noise_t eps, eps standard normal.

    The basis B is the pixels (ordinary noise) or the DCT (blur with noise: Hoogeboom and Salimans 2022,
    arXiv:2209.05557). signal (T+1,) or (T+1, H, W) and noise (T+1,) are 1 and 0 at level 0. DDPM, DDIM, the predictions
    of eps and v, and the bound read nothing else.
    """

    stochastic = True
    signal: Tensor
    noise: Tensor

    def __init__(self, *, signal: Float64[Tensor, "levels *grid"], noise: Float64[Tensor, " levels"], basis: Basis):
        super().__init__(T=len(noise) - 1)
        self.basis = basis
        self.register_buffer("signal", signal.float())
        self.register_buffer("noise", noise.float())

    def forward(self, x0: Images, t: Levels, eps: Images | None = None) -> Images:
        """x_t in float32. ValueError without eps."""
        if eps is None:
            raise ValueError("this degradation needs its eps: pass eps=degradation.draw(x0)")
        signal, noise = self.at(t)
        with exactly(x0.device):
            return self.basis.scale(x0.to(signal.dtype), signal) + noise * eps.to(noise.dtype)

    def at(self, t: Levels) -> tuple[Tensor, Tensor]:
        """signal_t and noise_t, ready to multiply coefficients and images with."""
        return per_image(self.signal[t]), per_image(self.noise[t])

    def draw(self, x0: Images, randomness: PerImage | None = None) -> Images:
        """Standard normal like x0."""
        if randomness is None:
            return torch.randn(x0.shape, device=x0.device, dtype=self.noise.dtype)
        return randomness.normal(*x0.shape[1:]).to(x0.device, self.noise.dtype)

    def infer(self, x_t: Images, x0: Images, t: Levels) -> Images:
        """(x_t - B^-1(signal_t . B x0)) / noise_t; 0 at level 0, which holds no noise."""
        signal, noise = self.at(t)
        with exactly(x_t.device):
            left = x_t.to(signal.dtype) - self.basis.scale(x0.to(signal.dtype), signal)
        return torch.where(noise > 0, left / noise.clamp(min=torch.finfo(noise.dtype).tiny), 0)

    def posterior(self, x_t: Images, x0: Images, t: Levels, s: Levels, eta: float = 1.0) -> Posterior:
        """q(x_s | x_t, x0), exactly (eta = 1; Ho et al. 2020, eq. 7), or with less noise (Song et al. 2020, eq. 12, 16).

        With r the ratio of signal to noise at t by that at s, the share eta^2 (1 - r^2) of the noise at s is new; the
        rest is the noise that x_t holds. In this form float32 does not cancel where the signal is near 1, and nothing
        is divided by a small signal alone.
        """
        (signal_t, noise_t), (signal_s, noise_s) = self.at(t), self.at(s)
        new = eta**2 * (1 - (signal_t * noise_s / (signal_s * noise_t)) ** 2)
        eps = self.basis(self.infer(x_t, x0, t))
        mean = self.basis.inverse(signal_s * self.basis(x0) + noise_s * (1 - new).sqrt() * eps)
        return Posterior(mean, noise_s * new.sqrt(), self.basis)
