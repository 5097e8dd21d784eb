"""Soft diffusion: a blur that grows under a little noise."""

from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from vcd.degradations.gaussian import DCT, GaussianDegradation, heat
from vcd.errors import UserError
from vcd.schedules import Number, check_levels

SPREAD = 0.5  # standard deviation of photographs in [-1, 1]
TRIED = 256  # widths of blur between which levels are interpolated


@final
class Soft(GaussianDegradation):
    """x_t = C_t x0 + noise_t eps, C_t a Gaussian blur with reflecting borders (Daras et al. 2022, arXiv:2209.05442).

    noise_t grows geometrically from noise_min to noise_max over the share `rise` of the levels and stays there. The blur
    grows to `blur` pixels in steps of equal distance between the distributions of neighbouring levels; Daras et al.
    measure it on their data, here it is that of Gaussian images with the spectrum of photographs, see `equal_steps`.
    blur = 0 is `degradation=noise schedule=ve`, None the side of the image. UserError for a negative blur or noise that does not grow.
    """

    def __init__(
        self, *, T: int, size: int, noise_min: Number, noise_max: Number, rise: Number, blur: Number | None = None
    ):  # fmt: skip
        blur = size if blur is None else blur
        if not 0 < noise_min <= noise_max or not 0 < rise <= 1 or blur < 0:
            raise UserError(
                f"degradation.noise_min={noise_min}, noise_max={noise_max}, rise={rise}, blur={blur}: need "
                "0 < noise_min <= noise_max, 0 < rise <= 1, and blur not negative"
            )
        u = (torch.arange(1, check_levels(T) + 1, dtype=torch.float64) / T / rise).clamp(max=1)
        noise = torch.cat([torch.zeros(1, dtype=torch.float64), noise_min * (noise_max / noise_min) ** u])
        super().__init__(signal=heat(equal_steps(T, size, noise_max, blur), size), noise=noise, basis=DCT(size=size))


def equal_steps(T: int, size: int, noise: Number, blur: Number) -> Float64[Tensor, " levels"]:
    """Stds of blur in pixels, (T+1,), from 0 to `blur`, each as far in distribution from the last as the next.

    The Fréchet distance between Gaussian images whose waves have variances SPREAD^2 / |f|^2 (normalised; the mean does
    not change) after blur and noise: the distance between the vectors of their standard deviations.
    """
    sigma = torch.cat([torch.zeros(1), torch.logspace(-2, 0, TRIED)]).double() * blur
    f = torch.arange(size, dtype=torch.float64)
    power = 1 / (f[:, None] ** 2 + f**2).clamp(min=1)
    power[0, 0] = 0
    power *= SPREAD**2 * size**2 / power.sum().clamp(min=1e-12)
    std = (heat(sigma, size) ** 2 * power + noise**2).sqrt().flatten(1)
    way = torch.cat([torch.zeros(1), (std[1:] - std[:-1]).norm(dim=1).cumsum(0)])
    wanted = torch.linspace(0, float(way[-1]), T + 1, dtype=torch.float64)
    above = torch.searchsorted(way, wanted).clamp(1, TRIED)
    share = (wanted - way[above - 1]) / (way[above] - way[above - 1]).clamp(min=1e-12)
    found = torch.lerp(sigma[above - 1], sigma[above], share.clamp(0, 1))
    found[0], found[-1] = 0, blur
    return found
