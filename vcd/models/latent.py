"""Diffusion in the latents of a trained autoencoder, hot and cold (Rombach et al. 2022, arXiv:2112.10752)."""

from collections.abc import Iterable
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vcd.models.stage1 import Frozen
from vcd.models.variational import Variational
from vcd.schedules import Number
from vcd.spaces import Space


@final
class Latent(Space):
    """x is the mean of q(z | image), every channel with mean 0 and standard deviation 1 over the training set.

    vae: with latents (channels, size, size); it is part of every checkpoint that is made in its space. weights: their
    fingerprint, by which runs are told apart. ckpt: where they come from, for whoever fills them in.
    """

    lossy = True
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        vae: Variational | None,
        zero: Number,
        size: int,
        channels: int,
        weights: str = "",
        ckpt: str | None = None,
    ):
        super().__init__(zero=zero, size=size, channels=channels)
        self.frozen, self.weights = Frozen(vae), weights
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def fit(self, images: Iterable[UInt8[Tensor, "_ c h w"]]) -> None:
        count, first, second = (
            0,
            torch.zeros_like(self.mean, dtype=torch.float64),
            torch.zeros_like(self.std, dtype=torch.float64),
        )
        for batch in images:
            z = self._latents(batch).double()
            count += z[:, 0].numel()
            first += z.sum((0, 2, 3), keepdim=True)[0]
            second += z.square().sum((0, 2, 3), keepdim=True)[0]
        self.mean.copy_(first / count)
        self.std.copy_((second / count - (first / count) ** 2).sqrt())

    def _latents(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return self.frozen.encode(images).mean.unflatten(1, self.shape)

    def encode(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return (self._latents(images) - self.mean) / self.std

    def decode(self, x: Float[Tensor, "n c2 h2 w2"]) -> UInt8[Tensor, "n c h w"]:
        return self.frozen.decode((x.float() * self.std + self.mean).flatten(1))

    def clip(self, x0: Float[Tensor, "n c2 h2 w2"]) -> Float[Tensor, "n c2 h2 w2"]:
        return x0  # latents have no edge
