"""Restoring degraded images: every way that a model has, and how well an estimate explains what it was made from."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.batch import Condition
from vcd.degradations.base import Degradation, Eps, Images
from vcd.levels import Levels
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.restorer import Restorer
from vcd.samplers import Cold, Naive, Sampler
from vcd.spaces import Space


@final
class Remembered(Degradation):
    """A random degradation whose draw is known: the same hole, the same snow, at every level."""

    eps: Tensor

    def __init__(self, *, D: Degradation, eps: Eps):
        super().__init__(T=D.T)
        self.D, self.continuous = D, D.continuous
        self.register_buffer("eps", eps)

    def forward(self, x0: Images, t: Levels, eps: Eps | None = None) -> Images:
        return self.D(x0, t, self.eps)

    def infer(self, x_t: Images, x0: Images, t: Levels) -> Eps:
        return self.eps


@final
@dataclass(frozen=True)
class Remembering:
    """A Restorer that knows what was drawn for its images."""

    model: Restorer
    degradation: Degradation

    @property
    def space(self) -> Space:
        return self.model.space

    def restore(self, x_t: Images, t: Levels, s: Levels, condition: Condition) -> Images:
        return self.model.restore(x_t, t, s, condition)


def remembering(model: Restorer, eps: Eps | None) -> Restorer:
    """The model, told what was drawn; the model itself where nothing was."""
    return model if eps is None else Remembering(model, Remembered(D=model.degradation, eps=eps))


def tellable(x_t: Images, eps: Eps | None) -> Eps | None:
    """What a restorer may be told of the draw: where the hole is, how the snow falls. Not a whole image that was added,
    be it noise: of that sum, to know one part is to know the other."""
    return None if eps is None or eps.shape == x_t.shape else eps


def ways(model: Diffusion, eps: Eps | None = None) -> dict[str, Sampler]:
    """How this model can restore: algorithms 1 and 2 of cold diffusion and in one step ("direct"), where it predicts the
    clean image from every level; and its own sampler ("own"), where that is another one.

    The algorithms visit as many levels as the model's sampler, all of them if that takes one step. Where the draw is
    neither known nor readable they are left out, for they degrade anew.
    """
    D, own, found = model.degradation, model.sampler, dict[str, Sampler]()
    t = torch.arange(1, D.T + 1)
    if bool(model.prediction.answers(t, torch.zeros_like(t)).all()):
        if eps is not None or D.readable:
            steps = None if own.steps == 1 else own.steps
            found["algorithm_1"] = Naive(steps=steps, power=own.power, delta=own.delta)
            found["algorithm_2"] = Cold(steps=steps, power=own.power)  # noise on its states would stay in the image
        found["direct"] = Naive(steps=1, delta=own.delta)
    if not isinstance(own, Naive | Cold):
        found["own"] = own
    return found


@torch.no_grad()
def restore(
    model: Diffusion, way: str, x_t: Float[Tensor, "n c h w"], level: int, randomness: PerImage, eps: Eps | None = None
) -> Float[Tensor, "n c h w"]:
    """x_0 from x at `level`, by one of `ways`; eps: what was drawn for these images, if that is known (see `tellable`).

    A model with latents takes them from its prior: another `randomness` makes another restoration.
    """
    model.check_alone()
    sampler = ways(model, eps)[way]
    knowing = model if way == "own" else remembering(model, tellable(x_t, eps))
    latents = model.latents(randomness)
    return sampler(knowing, x_t, randomness.take(), latents=latents, level=level, keep=2).x0


def consistency(
    D: Degradation, x0hat: Images, x_t: Images, level: int, eps: Eps | None = None
) -> Float[Tensor, " n"] | None:
    """Root mean square of D(xhat_0, t) - x_t for every image: does the estimate explain what was seen?

    eps: what was drawn. Where it is not known it is read from x_t; None where that cannot be done.
    """
    if eps is None and not D.readable:
        return None
    t = torch.full((len(x_t),), level, device=x_t.device)
    eps = D.infer(x_t, x0hat, t) if eps is None else eps
    return (D(x0hat, t, eps) - x_t).square().flatten(1).mean(1).sqrt()
