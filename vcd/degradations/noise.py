"""Gaussian noise."""

from typing import final

import torch
from torch import Tensor

from vcd.degradations.base import Degradation, Images, Levels
from vcd.schedules import Schedule


@final
class Noise(Degradation):
    """sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, eps standard normal (DDPM, 2006.11239, eq. 4)."""

    stochastic = True
    alpha_bar: Tensor  # (T+1,), and the two factors of the formula
    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor

    def __init__(self, *, T: int, schedule: Schedule):
        super().__init__(T=T)
        alpha_bar = schedule.alpha_bar(T)
        self.register_buffer("alpha_bar", alpha_bar.float())
        self.register_buffer("sqrt_alpha_bar", alpha_bar.sqrt().float())
        self.register_buffer("sqrt_one_minus_alpha_bar", (1 - alpha_bar).sqrt().float())

    def forward(self, x0: Images, t: Levels, eps: Images | None = None) -> Images:
        """x_t in float32. ValueError without eps."""
        if eps is None:
            raise ValueError("noise needs its eps: pass eps=degradation.draw(x0)")
        signal, noise = self.sqrt_alpha_bar[t], self.sqrt_one_minus_alpha_bar[t]
        return _per_image(signal) * x0.to(signal.dtype) + _per_image(noise) * eps.to(noise.dtype)

    def draw(self, x0: Images, generator: torch.Generator | None = None) -> Images:
        """Standard normal like x0, drawn on the generator's device."""
        device = x0.device if generator is None else generator.device
        dtype = self.sqrt_alpha_bar.dtype
        return torch.randn(x0.shape, generator=generator, device=device, dtype=dtype).to(x0.device)

    def infer(self, x_t: Images, x0: Images, t: Levels) -> Images:
        """(x_t - sqrt(abar_t) x0) / sqrt(1 - abar_t); 0 at level 0, which holds no noise."""
        signal, noise = _per_image(self.sqrt_alpha_bar[t]), _per_image(self.sqrt_one_minus_alpha_bar[t])
        left = x_t.to(signal.dtype) - signal * x0.to(signal.dtype)
        return torch.where(noise > 0, left / noise.clamp(min=torch.finfo(noise.dtype).tiny), 0)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
