"""How severe level t is, for t = 0..T. Level 0 is clean and T fully degraded; everything is computed in float64.

A `Schedule` says how much of the image a level keeps, as an amplitude (`fade`) or as a power under noise
(`alpha_bar`). The functions below it say how wide a blur or how large a block is; entry 0 is the identity.
"""

import math
from abc import ABC, abstractmethod
from decimal import Decimal
from typing import final

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from vcd.errors import UserError

Levels = Float64[Tensor, " levels"]  # (T+1,)
Number = int | float  # as a yaml says it


def check_levels(T: object) -> int:
    """T itself; UserError unless it is a whole number of at least 1."""
    if not isinstance(T, int) or T < 1:
        raise UserError(f"T={T}: the number of levels must be a whole number of at least 1, for example T=6")
    return T


def _level_share(T: int) -> Levels:
    """t / T for t = 0..T."""
    return torch.arange(check_levels(T) + 1, dtype=torch.float64) / T


def _above_zero(name: str, value: Number) -> None:
    if not value > 0:
        raise UserError(f"{name}={value}: it must be greater than 0")


class Schedule(ABC):
    """What a level keeps of the image.

    Examples:
        >>> Linear().fade(4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
        >>> bool((Cosine().alpha_bar(100).diff() < 0).all())
        True
    """

    @abstractmethod
    def fade(self, T: int) -> Levels:
        """Amplitude kept when fading, (T+1,): 1 at level 0, exactly 0 at level T."""

    @abstractmethod
    def alpha_bar(self, T: int) -> Levels:
        """Power kept under noise, abar_t of DDPM (2006.11239), (T+1,): 1 at level 0, above 0 everywhere."""

    def signal_and_noise(self, T: int) -> tuple[Levels, Levels]:
        """The two factors of x_t = signal_t x_0 + noise_t eps, (T+1,) each: 1 and 0 at level 0."""
        kept = self.alpha_bar(T)
        return kept.sqrt(), (1 - kept).sqrt()


def to_zero(kept: Levels) -> Levels:
    """A falling curve from 1, brought down to exactly 0 at level T."""
    return (kept - kept[-1]) / (1 - kept[-1])


def _from_betas(beta: Float64[Tensor, " T"], clip: Number) -> Levels:
    """abar_t = prod_{i<=t} (1 - beta_i), with beta at most `clip` and abar_0 = 1."""
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta.clamp(max=clip), 0)])


def _clipped(alpha_bar: Levels, clip: Number) -> Levels:
    """The same alpha_bar, with every beta_t = 1 - abar_t / abar_{t-1} at most `clip`."""
    return _from_betas(1 - alpha_bar[1:] / alpha_bar[:-1], clip)


@final
class Cosine(Schedule):
    """cos^2, slow at both ends (Nichol and Dhariwal, 2102.09672, eq. 17); VCD's fade as well."""

    def __init__(self, *, s: Number = 0.008, clip: Number = 0.999):
        self.s, self.clip = s, clip

    def fade(self, T: int) -> Levels:
        """cos^2(((u + s) / (1 + s)) pi/2) at levels 1..T, u = linspace(0, 1, T), the last exactly 0 (VCD)."""
        kept = self._cos2(torch.linspace(0, 1, check_levels(T), dtype=torch.float64))
        kept[-1] = 0
        return torch.cat([torch.ones(1, dtype=torch.float64), kept])

    def alpha_bar(self, T: int) -> Levels:
        """f(t/T) / f(0) with f(u) = cos^2(((u + s) / (1 + s)) pi/2), beta clipped (2102.09672, eq. 17)."""
        kept = self._cos2(_level_share(T))
        return _clipped(kept / kept[0], self.clip)

    def _cos2(self, u: Tensor) -> Tensor:
        return torch.cos((u + self.s) / (1 + self.s) * (math.pi / 2)) ** 2


@final
class Linear(Schedule):
    """Fade 1 - t/T; noise with linearly growing beta (DDPM, 2006.11239), rescaled so that every T ends alike."""

    def __init__(self, *, beta_start: Number = 1e-4, beta_end: Number = 0.02, clip: Number = 0.999):
        self.beta_start, self.beta_end, self.clip = beta_start, beta_end, clip

    def fade(self, T: int) -> Levels:
        return 1 - _level_share(T)

    def alpha_bar(self, T: int) -> Levels:
        """beta = (1000/T) linspace(beta_start, beta_end, T); T = 1 takes beta_end."""
        beta = torch.linspace(self.beta_end, self.beta_start, check_levels(T), dtype=torch.float64).flip(0)
        return _from_betas(1000 / T * beta, self.clip)


@final
class Sigmoid(Schedule):
    """A sigmoid from `start` to `end`, scaled to run from 1 to 0 (Jabri et al., 2212.11972)."""

    def __init__(self, *, start: Number = -3.0, end: Number = 3.0, tau: Number = 1.0, clip: Number = 0.999):
        _above_zero("schedule.tau", tau)
        self.start, self.end, self.tau, self.clip = start, end, tau, clip

    def fade(self, T: int) -> Levels:
        """(g(1) - g(u)) / (g(1) - g(0)), g(u) = sigmoid((start + u (end - start)) / tau), u = t/T."""
        g = torch.sigmoid((self.start + _level_share(T) * (self.end - self.start)) / self.tau)
        return (g[-1] - g) / (g[-1] - g[0])

    def alpha_bar(self, T: int) -> Levels:
        return _clipped(self.fade(T), self.clip)


