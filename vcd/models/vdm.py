"""Variational diffusion models."""

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vcd.batch import UNTOLD, Condition, Degraded
from vcd.bounds import Bound, Quantity, bin_bits
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.gammas import Gamma
from vcd.levels import Levels, per_image
from vcd.likelihood import ode_bits
from vcd.models.base import Diffusion, Losses
from vcd.predictions import Eps, Prediction, gaussian
from vcd.randomness import PerImage


@final
class VDM(Diffusion):
    """Variational diffusion models (Kingma et al. 2021, arXiv:2107.00630): maximum likelihood, in bits per dimension.

    Training                                               Sampling
      t ~ U(0, 1);  eps ~ N(0, I)                              z_1 ~ N(0, I)
      z_t = alpha_t x + sigma_t eps                            for t = 1..0:  epshat = f(z_t, gamma_t)
      epshat = f(z_t, gamma_t)                                   z_s ~ q(z_s | z_t, xhat)
      descend  KL(q(z_1 | x) || N(0, I))                       x: the bin that z_0 lies in
             + gamma'(t)/2 |eps - epshat|^2
             - log p(x | z_0)

    steps: None is continuous time; else T discrete steps, whose loss is T/2 expm1(gamma_t - gamma_s) |eps - epshat|^2.
    The degradation's levels 1..T are times 0..1, for sampling; where gamma is learned, its tables follow.
    """

    def __init__(
        self, *, degradation: Degradation, prediction: Prediction, gamma: Gamma, steps: int | None = None, **parts: Any
    ):
        D = gaussian(degradation, "model=vdm", "take model=vcd, vwd, bansal or rissanen")
        if not isinstance(prediction, Eps) or D.signal.ndim > 1:
            raise UserError(
                "model=vdm predicts the noise of plain noise: prediction=eps degradation=noise schedule=log_snr"
            )
        if steps is not None and steps < 1:
            raise UserError(f"model.steps={steps} must be at least 1, or null for continuous time")
        super().__init__(degradation=degradation, prediction=prediction, **parts)
        self.gamma, self.steps = gamma, steps
        self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Set the degradation's tables to gamma."""
        D = gaussian(self.degradation)
        gamma = self.gamma(torch.linspace(0, 1, D.T, device=D.noise.device)).double()
        D.signal[1:], D.noise[1:] = torch.sigmoid(-gamma).sqrt().float(), torch.sigmoid(gamma).sqrt().float()
        D.log_ratio.copy_(gamma / 2)

    def train(self, mode: bool = True) -> "VDM":
        if not mode and self.gamma.learned:
            self.follow()
        return super().train(mode)

    def ask(self, x_t: Tensor, t: Levels, s: Levels, condition: Condition) -> Tensor:
        """The network is told gamma, as a level: that of level t, scaled to run from 1 to T."""
        log_ratio = gaussian(self.degradation).log_ratio[(t - 1).clamp(min=0).long()]
        return self._eps(x_t, 2 * log_ratio.float(), condition)

    def _eps(self, z: Tensor, gamma: Float[Tensor, " b"], condition: Condition) -> Tensor:
        low, high = self.gamma.gamma_0, self.gamma.gamma_1
        level = 1 + (self.degradation.T - 1) * (gamma.detach() - low) / (high - low)
        return self.network(z, level, torch.zeros_like(level), condition)

    def losses(self, batch: Degraded) -> Losses:
        assert batch.eps is not None
        x, eps, dims = batch.x0, batch.eps, batch.x0[0].numel()
        u = batch.t.float() / self.degradation.T  # (0, 1]
        if self.steps is None:
            (low, span), inside = self.gamma.ends(), self.gamma.shape(u)
            gamma, weight = low + span * inside[0], span * inside[1] / 2
        else:
            t = (u * self.steps).ceil() / self.steps
            gamma, below = self.gamma(t), self.gamma(t - 1 / self.steps)
            weight = self.steps / 2 * torch.expm1(gamma - below)
        z = per_image(torch.sigmoid(-gamma).sqrt()) * x + per_image(torch.sigmoid(gamma).sqrt()) * eps
        error = (eps - self._eps(z, gamma, batch.condition)).square().flatten(1).sum(1)
        terms = {
            "prior_bpd": self._prior(x) / (dims * math.log(2)),
            "diffusion_bpd": weight * error / (dims * math.log(2)),
        }
        if self.training and self.gamma.shaped and self.steps is None:
            _on_variance(inside, terms["diffusion_bpd"])
        if not self.training or self.gamma.learned:
            terms["reconstruction_bpd"] = bin_bits(x, torch.randn_like(x), self._end(0.0, x)) / dims
        loss = torch.stack(list(terms.values())).sum(0)
        return Losses(batch.mean(loss), {"loss": loss, **terms})

    def _end(self, t: float, x: Tensor) -> Float[Tensor, ""]:
        return self.gamma(torch.full((1,), t, device=x.device))[0]

    def _prior(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """KL(q(z_1 | x) || N(0, I)) in nats."""
        gamma = self._end(1.0, x)
        terms = torch.sigmoid(gamma) + torch.sigmoid(-gamma) * x.square() - F.logsigmoid(gamma) - 1
        return terms.flatten(1).sum(1) / 2

    @torch.no_grad()
    def bound(self, x0: Float[Tensor, "n c h w"], randomness: PerImage, draws: int = 16) -> Bound:
        """Bits per dimension: the mean of `draws` antithetic times per image."""
        sums: dict[str, float] = {}
        offset = randomness.uniform()
        T = self.degradation.T
        with self.evaluating():
            for i in range(draws):
                t = T * (1 - (i + offset) / draws)
                eps = randomness.normal(*x0.shape[1:])
                batch = Degraded(x0, t, torch.zeros_like(t), x0, x0, eps, torch.full_like(t, UNTOLD).long())
                for name, value in self.losses(batch).terms.items():
                    sums[name] = sums.get(name, 0.0) + value.mean().item() / draws
        numbers = {"bits_per_dim": Quantity(sums.pop("loss"), "lower", "bits")}
        protocol = {
            "draws": f"{draws} antithetic times per image",
            "time": "continuous" if self.steps is None else f"{self.steps} steps",
        }
        return Bound(numbers, protocol, {"bound": {name.removesuffix("_bpd"): value for name, value in sums.items()}})

    def likelihood(
        self, images: UInt8[Tensor, "n c h w"], randomness: PerImage, *, steps: int
    ) -> Float[Tensor, " n"] | None:
        """By the probability-flow ODE."""
        return ode_bits(self, images, randomness, steps=steps, std=1.0)


def _on_variance(inside: tuple[Tensor, Tensor], loss: Float[Tensor, " b"]) -> None:
    """What comes back to these tensors, one number per image, is the gradient of the mean square of the loss, not of its mean.

    The mean does not depend on them, so this makes its variance small, in the same backward pass (Kingma et al. 2021,
    appendix I.2): d L^2 = 2 L dL.
    """
    twice = 2 * loss.detach()
    for x in inside:
        x.register_hook(lambda gradient: twice * gradient)
