"""Inverse heat dissipation."""

from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from vcd.batch import Degraded
from vcd.bounds import Bound
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.models.base import Diffusion, Losses
from vcd.models.noisy_path import noisy_path
from vcd.predictions import Increment, Prediction
from vcd.randomness import PerImage


@final
class Rissanen(Diffusion):
    """Inverse heat dissipation (Rissanen et al. 2022, arXiv:2206.13397), for every degradation.

    Training                                          Sampling
      t ~ U{1..T};  x_t, x_s = D(x_0, t), D(x_0, t-1)     x_T = D(a training image, T)
      v = x_t + sigma eps                                 for t = T..1:
      xhat_s = v + f(v, t)                                  v = x_t + delta eps
      descend ||x_s - xhat_s||^2                            x_{t-1} = v + f(v, t)

    Where the degradation is random, x_t and x_s share the draw, and xhat_s is the mean of x_s given x_t: of noise, DDIM's
    step.
    """

    def __init__(self, *, degradation: Degradation, prediction: Prediction, **parts: Any):
        if not isinstance(prediction, Increment):
            raise UserError("model=rissanen predicts the increment to a less degraded level: prediction=xt or vxt")
        super().__init__(degradation=degradation, prediction=prediction, **parts)

    def losses(self, batch: Degraded) -> Losses:
        v = self.shown(batch)
        out = self.ask(v.network, batch.t, batch.s, batch.condition)
        sse = (self.prediction.target(batch, v.base, self.degradation) - out).square().flatten(1).sum(1)
        return Losses(batch.mean(sse), {"loss": sse})

    def bound(self, x0: Float[Tensor, "n c h w"], randomness: PerImage) -> Bound | None:
        """Bits per dimension of images of 256 values; see `noisy_path`."""

        def restore(v: Tensor, x_s: Tensor, t: Levels, s: Levels) -> tuple[Tensor, Tensor]:
            return self.restore(v, t, s), v.new_zeros(len(v))

        with self.evaluating():
            return noisy_path(self, x0, randomness, restore)