@final
class Exponential(Schedule):
    """Power decays as exp(-rate t/T), a constant noise rate; the fade is its square root, brought to 0 at T."""

    def __init__(self, *, rate: Number = 10.0):
        _above_zero("schedule.rate", rate)
        self.rate = rate

    def fade(self, T: int) -> Levels:
        """(exp(-rate u / 2) - exp(-rate / 2)) / (1 - exp(-rate / 2)), u = t/T."""
        return to_zero(torch.exp(-self.rate / 2 * _level_share(T)))

    def alpha_bar(self, T: int) -> Levels:
        return torch.exp(-self.rate * _level_share(T))


@final
class Tangent(Schedule):
    """ln(abar / (1 - abar)) = -2 ln tan(a u + b), from `limit` at u = 0 to -limit at u = 1 (Hoogeboom and Salimans,
    2209.05557): a cosine without clipping."""

    def __init__(self, *, limit: Number = 10.0):
        _above_zero("schedule.limit", limit)
        self.limit = limit

    def fade(self, T: int) -> Levels:
        """alpha_bar, brought to 0 at T."""
        kept = self.alpha_bar(T)
        return (kept - kept[-1]) / (1 - kept[-1])

    def alpha_bar(self, T: int) -> Levels:
        """cos^2(a u + b), u = t/T; 1 at level 0."""
        first, last = (math.atan(math.exp(sign * self.limit / 2)) for sign in (-1, 1))
        kept = torch.cos(first + (last - first) * _level_share(T)) ** 2
        kept[0] = 1
        return kept


def log_sigma(T: int, *, sigma_min: Number, sigma_max: Number, repeat_last: bool) -> Levels:
    """Heat-equation blur of level t in pixels, (T+1,): 0, then log-spaced from sigma_min to sigma_max.

    Over T levels (Rissanen et al., 2206.13397), or with `repeat_last` over T-1, the last one repeated (VCD).
    T = 1 takes sigma_max. UserError unless 0 < sigma_min <= sigma_max.
    """
    steps = check_levels(T) - 1 if repeat_last else T
    if not 0 < sigma_min <= sigma_max:
        raise UserError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: need 0 < sigma_min <= sigma_max")
    rising = torch.linspace(math.log(sigma_max), math.log(sigma_min), max(steps, 1), dtype=torch.float64).exp().flip(0)
    sigma = torch.full((T + 1,), float(sigma_max), dtype=torch.float64)
    sigma[0], sigma[1 : len(rising)] = 0, rising[:-1]
    return sigma


def constant_sigma(T: int, *, value: Number) -> Levels:
    """Std in pixels of the kernel between levels t-1 and t, (T+1,): 0, then `value` (Bansal, MNIST)."""
    return _kernel_sigma(torch.full((check_levels(T),), float(value), dtype=torch.float64))


def linear_sigma(T: int, *, slope: Number, offset: Number) -> Levels:
    """As `constant_sigma`, with slope i + offset at i = t - 1 (Bansal, CIFAR-10)."""
    return _kernel_sigma(slope * torch.arange(check_levels(T), dtype=torch.float64) + offset)


def exponential_sigma(T: int, *, rate: Number) -> Levels:
    """As `constant_sigma`, with exp(rate i) at i = t - 1 (Bansal, CelebA and AFHQ)."""
    return _kernel_sigma(torch.exp(rate * torch.arange(check_levels(T), dtype=torch.float64)))


def _kernel_sigma(sigma: Tensor) -> Levels:
    _above_zero("kernel sigma", sigma.min().item())
    return torch.cat([torch.zeros(1, dtype=torch.float64), sigma])


def pixel_factors(T: int, *, size: int) -> Int[Tensor, " levels"]:
    """VCD's side in pixels of the blocks of level t, (T+1,): 1, then int(exp(linspace(ln 1.5, ln(size/2 + 5), T))).

    As published: level 1 has factor 1, which changes nothing, and the last is below `size`. That it is 18 and not 19
    for size 28, but 37 for 64, is the rounding of the authors' exp(ln 19) and exp(ln 37). Processors differ there, so
    exp is taken exactly, with the tolerance that gives their table.
    """
    ends = math.log(1.5), float(Decimal(size / 2 + 5).ln())
    logarithms = torch.linspace(*ends, check_levels(T), dtype=torch.float64).tolist()
    return torch.tensor([1, *(int(Decimal(x).exp() * (1 + Decimal("1.5e-16"))) for x in logarithms)])


def pixel_blocks(T: int, *, size: int) -> Int[Tensor, " levels"]:
    """Blocks per side of level t, (T+1,): `size`, then strictly fewer at every level, 1 at level T.

    ceil(size / factor) with `pixel_factors` made at least 2 and strictly increasing: 14, 10, 7, 5, 3, 1 for MNIST.
    UserError if T is more than size - 1, since there are no more levels.
    """
    published = pixel_factors(T, size=size)[1:].tolist()
    if size <= T:
        raise UserError(
            f"T={T}: {size}x{size} images can be pixelated to {size - 1} levels only; set T={size - 1} or less"
        )
    blocks, factor = [size], 1
    for t, next_factor in enumerate(published, start=1):
        factor = max(next_factor, factor + 1)
        blocks.append(max(min(math.ceil(size / factor), blocks[-1] - 1), T - t + 1))
    return torch.tensor([*blocks[:-1], 1])
