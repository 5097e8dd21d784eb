"""Denoising diffusion."""

from typing import Any, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vcd import bounds
from vcd.batch import Condition, Degraded
from vcd.bounds import Bound, Quantity
from vcd.degradations.base import Degradation
from vcd.degradations.gaussian import GaussianDegradation
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.likelihood import ode_bits
from vcd.models.base import Diffusion, Losses
from vcd.predictions import Clean, Prediction, WithVariance, gaussian, noisy
from vcd.randomness import PerImage
from vcd.weights import Weight


@final
class DDPM(Diffusion):
    """Denoising diffusion probabilistic models (Ho et al. 2020, arXiv:2006.11239; DDIM: Song et al., arXiv:2010.02502).

    Training                                          Sampling
      t ~ U{1..T};  eps ~ N(0, I)                         x_T ~ N(0, I)
      x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps       for t = T..1:  xhat_0 from epshat
      epshat = f(x_t, t)                                    x_{t-1} ~ q(x_{t-1} | x_t, xhat_0)   (ancestral)
      descend |eps - epshat|^2                              or along epshat, with less noise or none (ddim)

    Score-based models are this one with other schedules, weights, levels and samplers: the score is -epshat / noise_t
    (Song et al. 2021, arXiv:2011.13456). weight: how much each level counts; None: the squared error of the output.

    prediction=eps_variance is improved DDPM (Nichol and Dhariwal 2021, arXiv:2102.09672): the loss gains lambda L_vlb, in
    which the gradient stops at the mean.
    """

    learns_variance = True

    def __init__(self, *, degradation: Degradation, prediction: Prediction, weight: Weight | None = None, **parts: Any):
        noisy(degradation, "model=ddpm", "take model=bansal, rissanen, vcd or vwd")
        if not isinstance(prediction, Clean):
            raise UserError(
                "model=ddpm predicts the noise or the clean image: prediction=eps, v, edm, x0 or difference"
            )
        if weight is not None:
            gaussian(degradation, f"weight={type(weight).__name__.lower()}", "take weight=null")
        super().__init__(degradation=degradation, prediction=prediction, **parts)
        self.weight, self.clean = weight, prediction

    def losses(self, batch: Degraded) -> Losses:
        x_t = self.shown(batch)
        out = self.ask(x_t.network, batch.t, batch.s, batch.condition)
        terms: dict[str, Tensor] = {}
        if isinstance(self.prediction, WithVariance):
            out, v = self.prediction.split(out)
            x0hat = self.prediction.mean.read(out.detach(), x_t.base, batch.t, batch.s, self.degradation)
            terms["vlb_bpd"] = bounds.level_bits(gaussian(self.degradation), batch.x0, x0hat, batch.t, v)
        error = self.prediction.target(batch, x_t.base, self.degradation) - out
        if self.weight is None:
            square = error.square()
        else:
            D = gaussian(self.degradation)
            square = D.basis(error).square() * (self.weight(batch.t, D) / self.clean.gain(batch.t, D))
        mse = square.flatten(1).mean(1)
        loss = mse + self.prediction.weight * terms["vlb_bpd"] if isinstance(self.prediction, WithVariance) else mse
        return Losses(batch.mean(loss), {"loss": loss, **terms})

    def spread(
        self, x_t: Float[Tensor, "b c h w"], t: Levels, condition: Condition
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """xhat_0, and the variance of the step: where none is learned, the posterior's."""
        out, s = self.ask(x_t, t, torch.zeros_like(t), condition), torch.zeros_like(t)
        v = self.prediction.split(out)[1] if isinstance(self.prediction, WithVariance) else torch.zeros_like(x_t)
        return self.prediction.read(out, x_t, t, s, self.degradation), v

    def bound(self, x0: Float[Tensor, "n c h w"], randomness: PerImage) -> Bound | None:
        """Bits per dimension of images of 256 values, from 100 levels per image; None where the signal is not one number."""
        T = self.degradation.T
        if not isinstance(self.degradation, GaussianDegradation) or self.degradation.signal.ndim > 1 or T < 2:
            return None
        count = min(T - 1, 100)
        parts = bounds.ddpm_bits(self, x0, randomness, count)
        numbers = {"bits_per_dim": Quantity(parts.sum(1).mean().item(), "lower", "bits")}
        terms = dict(zip(("prior", "steps", "decoder"), parts.mean(0).tolist(), strict=True))
        return Bound(
            numbers,
            {
                "draws": f"{count} of {T} levels per image",
                "variances": "learned" if self.prediction.outputs > 1 else "posterior",
            },
            {"bound": terms},
        )

    def likelihood(
        self, images: UInt8[Tensor, "n c h w"], randomness: PerImage, *, steps: int
    ) -> Float[Tensor, " n"] | None:
        """By the probability-flow ODE; None where the signal is not one number."""
        D = self.degradation
        if not isinstance(D, GaussianDegradation) or D.signal.ndim > 1:
            return None
        return ode_bits(self, images, randomness, steps=steps, std=1.0 if D.fades else D.noise[-1].item())
