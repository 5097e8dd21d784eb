"""The U-Net that reads x_t, t, s and z: improved diffusion's (Nichol and Dhariwal 2021, arXiv:2102.09672)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vcd.batch import UNCONDITIONAL, UNTOLD, Condition
from vcd.degradations.base import exactly
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.networks.blocks import DownPath, LevelEmbedding, Stage, Up, coarsest, group_norm, silu, zero
from vcd.networks.injection import Injection, Widths


class UNet(nn.Module):
    """(x_t (B,C,H,W), t (B,), s (B,), condition) -> (B,C,H,W); zero at the start of training.

    dim: width; mults: width of each resolution in units of dim; attention: the resolutions (0 the finest) that have
    it; blocks: residual blocks per resolution; film: see ResBlock; patch: side of the squares of pixels that are one
    position (in U-Nets: Hoogeboom et al. 2023, arXiv:2301.11093).

    Of the condition it reads what it is built for, and takes nothing given as zero: z by `injection`, a function of the
    widths that makes one; the label of one of `classes`, embedded and added to the levels; an image of `context`
    channels, concatenated to x_t. shift: the image is added to x_t as well, for a state that is centred at it (form 2 of
    DiffuseVAE, Pandey et al. 2022, arXiv:2201.00308).

    self_conditioning: it also reads xhat_0 of the step before (Chen et al. 2022, arXiv:2208.04202).

    fourier: the exponents n of features sin, cos(2 pi 2^n x_t), concatenated to x_t; residual: x_t is added to the
    output, for networks that predict noise (both: Kingma et al. 2021, arXiv:2107.00630, appendix B and C). outputs: how
    many values there are for each of x_t; with 2, the output has the shape (B,2C,H,W).
    """

    def __init__(
        self, *, size: int, channels: int, T: int, dim: int = 16, mults: Sequence[int | float] = (1, 2),
        attention: Sequence[int] = (1,), blocks: int = 1, dropout: float = 0.0, heads: int = 1, film: bool = True, patch: int = 1,
        injection: Callable[[Widths], Injection] | None = None, classes: int | None = None, context: int = 0,
        shift: bool = False, fourier: Sequence[int] = (), residual: bool = False, outputs: int = 1,
        self_conditioning: bool = False,
    ):  # fmt: skip
        super().__init__()
        coarsest(size, mults, patch)
        if odd := [r for r in attention if not 0 <= r < len(mults)]:
            raise UserError(
                f"network.unet.attention={list(attention)}: there is no resolution {odd[0]}; 0 to {len(mults) - 1} exist"
            )
        self.size, self.channels, self.context, self.patch, self.classes = size, channels, context, patch, classes
        self.fourier, self.residual, self.outputs, self.shift = list(fourier), residual, outputs, shift
        self.self_conditioning = self_conditioning
        if shift and context != channels:
            raise UserError(
                f"network.unet.shift=true adds the image to x_t: network.unet.context={context} must be {channels}"
            )
        emb = 4 * dim
        self.t_embedding = LevelEmbedding(T=T, dim=dim, width=emb)
        self.s_embedding = LevelEmbedding(T=T, dim=dim, width=emb)

        def widths(path_emb: int) -> dict[str, Any]:
            return dict(emb=path_emb, dropout=dropout, film=film, heads=heads)

        self.injection = None if injection is None else injection(Widths(emb, down_widths(dim, mults, blocks)))
        if self.injection is not None:
            emb += self.injection.extra
        self.down = DownPath(
            c_in=channels * (1 + 2 * len(self.fourier) + self_conditioning) + context,
            dim=dim,
            mults=mults,
            attention=attention,
            blocks=blocks,
            patch=patch,
            **widths(emb),
        )
        c = self.down.channels[-1]
        self.middle = nn.ModuleList(
            [
                Stage(c_in=c, c_out=c, attention=True, **widths(emb)),
                Stage(c_in=c, c_out=c, attention=False, **widths(emb)),
            ]
        )
        self.up = nn.ModuleList()
        skips = list(self.down.channels)
        for resolution, mult in reversed(list(enumerate(mults))):
            for _ in range(blocks + 1):
                c_out = int(dim * mult)
                self.up.append(
                    Stage(c_in=c + skips.pop(), c_out=c_out, attention=resolution in attention, **widths(emb))
                )
                c = c_out
            if resolution > 0:
                self.up.append(Up(c))
        self.norm, self.out = group_norm(c), zero(nn.Conv2d(c, outputs * channels * patch**2, 3, padding=1))

        if classes is not None:
            self.label_embedding = zero(nn.Embedding(classes, 4 * dim))

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Levels, s: Levels, condition: Condition = UNCONDITIONAL
    ) -> Float[Tensor, "b c2 h w"]:
        if x_t.shape[1] != self.channels:
            raise UserError(
                f"the network has {self.channels} channels, the images {x_t.shape[1]}; set dataset.channels"
            )
        inject, z = self.injection, condition.z
        if z is None:
            z = x_t.new_zeros(len(x_t), 0 if inject is None else inject.latent)
        emb = self.t_embedding(t) + self.s_embedding(s)
        if self.classes is not None and condition.label is not None:
            told = condition.label != UNTOLD
            emb = emb + told[:, None] * self.label_embedding(condition.label.where(told, 0))
        if inject is not None:
            z = inject.at(z, s)
            emb = inject.embed(emb, z)
        image = condition.image
        h, skips = self._read(x_t + image if self.shift and image is not None else x_t, image, condition.x0hat), []
        for i, layer in enumerate(self.down.layers):
            h = layer(h, emb) if isinstance(layer, Stage) else layer(h)
            if inject is not None:
                h = inject.map(i, inject.input(h, z) if i == 0 else h, z)
            skips.append(h)
        h = self.middle[0](h, emb)
        if inject is not None:
            h = inject.bottleneck(h, z)
        h = self.middle[1](h, emb)
        for layer in self.up:
            h = layer(h, skips[-1].shape[2:]) if isinstance(layer, Up) else layer(torch.cat([h, skips.pop()], 1), emb)
        out = F.pixel_shuffle(self.out(silu(self.norm(h))), self.patch).float()
        return x_t + out if self.residual else out

    def _read(
        self,
        x_t: Float[Tensor, "b c h w"],
        image: Float[Tensor, "b c2 h w"] | None,
        x0hat: Float[Tensor, "b c h w"] | None,
    ) -> Float[Tensor, "b c3 h w"]:
        """x_t, its Fourier features, in float32 since their phases are large, and the images of the condition."""
        parts = [x_t]
        with exactly(x_t.device):
            for n in self.fourier:
                phase = 2 * math.pi * 2**n * x_t.float()
                parts += [phase.sin(), phase.cos()]
        if self.context:
            image = x_t.new_zeros(len(x_t), self.context, *x_t.shape[2:]) if image is None else image
            if image.shape[1] != self.context:
                raise UserError(
                    f"the network reads an image of {self.context} channels, not {image.shape[1]}; set network.unet.context"
                )
            parts.append(image)
        if self.self_conditioning:
            parts.append(torch.zeros_like(x_t) if x0hat is None else x0hat)
        return torch.cat(parts, 1) if len(parts) > 1 else x_t


def down_widths(dim: int, mults: Sequence[int | float], blocks: int) -> list[int]:
    """The channels of every feature map of `DownPath`."""
    widths = [int(dim * mults[0])]
    for resolution, mult in enumerate(mults):
        widths += [int(dim * mult)] * (blocks + (resolution < len(mults) - 1))
    return widths
