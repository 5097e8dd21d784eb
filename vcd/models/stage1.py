"""Stage 1 of DiffuseVAE: a trained VAE, frozen, makes the first guess that any model here can refine."""

from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.distributions import Normal

from vcd.batch import Condition
from vcd.errors import UserError
from vcd.guess import Code, Guess
from vcd.models.variational import Variational
from vcd.randomness import PerImage
from vcd.spaces import Space


class Frozen(nn.Module):
    """A Variational with one level, black, as what it is: q(z | x) and x(z). No dropout, no gradient, no update.

    Images go in and out as bytes, so that any space can talk to it.
    """

    def __init__(self, vae: Variational | None):
        super().__init__()
        if vae is None:
            raise UserError("guess=vae and space=autoencoder hold a trained model: python -m vcd.train puts it there, from "
                            "stage1=... or space.ckpt=...")  # fmt: skip
        if vae.degradation.T != 1:
            raise UserError(
                f"stage 1 has one level, and this one has T={vae.degradation.T}: take a checkpoint of experiment=vae_... "
                "or model=autoencoder"
            )
        self.vae = vae.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Frozen":
        self.training = mode
        return self  # the VAE stays in evaluation mode

    @property
    def latent(self) -> int:
        return self.vae.encoder.latent

    def black(self, n: int) -> Float[Tensor, "n c h w"]:
        """x_1, whatever the image."""
        x = torch.zeros(n, *self.vae.start.shape, device=self.vae.device)
        return self.vae.degradation(x, torch.ones(n, dtype=torch.long, device=x.device))

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "n c h w"]) -> Normal:
        """q(z | x)."""
        one = torch.ones(len(images), dtype=torch.long, device=images.device)
        return self.vae.encode(self.black(len(images)), self.vae.space.encode(images), one, one - 1)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "n d"]) -> UInt8[Tensor, "n c h w"]:
        """x(z)."""
        one = torch.ones(len(z), dtype=torch.long, device=z.device)
        return self.vae.space.decode(self.vae.restore(self.black(len(z)), one, one - 1, Condition(z=z)).float())


@final
class VAE(Guess):
    """DiffuseVAE (Pandey et al. 2022, arXiv:2201.00308): a VAE guesses, and a diffusion model refines.

    Training                                          Sampling
      z ~ q(z | x_0);  xhat = decode(z)                   z ~ prior;  xhat = decode(z)
      (xhat, z) = 0 with probability drop                 x_T ~ start, or D(xhat, level)
      descend the refiner's own loss,                     for t = T..1: the refiner's own step,
        its network told of xhat [and z]                    its network told of xhat [and z]

    Form 1 is this. Form 2 has x_t + xhat in the place of x_t for t > 0: its noise is around xhat. What differs is what
    the network reads, which is `network.unet.shift`.

    vae: with one level; it is part of the refiner's checkpoint. weights: their fingerprint, by which runs are told apart.
    The other arguments are those of `Guess`.
    """

    def __init__(self, *, vae: Variational | None, weights: str = "", **settings: Any):
        super().__init__(**settings)
        self.weights = weights
        self.frozen = Frozen(vae)

    def draw(self, randomness: PerImage, temperature: float = 1.0) -> Code:
        return self.frozen.vae.prior.sample(1, randomness, temperature)[0]

    def encode(self, x0: Float[Tensor, "n c h w"], space: Space, randomness: PerImage | None = None) -> Code:
        q = self.frozen.encode(space.decode(x0))
        eps = torch.randn_like(q.mean) if randomness is None else randomness.normal(*q.mean.shape[1:])
        return q.mean + q.stddev * eps

    def decode(self, z: Code, space: Space) -> Float[Tensor, "n c h w"]:
        return space.encode(self.frozen.decode(z))
