"""Cold diffusion."""

from typing import Any, final

from vcd.batch import Degraded
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.models.base import Diffusion, Losses
from vcd.predictions import X0, Prediction


@final
class Bansal(Diffusion):
    """Cold diffusion (Bansal et al. 2022, arXiv:2208.09392): restore the clean image, degrade it a little less.

    Training                                          Sampling (algorithm 2)
      t ~ U{1..T};  x_t = D(x_0, t)                       x_T: a flat colour, with a little noise
      xhat_0 = f(x_t, t)                                  for t = T..1:  xhat_0 = f(x_t, t)
      descend |x_0 - xhat_0|_1                              x_{t-1} = x_t - D(xhat_0, t) + D(xhat_0, t-1)
    """

    def __init__(self, *, degradation: Degradation, prediction: Prediction, **parts: Any):
        if not isinstance(prediction, X0):
            raise UserError("model=bansal restores the clean image: prediction=x0")
        super().__init__(degradation=degradation, prediction=prediction, **parts)

    def losses(self, batch: Degraded) -> Losses:
        x_t = self.shown(batch)
        out = self.ask(x_t.network, batch.t, batch.s, batch.condition)
        mae = (self.prediction.target(batch, x_t.base, self.degradation) - out).abs().flatten(1).mean(1)
        return Losses(batch.mean(mae), {"loss": mae})
