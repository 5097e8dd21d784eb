"""What flows from the data module to the models."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from jaxtyping import Float, Int64
from torch import Tensor

from vcd.levels import Levels

UNTOLD = -1  # in the place of a label
Rows = Tensor | slice | Sequence[int]
Self = TypeVar("Self", "Condition", "Degraded")


def _take(batch: Self, rows: Rows) -> Self:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    parts: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
    return replace(batch, **parts)


@dataclass(frozen=True)
class Condition:
    """What a network is told besides x_t, t and s, each part for every image of the batch, or None."""

    z: Float[Tensor, "b *d"] | None = None  # the latent of this step
    label: Int64[Tensor, " b"] | None = None  # a class; UNTOLD where the network is not told
    image: Float[Tensor, "b c2 h2 w2"] | None = None  # a first guess to refine
    x0hat: Float[Tensor, "b c3 h3 w3"] | None = None  # the clean image as the step before saw it

    def take(self, rows: Rows) -> "Condition":
        """These images' conditions; rows may repeat."""
        return _take(self, rows)

    def given(self, z: Float[Tensor, "b *d"] | None) -> "Condition":
        """The same with this latent."""
        return replace(self, z=z)

    def seen(self, x0hat: Float[Tensor, "b c3 h3 w3"] | None) -> "Condition":
        """The same with this estimate of the step before."""
        return replace(self, x0hat=x0hat)


UNCONDITIONAL = Condition()


@dataclass(frozen=True)
class Degraded:
    """A batch: clean images, two levels s < t each, and the images at these levels. Pixels in [-1, 1], float32.

    weight: how much each image counts in the objective, where the level sampler prefers some levels; None: all alike.
    """

    x0: Float[Tensor, "b c h w"]
    t: Levels
    s: Levels
    x_t: Float[Tensor, "b c h w"]
    x_s: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c2 h2 w2"] | None  # None where the degradation is deterministic
    label: Int64[Tensor, " b"]
    weight: Float[Tensor, " b"] | None = None
    z: Float[Tensor, "b d"] | None = None  # of a first guess, where the network is told of it
    image: Float[Tensor, "b c3 h3 w3"] | None = None  # the first guess

    def mean(self, values: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """The objective: the mean of these values over the images, as much as each of them counts."""
        return (values if self.weight is None else self.weight * values).mean()

    @property
    def condition(self) -> Condition:
        """What the network is told of these images, but for the latent of the step."""
        return Condition(self.z, self.label, self.image)

    def take(self, rows: Rows) -> "Degraded":
        """These images, all fields alike; rows may repeat."""
        return _take(self, rows)
