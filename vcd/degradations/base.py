"""What every degradation is: x_t = D(x0, t), with x_0 = x0 and x_T fully degraded."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vcd.schedules import check_levels

Images = Float[Tensor, "b c h w"]
Levels = Int[Tensor, " b"]


class Degradation(nn.Module, ABC):
    """D(x0, t) for levels t = 0 (clean) .. T (fully degraded), each image at its own level.

    Images are in [-1, 1]. A subclass has no trainable parameter and keeps every tensor as a buffer; it computes in
    float32, under autocast too. UserError if T is not a whole number of at least 1.
    """

    T: int
    stochastic: bool = False  # does x_t need randomness besides x0?

    def __init__(self, *, T: int):
        super().__init__()
        self.T = check_levels(T)

    @abstractmethod
    def forward(self, x0: Images, t: Levels, eps: Images | None = None) -> Images:
        """x_t. `eps` is the randomness of the path, from `draw`; deterministic degradations do not look at it.

        ValueError if the degradation is stochastic and eps is None.
        """

    def draw(self, x0: Images, generator: torch.Generator | None = None) -> Images | None:
        """The randomness of one whole path per image, shared by x_t and x_s; None where there is none."""
        return None

    def infer(self, x_t: Images, x0: Images, t: Levels) -> Images | None:
        """The eps that leads from x0 to x_t; None where there is none."""
        return None
