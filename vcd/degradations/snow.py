"""Falling snow."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vcd.degradations.base import Degradation, Eps, Images
from vcd.errors import UserError
from vcd.levels import Levels, per_image
from vcd.randomness import PerImage


@dataclass(frozen=True)
class Strength:
    """How hard it snows; pairs are the values at levels 1 and T."""

    mean: float  # of the field of flakes
    std: float
    zoom: float  # how much larger flakes are than pixels
    kernel: int  # pixels that a flake may fall
    threshold: tuple[float, float]  # below it there is no flake
    fall: tuple[float, float]  # std in pixels of the motion blur
    clear: tuple[float, float]  # share of the image that is not brightened


STRENGTHS = {  # Bansal et al. 2022
    1: Strength(0.1, 0.3, 3.0, 5, (0.7, 0.3), (0.5, 5.0), (0.95, 0.7)),
    2: Strength(0.55, 0.3, 2.5, 11, (1.15, 0.7), (0.05, 12.0), (0.95, 0.55)),
    3: Strength(0.55, 0.3, 2.5, 11, (1.15, 0.7), (0.05, 16.0), (0.95, 0.4)),
    4: Strength(0.55, 0.3, 2.5, 11, (1.15, 0.55), (0.05, 20.0), (0.95, 0.3)),
}


@final
class Snow(Degradation):
    """clip(b_t x + (1 - b_t) max(x, 1.5 grey(x) + .5) + s_t + rot180(s_t)) for x in [0, 1] (Bansal et al. 2022, 2208.09392).

    s_t: a field of normal values at the scale of a flake, of which level t keeps what is above its threshold, blurred
    along the way down or across. brighten: false drops the second term, b_t = 1. grey: the channel mean.
    eps: (b, 2, h, w), the field, and in the second channel 1 where snow falls down, 0 where it blows across.
    Not linear, and what has been clipped does not tell its flakes: `infer` cannot read them.
    """

    stochastic = True
    readable = False
    threshold: Tensor
    taps: Tensor  # of the motion blur, (T+1, kernel)
    clear: Tensor

    def __init__(self, *, T: int, strength: int, brighten: bool = True):
        if strength not in STRENGTHS:
            raise UserError(f"degradation.strength={strength}: choose from {', '.join(map(str, STRENGTHS))}")
        super().__init__(T=T)
        self.flakes = STRENGTHS[strength]
        threshold, fall, clear = (
            torch.cat([torch.tensor(ends[:1]), torch.linspace(*ends, T)]).double()
            for ends in (self.flakes.threshold, self.flakes.fall, self.flakes.clear)
        )
        offset = torch.arange(self.flakes.kernel, dtype=torch.float64) - self.flakes.kernel // 2
        self.register_buffer("threshold", threshold.float())
        self.register_buffer("taps", torch.softmax(-(offset**2) / (2 * fall[:, None] ** 2), 1).float())
        self.register_buffer("clear", clear.float() if brighten else torch.ones(T + 1))

    def forward(self, x0: Images, t: Levels, eps: Eps | None = None) -> Images:
        """x_t in float32. ValueError without eps."""
        if eps is None:
            raise ValueError("this degradation needs its eps: pass eps=degradation.draw(x0)")
        x = (x0.to(self.taps.dtype) + 1) / 2
        b = per_image(self.clear[t])
        bright = torch.maximum(x, 1.5 * x.mean(1, keepdim=True) + 0.5)
        s = self._layer(eps.to(x.dtype), t)
        snowed = (b * x + (1 - b) * bright + s + s.flip(2, 3)).clamp(0, 1)
        return torch.where(per_image(t) > 0, 2 * snowed - 1, x0.to(x.dtype))

    def _layer(self, eps: Eps, t: Levels) -> Float[Tensor, "b 1 h w"]:
        """s_t: the flakes above the threshold, each blurred along its way."""
        field, down = eps[:, :1], eps[:, 1:, :1, :1] > 0.5
        flakes = torch.where(field >= per_image(self.threshold[t]), field, 0).clamp(0, 1)
        line = torch.where(down, flakes.mT, flakes)  # what moves down moves across its transpose
        half = self.taps.shape[1] // 2
        windows = F.pad(line, (half, half, 0, 0), mode="replicate").unfold(3, 2 * half + 1, 1)
        blurred = (windows * self.taps[t][:, None, None, None]).sum(-1)
        return torch.where(down, blurred.mT, blurred)

    def draw(self, x0: Images, randomness: PerImage | None = None) -> Eps:
        """A field and a direction for every image."""
        n, h, w = len(x0), *x0.shape[-2:]
        small = [max(2, round(side / self.flakes.zoom)) for side in (h, w)]
        if randomness is None:
            normal, coin = torch.randn(n, 1, *small, device=x0.device), torch.rand(n, device=x0.device)
        else:
            normal, coin = randomness.normal(1, *small).to(x0.device), randomness.uniform().to(x0.device)
        field = F.interpolate(
            self.flakes.mean + self.flakes.std * normal, size=(h, w), mode="bilinear", align_corners=True
        )
        return torch.cat([field, (coin < 0.5)[:, None, None, None].expand(-1, 1, h, w).to(field.dtype)], 1)

    def infer(self, x_t: Images, x0: Images, t: Levels) -> Eps:
        raise UserError(
            "the flakes cannot be read from an image; take sampler=one_shot, or vcd.restore, which remembers them"
        )
