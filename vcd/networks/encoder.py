"""The variational encoder q(z_t | x_t, x_s): the U-Net's way down, narrower, and a head for mean and variance."""

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


class Convolutional(Posterior, ABC):
    """From the last feature map of a way down like the U-Net's.

    dim: the U-Net's; width: the encoder's share of it. The log-variance is bounded smoothly to [-10, 10]; the Normal is
    float32 also under mixed precision. self_conditioning: it also reads xhat_0 of the step before, as the U-Net does.
    """

    def __init__(
        self, *, latent: int, shape: tuple[int, ...] | None = None, channels: int, T: int, dim: int,
        mults: Sequence[int | float], attention: Sequence[int], blocks: int, dropout: float, heads: int, film: bool,
        patch: int, width: float, self_conditioning: bool,
    ):  # fmt: skip
        super().__init__(latent=latent, shape=shape)
        self.self_conditioning = self_conditioning
        dim = int(dim * width)
        emb = 4 * dim
        self.t_embedding = LevelEmbedding(T=T, dim=dim, width=emb)
        self.s_embedding = LevelEmbedding(T=T, dim=dim, width=emb)
        self.down = DownPath(c_in=(2 + self_conditioning) * channels, dim=dim, mults=mults, attention=attention,
                             blocks=blocks, emb=emb, dropout=dropout, film=film, heads=heads, patch=patch)  # fmt: skip

    @abstractmethod
    def read(self, h: Float[Tensor, "b c h w"], s: Levels) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Mean and log-variance, before it is bounded, of features."""

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        x_s: Float[Tensor, "b c h w"],
        t: Levels,
        s: Levels,
        x0hat: Float[Tensor, "b c h w"] | None = None,
    ) -> Normal:
        emb = self.t_embedding(t) + self.s_embedding(s)
        seen = [torch.zeros_like(x_t) if x0hat is None else x0hat] if self.self_conditioning else []
        mean, log_variance = self.read(self.down(torch.cat([x_t, x_s, *seen], dim=1), emb)[-1], s)
        std = torch.exp(5.0 * torch.tanh(log_variance / 10.0))
        return Normal(mean, std, validate_args=False)


@final
class Encoder(Convolutional):
    """(x_t (B,C,H,W), x_s (B,C,H,W), t (B,), s (B,)) -> Normal over (B, latent), a linear map of all features."""

    def __init__(
        self, *, size: int, channels: int, T: int, dim: int = 16, mults: Sequence[int | float] = (1, 2),
        attention: Sequence[int] = (1,), blocks: int = 1, latent: int = 32, dropout: float = 0.0, heads: int = 1, film: bool = True, patch: int = 1,
        width: float = 0.5, self_conditioning: bool = False,
    ):  # fmt: skip
        side = coarsest(size, mults, patch)
        super().__init__(latent=latent, channels=channels, T=T, dim=dim, mults=mults, attention=attention, blocks=blocks,
                         dropout=dropout, heads=heads, film=film, patch=patch, width=width,
                         self_conditioning=self_conditioning)  # fmt: skip
        self.head = nn.Linear(self.down.channels[-1] * side**2, 2 * latent)

    def read(self, h: Float[Tensor, "b c h w"], s: Levels) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        mean, log_variance = self.head(h.flatten(1)).float().chunk(2, dim=1)
        return mean, log_variance


@final
class Spatial(Convolutional):
    """The same over (B, maps * grid^2) numbers that have a place (`Cells`): one linear map for all cells.

    The way down ends with the coarsest features that are not coarser than the grid of cells, averaged to it. Cells that
    are not in use at level s have N(0, 1) exactly, and so no KL.
    """

    def __init__(
        self, *, size: int, channels: int, T: int, maps: int, grid: int, coarse: bool, latent: int, dim: int = 16,
        mults: Sequence[int | float] = (1, 2), attention: Sequence[int] = (1,), blocks: int = 1, dropout: float = 0.0,
        heads: int = 1, film: bool = True, patch: int = 1, width: float = 0.5, self_conditioning: bool = False,
    ):  # fmt: skip
        cells = Cells(latent=latent, maps=maps, grid=grid, size=size, T=T, coarse=coarse)
        kept = [mults[: r + 1] for r in range(len(mults)) if coarsest(size, mults[: r + 1], patch) >= grid]
        if not kept:
            raise UserError(
                f"network.encoder.grid={grid} is finer than the encoder's finest features; lower it or network.unet.patch"
            )
        super().__init__(latent=latent, shape=cells.shape, channels=channels, T=T, dim=dim, mults=kept[-1],
                         attention=attention, blocks=blocks, dropout=dropout, heads=heads, film=film, patch=patch,
                         width=width, self_conditioning=self_conditioning)  # fmt: skip
        self.cells = cells
        self.head = nn.Conv2d(self.down.channels[-1], 2 * maps, 1)

    def read(self, h: Float[Tensor, "b c h w"], s: Levels) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        h = F.adaptive_avg_pool2d(h, self.shape[1])
        mean, log_variance = self.head(h).float().chunk(2, dim=1)
        return self.cells.pool(mean.flatten(1), s), self.cells.pool(log_variance.flatten(1), s)
