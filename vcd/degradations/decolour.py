"""Fading colours: colourisation is the way back."""

from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from vcd.degradations.base import Degradation, Eps, Images, exactly
from vcd.errors import UserError
from vcd.levels import Levels, per_image
from vcd.schedules import Number, check_levels

# linear sRGB to CIE XYZ relative to its white, D65 (IEC 61966-2-1)
_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_KNEE = 6 / 29  # of the cube root of CIE L*a*b*, below which it is straight


def kept_colour(T: int, ratio: Number | None) -> Float64[Tensor, " levels"]:
    """What is left of the colour, (T+1,): 1 - t/T, or ratio^t."""
    t = torch.arange(check_levels(T) + 1, dtype=torch.float64)
    if ratio is None:
        return 1 - t / T
    if not 0 < ratio < 1:
        raise UserError(f"degradation.ratio={ratio}: what a level leaves of the colour lies between 0 and 1")
    return ratio**t


def _coloured(channels: int, needed: int | None = None) -> None:
    if channels == 1 or channels != (needed or channels):
        raise UserError(
            f"degradation=decolour needs images with colour, and dataset.channels={channels}: take another data set"
        )


@final
class Decolour(Degradation):
    """x_t = k_t x0 + (1 - k_t) mean, the mean over channels with equal weights; k_t = 1 - t/T (Bansal et al., 2208.09392).

    ratio: k_t = ratio^t instead. A matrix on the channels for every level. UserError for grey images.
    """

    table: Tensor  # (T+1, C, C)

    def __init__(self, *, T: int, channels: int, ratio: Number | None = None):
        super().__init__(T=T)
        _coloured(channels)
        k = kept_colour(T, ratio)[:, None, None]
        self.register_buffer("table", (k * torch.eye(channels, dtype=torch.float64) + (1 - k) / channels).float())

    def forward(self, x0: Images, t: Levels, eps: Eps | None = None) -> Images:
        with exactly(x0.device):
            return (self.table[t] @ x0.to(self.table.dtype).flatten(2)).view(x0.shape)


@final
class DecolourLab(Degradation):
    """The a* and b* of CIE L*a*b* times k_t, as in `Decolour`; the lightness L* stays. UserError unless images are RGB.

    a* = 500 (f_x - f_y) and b* = 200 (f_y - f_z), so that f_x and f_z approach f_y.
    """

    kept: Tensor
    xyz: Tensor
    rgb: Tensor  # the inverse of xyz

    def __init__(self, *, T: int, channels: int, ratio: Number | None = None):
        super().__init__(T=T)
        _coloured(channels, 3)
        xyz = torch.tensor(_XYZ, dtype=torch.float64)
        xyz = xyz / xyz.sum(1, keepdim=True)
        self.register_buffer("kept", kept_colour(T, ratio).float())
        self.register_buffer("xyz", xyz.float())
        self.register_buffer("rgb", torch.linalg.inv(xyz).float())

    def forward(self, x0: Images, t: Levels, eps: Eps | None = None) -> Images:
        k, x0 = per_image(self.kept[t]), x0.to(self.kept.dtype)
        with exactly(x0.device):
            f = _root(self._mix(self.xyz, _linear((x0.clamp(-1, 1) + 1) / 2)))
            f = f[:, 1:2] + k * (f - f[:, 1:2])
            faded = 2 * _gamma(self._mix(self.rgb, _cube(f)).clamp(0, 1)) - 1
        return torch.where(k < 1, faded, x0)

    @staticmethod
    def _mix(matrix: Tensor, x: Images) -> Images:
        return (matrix @ x.flatten(2)).view(x.shape)


def _linear(c: Tensor) -> Tensor:
    """Light of sRGB values in [0, 1]."""
    return torch.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _gamma(c: Tensor) -> Tensor:
    """sRGB values of light."""
    return torch.where(c <= 0.0031308, 12.92 * c, 1.055 * c.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def _root(v: Tensor) -> Tensor:
    return torch.where(v > _KNEE**3, v.clamp(min=_KNEE**3) ** (1 / 3), v / (3 * _KNEE**2) + 4 / 29)


def _cube(f: Tensor) -> Tensor:
    return torch.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29))
