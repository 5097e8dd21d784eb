"""What every prior is: a distribution over the latents of all steps of an image."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vcd.levels import Levels
from vcd.randomness import PerImage


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of images along the model's own path; step t stands at index t - 1.

    z are the latents that the path was walked with, mean those of their posteriors, kl the KL to the prior in nats;
    noise is what the walk added to its states. Levels that the sampler does not visit hold zeros. image: numbers that
    tell the images apart, where one may come more than once; None: all of them differ. x_0 is where the walk ends.
    code: of the first guess that was refined, if one was.
    """

    x_T: Float[Tensor, "n c h w"]
    z: Float[Tensor, "T n d"]
    mean: Float[Tensor, "T n d"]
    kl: Float[Tensor, "T n"]
    noise: PerImage
    image: Int64[Tensor, " n"] | None = None
    x_0: Float[Tensor, "n c h w"] | None = None
    code: Float[Tensor, "n d2"] | None = None


class Prior(nn.Module, ABC):
    """A distribution over the latents of all T steps of an image.

    Examples:
        >>> from vcd.priors import Independent, Shared
        >>> from vcd.randomness import PerImage
        >>> z = Independent(latent=8).sample(6, PerImage(0, range(3)))
        >>> z.shape  # T steps, n images, d units
        torch.Size([6, 3, 8])
        >>> one = Shared(latent=8).sample(6, PerImage(0, range(3)))
        >>> torch.equal(one[0], one[5]), torch.equal(z[0], z[5])
        (True, False)
    """

    def __init__(self, *, latent: int):
        super().__init__()
        self.latent = latent

    @abstractmethod
    def sample(self, T: int, randomness: PerImage, temperature: float = 1.0) -> Float[Tensor, "T n d"]:
        """Latents of T steps for every image of `randomness`; z_t stands at index t - 1. temperature scales the spread."""

    def resample(
        self, z: Float[Tensor, "T n d"], levels: Sequence[int], randomness: PerImage
    ) -> Float[Tensor, "T n d"]:
        """z with the latents of `levels` drawn anew, given those of the others."""
        index, new = [t - 1 for t in levels], z.clone()
        new[index] = self.sample(len(z), randomness)[index]
        return new

    def fit(self, encoded: Iterable[Encoded]) -> None:
        """Fit, after training, to the latents of training images: an endless iterator of batches."""

    def kl(self, q: Normal, x_t: Float[Tensor, "b c h w"], t: Levels) -> Float[Tensor, " b"]:
        """KL(q || N(0, I)) in nats, summed over latent dimensions. A prior may look at the state x_t that q was asked at."""
        p = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean), validate_args=False)
        return kl_divergence(q, p).sum(1)
