"""The U-Net that reads x_t, t, s and z: improved diffusion's (Nichol and Dhariwal 2021, arXiv:2102.09672)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vcd.errors import UserError
from vcd.networks.blocks import DownPath, LevelEmbedding, Stage, Up, coarsest, group_norm, silu, zero
from vcd.networks.injection import Injection


class UNet(nn.Module):
    """(x_t (B,C,H,W), t (B,), s (B,), z (B,d) or None, which is 0) -> (B,C,H,W); zero at the start of training.

    dim: width; mults: width of each resolution in units of dim; attention: the resolutions (0 the finest) that have
    it; blocks: residual blocks a resolution; film: see ResBlock; injection: where z enters, None for no latents;
    patch: side of the squares of pixels that are one position (in U-Nets: Hoogeboom et al. 2023, arXiv:2301.11093).
    """

    def __init__(
        self, *, size: int, channels: int, T: int, dim: int, mults: Sequence[int], attention: Sequence[int],
        blocks: int, dropout: float = 0.0, heads: int = 1, film: bool = True, injection: Injection | None = None,
        patch: int = 1,
    ):  # fmt: skip
        super().__init__()
        coarsest(size, mults, patch)
        self.size, self.channels, self.patch = size, channels, patch
        emb = 4 * dim
        self.t_embedding = LevelEmbedding(T=T, dim=dim, width=emb)
        self.s_embedding = LevelEmbedding(T=T, dim=dim, width=emb)

        def widths(path_emb: int) -> dict:
            return dict(emb=path_emb, dropout=dropout, film=film, heads=heads)

        maps = [dim * mults[0]]  # the widths DownPath will have; injection sizes its layers by them
        for level, mult in enumerate(mults):
            maps += [dim * mult] * (blocks + (level < len(mults) - 1))
        self.injection = injection
        if injection is not None:
            injection.bind(emb=emb, maps=maps, bottleneck=maps[-1])
            emb += injection.extra
        self.down = DownPath(
            c_in=channels, dim=dim, mults=mults, attention=attention, blocks=blocks, patch=patch, **widths(emb)
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
        for level, mult in reversed(list(enumerate(mults))):
            for _ in range(blocks + 1):
                c_out = dim * mult
                self.up.append(Stage(c_in=c + skips.pop(), c_out=c_out, attention=level in attention, **widths(emb)))
                c = c_out
            if level > 0:
                self.up.append(Up(c))
        self.norm, self.out = group_norm(c), zero(nn.Conv2d(c, channels * patch**2, 3, padding=1))

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], s: Int[Tensor, " b"], z: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b c h w"]:
        if x_t.shape[1] != self.channels:
            raise UserError(
                f"the network has {self.channels} channels, the images {x_t.shape[1]}; set dataset.channels"
            )
        inject = self.injection
        if inject and z is None:
            z = x_t.new_zeros(len(x_t), inject.latent)
        emb = self.t_embedding(t) + self.s_embedding(s)
        if inject:
            emb = inject.embed(emb, z)
        h, skips = x_t, []
        for i, layer in enumerate(self.down.layers):
            h = layer(h, emb) if isinstance(layer, Stage) else layer(h)
            if inject:
                h = inject.start(h, z) if i == 0 else h
                h = inject.map(i, h, z)
            skips.append(h)
        h = self.middle[0](h, emb)
        if inject:
            h = inject.bottleneck(h, z)
        h = self.middle[1](h, emb)
        for layer in self.up:
            h = layer(h, skips[-1].shape[2:]) if isinstance(layer, Up) else layer(torch.cat([h, skips.pop()], 1), emb)
        return F.pixel_shuffle(self.out(silu(self.norm(h))), self.patch).float()
