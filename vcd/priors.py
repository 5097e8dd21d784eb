"""Where z_t comes from when nothing is encoded."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vcd.randomness import PerImage


class Prior(nn.Module, ABC):
    """A distribution over the latents of all T steps of an image."""

    def __init__(self, *, latent: int):
        super().__init__()
        self.latent = latent

    @abstractmethod
    def sample(self, T: int, randomness: PerImage) -> Float[Tensor, "T n d"]:
        """Latents of T steps for every image of `randomness`; z_t stands at index t - 1."""

    def kl(self, q: Normal) -> Float[Tensor, " b"]:
        """KL(q || N(0, I)) in nats, summed over latent dimensions."""
        p = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean), validate_args=False)
        return kl_divergence(q, p).sum(1)


class Independent(Prior):
    """A z of its own for every step, as in training."""

    def sample(self, T: int, randomness: PerImage) -> Float[Tensor, "T n d"]:
        return randomness.normal(T, self.latent).transpose(0, 1)


class Shared(Prior):
    """One z for all steps, as published for VCD and VWD."""

    def sample(self, T: int, randomness: PerImage) -> Float[Tensor, "T n d"]:
        return randomness.normal(self.latent).expand(T, -1, -1)
