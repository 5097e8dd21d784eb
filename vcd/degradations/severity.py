"""How severe each level is, measured on images."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.degradations.base import Degradation, Images
from vcd.randomness import PerImage


@dataclass(frozen=True)
class Severity:
    """Two curves over t = 0..T, both without units.

    distance: E||x_t - x0||^2 / E||x0 - mean image||^2: 0 is x0 itself, 1 as far away as the mean image.
    kept: the standard deviation of x_t across images with one common eps, relative to that of x0: the amplitude
        left of what tells images apart. It should fall in every degradation, also where the distance need not grow
        (noise that is faded out again).
    """

    distance: Float[Tensor, " levels"]
    kept: Float[Tensor, " levels"]


@torch.no_grad()
def measure(degradation: Degradation, x0: Images, randomness: PerImage | None = None) -> Severity:
    """Both curves on x0, at least two different images in [-1, 1]."""
    eps = degradation.draw(x0, randomness)
    common = None if eps is None else eps[:1].expand_as(eps)
    variance = _variance(x0)
    distance, kept = [], []
    for level in range(degradation.T + 1):
        t = torch.full((len(x0),), level, device=x0.device)
        x_t = degradation(x0, t, eps)
        distance.append((x_t - x0).double().square().mean() / variance)
        kept.append((_variance(x_t if eps is None else degradation(x0, t, common)) / variance).sqrt())
    return Severity(torch.stack(distance), torch.stack(kept))


def _variance(x: Images) -> Float[Tensor, ""]:
    """Over images, averaged over pixels."""
    return x.double().var(0, correction=0).mean()
