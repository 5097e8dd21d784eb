"""What flows from the data module to the models."""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass
class Degraded:
    """A batch: clean images, two levels s < t each, and the images at these levels. Pixels in [-1, 1], float32."""

    x0: Float[Tensor, "b c h w"]
    t: Int64[Tensor, " b"]
    s: Int64[Tensor, " b"]
    x_t: Float[Tensor, "b c h w"]
    x_s: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"] | None  # None where the degradation is deterministic
    label: Int64[Tensor, " b"]
