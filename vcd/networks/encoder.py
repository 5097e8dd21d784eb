"""The variational encoder q(z_t | x_t, x_s): the U-Net's way down, narrower, flattened to mean and variance."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from vcd.levels import Levels
from vcd.networks.blocks import DownPath, LevelEmbedding, coarsest


class Posterior(nn.Module, ABC):
    """q(z | x_t, x_s) over `latent` numbers; shape: what they are seen as, where they have a place in the image."""

    def __init__(self, *, latent: int, shape: tuple[int, ...] | None = None):
        super().__init__()
        self.latent, self.shape = latent, shape or (latent,)

    @abstractmethod
    def forward(self, x_t: Float[Tensor, "b c h w"], x_s: Float[Tensor, "b c h w"], t: Levels, s: Levels) -> Normal: ...


@final
class Encoder(Posterior):
    """(x_t (B,C,H,W), x_s (B,C,H,W), t (B,), s (B,)) -> Normal over (B, latent).

    dim: the U-Net's; width: the encoder's share of it. The log-variance is bounded smoothly to [-10, 10]; the Normal is
    float32 also under mixed precision.
    """

    def __init__(
        self, *, size: int, channels: int, T: int, dim: int = 16, mults: Sequence[int | float] = (1, 2),
        attention: Sequence[int] = (1,), blocks: int = 1, latent: int = 32, dropout: float = 0.0, heads: int = 1, film: bool = True, patch: int = 1,
        width: float = 0.5,
    ):  # fmt: skip
        super().__init__(latent=latent)
        side = coarsest(size, mults, patch)
        dim = int(dim * width)
        emb = 4 * dim
        self.t_embedding = LevelEmbedding(T=T, dim=dim, width=emb)
        self.s_embedding = LevelEmbedding(T=T, dim=dim, width=emb)
        self.down = DownPath(c_in=2 * channels, dim=dim, mults=mults, attention=attention, blocks=blocks, emb=emb,
                             dropout=dropout, film=film, heads=heads, patch=patch)  # fmt: skip
        self.head = nn.Linear(self.down.channels[-1] * side**2, 2 * latent)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        x_s: Float[Tensor, "b c h w"],
        t: Levels,
        s: Levels,
    ) -> Normal:
        emb = self.t_embedding(t) + self.s_embedding(s)
        h = self.down(torch.cat([x_t, x_s], dim=1), emb)[-1]
        mean, log_variance = self.head(h.flatten(1)).float().chunk(2, dim=1)
        std = torch.exp(5.0 * torch.tanh(log_variance / 10.0))
        return Normal(mean, std, validate_args=False)
