"""The first guess of an image, which a model refines; and guidance by it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vcd.batch import Condition, Degraded
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.levels import Levels, per_image
from vcd.randomness import PerImage
from vcd.restorer import Restorer
from vcd.schedules import Number
from vcd.spaces import Space

Code = Float[Tensor, "n d"]


class Guess(nn.Module, ABC):
    """A first guess xhat of an image, made from a code z by somebody who is not trained any more.

    drop: how many images, of all, are trained without it. tells_z: the network is told z as well as xhat. In sampling,
    weight w takes (1 + w) xhat_s(with) - w xhat_s(without) (Ho and Salimans 2022, arXiv:2207.12598): 0 is plain, -1 without.
    level: where the refinement begins, at D(xhat, level); None: at x_T, as if there were no guess.
    """

    def __init__(self, *, drop: Number = 0.0, weight: Number = 0.0, level: int | None = None, tells_z: bool = False):
        super().__init__()
        if not 0.0 <= drop <= 1.0:
            raise UserError(f"guess.drop={drop} is a share of the images: it must lie between 0 and 1")
        self.drop, self.weight, self.level, self.tells_z = drop, weight, level, tells_z

    def check(self, T: int, has_latents: bool) -> None:
        """UserError where a model of T levels, with latents of its own or without, cannot refine it."""
        if self.level is not None and not 1 <= self.level <= T:
            raise UserError(f"guess.level={self.level}: refinement begins between 1 and T={T}, or null for x_T")
        if self.tells_z and has_latents:
            raise UserError("guess.tells_z=true: this model's network reads the z of every step; tell it xhat alone")

    @abstractmethod
    def draw(self, randomness: PerImage, temperature: float = 1.0) -> Code:
        """Codes of new images."""

    @abstractmethod
    def encode(self, x0: Float[Tensor, "n c h w"], space: Space, randomness: PerImage | None = None) -> Code:
        """Codes of given images, sampled: by `randomness`, or from torch's own."""

    @abstractmethod
    def decode(self, z: Code, space: Space) -> Float[Tensor, "n c h w"]:
        """xhat in the space of the model that refines it."""

    @torch.no_grad()
    def condition(self, z: Code, space: Space) -> Condition:
        """What the network is told."""
        return Condition(z=z if self.tells_z else None, image=self.decode(z, space))

    def without(self, condition: Condition) -> Condition:
        """The same condition without the guess."""
        return replace(condition, image=None, z=None if self.tells_z else condition.z)

    @torch.no_grad()
    def tell(self, batch: Degraded, space: Space) -> Degraded:
        """The batch with its guesses; in training without those that are dropped, each image on its own."""
        told = self.condition(self.encode(batch.x0, space), space)
        image, z = told.image, told.z
        if self.training and self.drop:
            kept = per_image(torch.rand(len(batch.x0), device=batch.x0.device) >= self.drop)
            image = None if image is None else image * kept
            z = None if z is None else z * kept.flatten(1)
        return replace(batch, image=image, z=z)


@final
@dataclass(frozen=True)
class Guided:
    """A Restorer that trusts the guess more, or less, than it has learned to."""

    model: Restorer
    guess: Guess

    @property
    def degradation(self) -> Degradation:
        return self.model.degradation

    @property
    def space(self) -> Space:
        return self.model.space

    def restore(
        self, x_t: Float[Tensor, "b c h w"], t: Levels, s: Levels, condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        w = self.guess.weight
        without = self.model.restore(x_t, t, s, self.guess.without(condition))
        return without if w == -1 else torch.lerp(without, self.model.restore(x_t, t, s, condition), 1 + w)
