"""Denoising diffusion."""

from typing import final

from vcd.batch import Degraded
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.models.base import Diffusion, Losses
from vcd.predictions import Clean, Prediction


@final
class DDPM(Diffusion):
    """Denoising diffusion probabilistic models (Ho et al. 2020, arXiv:2006.11239; DDIM: Song et al., arXiv:2010.02502).

    Training                                          Sampling
      t ~ U{1..T};  eps ~ N(0, I)                         x_T ~ N(0, I)
      x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps       for t = T..1:  xhat_0 from epshat
      epshat = f(x_t, t)                                    x_{t-1} ~ q(x_{t-1} | x_t, xhat_0)   (ancestral)
      descend |eps - epshat|^2                              or along epshat, with less noise or none (ddim)
    """

    def __init__(self, *, degradation: Degradation, prediction: Prediction, **parts):
        if not hasattr(degradation, "alpha_bar"):
            raise UserError(
                "model=ddpm denoises: it needs degradation=noise; others are for bansal, rissanen, vcd and vwd"
            )
        if not isinstance(prediction, Clean):
            raise UserError("model=ddpm predicts the noise or the clean image: prediction=residual or x0")
        super().__init__(degradation=degradation, prediction=prediction, **parts)

    def losses(self, batch: Degraded) -> Losses:
        x_t = self.shown(batch)
        out = self.network(x_t.network, batch.t, batch.s, None)
        mse = (self.prediction.target(batch, x_t.base) - out).square().flatten(1).mean(1)
        return Losses(mse.mean(), {"loss": mse})
