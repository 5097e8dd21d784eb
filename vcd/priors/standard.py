"""Priors that need no fit: standard normal latents."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from vcd.priors.base import Prior
from vcd.randomness import PerImage


@final
class Independent(Prior):
    """A z of its own for every step, as in training."""

    def sample(self, T: int, randomness: PerImage, temperature: float = 1.0) -> Float[Tensor, "T n d"]:
        return temperature * randomness.normal(T, self.latent).transpose(0, 1)


@final
class Shared(Prior):
    """One z for all steps, as published for VCD and VWD; what is resampled gets a z of its own."""

    def sample(self, T: int, randomness: PerImage, temperature: float = 1.0) -> Float[Tensor, "T n d"]:
        return temperature * randomness.normal(self.latent).expand(T, -1, -1)
