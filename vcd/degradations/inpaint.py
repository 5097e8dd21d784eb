"""Inpainting: a hole that grows."""

from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from vcd.degradations.base import Degradation, Eps, Images
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.randomness import PerImage
from vcd.schedules import Number, check_levels


@final
class Inpaint(Degradation):
    """x_t = m_t x0 + (1 - m_t) fill, m_t = prod_{i<t} (1 - G_i), G_i a Gaussian of height 1 (Bansal et al., 2208.09392).

    Its std grows evenly from `first` to `last` pixels. centre: "random", a pixel for every image of its own, or "fixed", the middle of
    the image. fill: what the hole shows, a grey value (0 is mid grey), or "random", a flat colour for every image, each
    channel uniform on [-1/2, 1/2]. closes: m_t is stretched to reach 0 everywhere at level T, so that generation can
    start there; otherwise the border survives, which is for restoration.
    eps: (b, 1, 1, 2) the centre's row and column, or (b, c, 1, 1) the colour. At most one of them is random.
    """

    table: Tensor  # m, (T+1, N, N), by the distance from the centre in rows and columns

    def __init__(
        self, *, T: int, size: int, first: Number, last: Number, centre: str, fill: Number | str, closes: bool
    ):  # fmt: skip
        if centre not in ("random", "fixed"):
            raise UserError(f"degradation.centre={centre}: choose random or fixed")
        if isinstance(fill, str) and fill != "random":
            raise UserError(f"degradation.fill={fill}: give a grey value in [-1, 1], or random")
        if centre == fill == "random":
            raise UserError(
                "degradation.centre and degradation.fill cannot both be random: an image would not tell them apart"
            )
        if not 0 < first <= last:
            raise UserError(
                f"degradation.first={first}, degradation.last={last}: need 0 < first <= last, for the hole grows"
            )
        super().__init__(T=T)
        self.size, self.centre, self.fill = size, centre, fill
        self.stochastic = "random" in (centre, fill)
        self.offset = 0.0 if centre == "random" or size % 2 else 0.5  # of the nearest pixel from the centre
        self.register_buffer("table", hole_table(T, size, first, last, self.offset, closes).float())

    def forward(self, x0: Images, t: Levels, eps: Eps | None = None) -> Images:
        """x_t in float32. ValueError without eps where something is random; UserError for images of another size."""
        if x0.shape[-2:] != (self.size, self.size):
            h, w = x0.shape[-2:]
            raise UserError(
                f"the degradation was built for {self.size}x{self.size} images but got {h}x{w}; check dataset.size"
            )
        if self.stochastic and eps is None:
            raise ValueError("this degradation needs its eps: pass eps=degradation.draw(x0)")
        m = self.mask(t, eps)
        return m * x0.to(m.dtype) + (1 - m) * self._filling(eps)

    def mask(self, t: Levels, eps: Eps | None) -> Images:
        """m_t, (b, 1, N, N)."""
        pixel = torch.arange(self.size, device=t.device)
        if self.centre == "random":
            assert eps is not None
            i, j = ((pixel - eps[:, 0, 0, k, None]).abs().round().long() for k in (0, 1))
        else:
            i = j = (pixel - (self.size - 1) / 2).abs().long().expand(len(t), -1)
        return self.table[t[:, None, None], i[:, :, None], j[:, None, :]][:, None]

    def _filling(self, eps: Eps | None) -> Tensor | Number:
        if isinstance(self.fill, str):
            assert eps is not None
            return eps.to(self.table.dtype)
        return self.fill

    def draw(self, x0: Images, randomness: PerImage | None = None) -> Eps | None:
        """The centre, or the colour."""
        if not self.stochastic:
            return None
        n = 2 if self.centre == "random" else x0.shape[1]
        draws = [
            torch.rand(len(x0), device=x0.device) if randomness is None else randomness.uniform() for _ in range(n)
        ]
        u = torch.stack(draws, 1).to(x0.device)
        if self.centre == "fixed":
            return u[:, :, None, None] - 0.5
        return (u * self.size).floor().clamp(max=self.size - 1)[:, None, None]

    def infer(self, x_t: Images, x0: Images, t: Levels) -> Eps | None:
        """The centre or the colour that leads closest from x0 to x_t, by least squares over all of them."""
        if not self.stochastic:
            return None
        y, x = x_t.double(), x0.double()
        if self.centre == "fixed":
            free = 1 - self.mask(t, None).double()
            share = free.square().sum((2, 3)).clamp(min=1e-12)
            return ((free * (y - (1 - free) * x)).sum((2, 3)) / share)[:, :, None, None].to(self.table.dtype)
        assert not isinstance(self.fill, str)  # it is the centre that is random
        y, x = y - self.fill, x - self.fill
        m = self.table[
            t
        ].double()  # |y - m x|^2 = |y|^2 - 2 <m, x y> + <m^2, x^2>, for the masks of all centres at once
        misfit = _correlate(m.square(), x.square().sum(1)) - 2 * _correlate(m, (x * y).sum(1))
        best = misfit.flatten(1).argmin(1)
        return torch.stack([best // self.size, best % self.size], 1)[:, None, None].to(self.table.dtype)


def hole_table(
    T: int, size: int, first: Number, last: Number, offset: float, closes: bool
) -> Float64[Tensor, "levels n n"]:
    """m_t of a pixel k + offset rows and l + offset columns from the centre, at [t, k, l]; float64."""
    d = torch.arange(size, dtype=torch.float64) + offset
    r = d[:, None] ** 2 + d**2 - 2 * offset**2  # so that the nearest pixel has r = 0 and is lost at once
    std = torch.linspace(first, last, check_levels(T), dtype=torch.float64)[:, None, None]
    lost = -torch.expm1(torch.cumsum(torch.log1p(-torch.exp(-r / (2 * std**2))), 0))  # 1 - m_t, however small
    if closes:
        lost = lost / lost[-1].clamp(min=torch.finfo(lost.dtype).tiny)
        lost[-1] = 1
    return torch.cat([torch.ones(1, size, size, dtype=torch.float64), 1 - lost])


def _correlate(mask: Float64[Tensor, "b n n"], values: Float64[Tensor, "b n n"]) -> Float64[Tensor, "b n n"]:
    """sum over pixels of mask(|pixel - centre|) values(pixel), for every centre; by FFT, the mask mirrored at 0."""
    n = mask.shape[-1]
    distance = torch.arange(2 * n, device=mask.device)
    distance = torch.minimum(distance, 2 * n - distance).clamp(max=n - 1)
    kernel = torch.fft.rfft2(mask[:, distance[:, None], distance])
    return torch.fft.irfft2(kernel * torch.fft.rfft2(values, s=(2 * n, 2 * n)), s=(2 * n, 2 * n))[:, :n, :n]
