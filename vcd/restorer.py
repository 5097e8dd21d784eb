"""What samplers and perturbations need of a model, so that neither has to know one."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from vcd.batch import Condition
from vcd.degradations.base import Degradation
from vcd.levels import Levels
from vcd.spaces import Space


@runtime_checkable
class Restorer(Protocol):
    """All that a sampler knows of a model. Guidance is a Restorer around a Restorer."""

    @property
    def degradation(self) -> Degradation: ...

    @property
    def space(self) -> Space: ...

    def restore(
        self, x_t: Float[Tensor, "b c h w"], t: Levels, s: Levels, condition: Condition
    ) -> Float[Tensor, "b c h w"]:
        """xhat_s from x_t."""
        ...


@runtime_checkable
class Spreading(Restorer, Protocol):
    """A Restorer that also knows how wide a step is."""

    def spread(
        self, x_t: Float[Tensor, "b c h w"], t: Levels, condition: Condition
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """xhat_0 from x_t, and v: 0 for the variance of the posterior, 1 for that of the forward step, between them in ln."""
        ...


@runtime_checkable
class Encoding(Restorer, Protocol):
    """A Restorer that also knows which latent a step of a given image would have."""

    def encode(
        self, x_t: Float[Tensor, "b c h w"], x_s: Float[Tensor, "b c h w"], t: Levels, s: Levels,
        x0hat: Float[Tensor, "b c h w"] | None = None,
    ) -> Normal | None:  # fmt: skip
        """q(z_t | x_t, x_s); None for a model without latents."""
        ...
