"""The variational encoder q(z_t | x_t, x_s): the U-Net's way down, narrower, flattened to mean and variance."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from vcd.errors import UserError
from vcd.levels import Levels
from vcd.networks.blocks import DownPath, LevelEmbedding, coarsest
from vcd.networks.cells import Cells


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


@final
class Spatial(Posterior):
    """The same for latents that have a place (`Cells`): the feature map of the way down that is nearest to the grid of
    cells, averaged to it, and one linear map to mean and variance for all cells.

    Cells that are not in use at level s have N(0, 1) exactly, and so no KL.
    """

    def __init__(
        self, *, size: int, channels: int, T: int, maps: int, grid: int, coarse: bool, latent: int, dim: int = 16,
        mults: Sequence[int | float] = (1, 2), attention: Sequence[int] = (1,), blocks: int = 1, dropout: float = 0.0,
        heads: int = 1, film: bool = True, patch: int = 1, width: float = 0.5,
    ):  # fmt: skip
        super().__init__(latent=latent, shape=(maps, grid, grid))
        self.cells = Cells(latent=latent, maps=maps, grid=grid, size=size, T=T, coarse=coarse)
        enough = [r for r in range(len(mults)) if coarsest(size, mults[: r + 1], patch) >= grid]
        if not enough:
            raise UserError(
                f"network.encoder.grid={grid} is finer than the encoder's finest features; lower it or network.unet.patch"
            )
        mults = mults[: enough[-1] + 1]
        dim = int(dim * width)
        emb = 4 * dim
        self.t_embedding = LevelEmbedding(T=T, dim=dim, width=emb)
        self.s_embedding = LevelEmbedding(T=T, dim=dim, width=emb)
        self.down = DownPath(c_in=2 * channels, dim=dim, mults=mults, attention=attention, blocks=blocks, emb=emb,
                             dropout=dropout, film=film, heads=heads, patch=patch)  # fmt: skip
        self.head = nn.Conv2d(self.down.channels[-1], 2 * maps, 1)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        x_s: Float[Tensor, "b c h w"],
        t: Levels,
        s: Levels,
    ) -> Normal:
        emb = self.t_embedding(t) + self.s_embedding(s)
        h = F.adaptive_avg_pool2d(self.down(torch.cat([x_t, x_s], dim=1), emb)[-1], self.shape[1])
        mean, log_variance = (self.cells.pool(part.flatten(1), s) for part in self.head(h).float().chunk(2, dim=1))
        std = torch.exp(5.0 * torch.tanh(log_variance / 10.0))
        return Normal(mean, std, validate_args=False)
