"""The variational bound that VCD and VWD share; what sets them apart is the perturbation."""

import logging
import math
from abc import ABC
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Normal

from vcd.annealing import kl_weight
from vcd.batch import Degraded
from vcd.metrics.levels import ActiveUnits
from vcd.models.base import Diffusion, Losses
from vcd.networks.encoder import Encoder
from vcd.priors import Prior
from vcd.randomness import PerImage

log = logging.getLogger(__name__)


class Variational(Diffusion, ABC):
    """||x_s - xhat_s||^2 + beta KL(q(z | x_t, x_s) || p(z)), the mean over images of sums over pixels and latents.

    beta is in units of images in [-1, 1]: four times the papers'. annealing: the A of `kl_weight`, in steps.
    """

    def __init__(self, *, encoder: Encoder, prior: Prior, beta: float, annealing: int, **parts):
        super().__init__(**parts)  # the parts every Diffusion has, by name: an unknown one is a TypeError there
        self.encoder, self.prior, self.beta, self.annealing = encoder, prior, beta, annealing
        self.active_units = ActiveUnits(T=self.degradation.T, latent=encoder.latent)

    def encode(self, x_t: Tensor, x_s: Tensor, t: Int[Tensor, " b"], s: Int[Tensor, " b"]) -> Normal:
        return self.encoder(x_t, x_s, t, s)

    def latents(self, randomness: PerImage) -> Float[Tensor, "T n d"]:
        return self.prior.sample(self.degradation.T, randomness)

    @torch.no_grad()
    def encode_path(self, x0: Float[Tensor, "b c h w"]) -> Normal:
        """q(z_t | x_t, x_s) of every level along the true path, s being what the sampler asks for: over (T,b,d)."""
        eps, posteriors = self.degradation.draw(x0), []
        for level in range(1, self.degradation.T + 1):
            t = torch.full((len(x0),), level, device=x0.device)
            s = self.sampler.ask(t, self.sampler.below(t, self.degradation.T))
            v = self.perturbation.noisy(self.degradation(x0, t, eps))
            posteriors.append(self.encode(v, self.degradation(x0, s, eps), t, s))
        mean, std = (torch.stack([getattr(q, name) for q in posteriors]) for name in ("mean", "stddev"))
        return Normal(mean, std, validate_args=False)

    def finish(self, x0: Iterable[Float[Tensor, "b c h w"]]) -> None:
        """Fit the prior to the posteriors of the training images."""
        self.prior.fit(self.encode_path(x.to(self.device)) for x in x0)

    def losses(self, batch: Degraded) -> Losses:
        x_t = self.shown(batch)
        q = self.encode(x_t.base, batch.x_s, batch.t, batch.s)
        z = q.rsample()
        out = self.network(x_t.network, batch.t, batch.s, z)
        sse = (self.prediction.target(batch, x_t.base) - out).square().flatten(1).sum(1)
        kl = self.prior.kl(q)
        if not self.training:
            self.active_units.update(q.mean, batch.t)
        weight = kl_weight(self.step, self.annealing) if self.training else 1.0
        total = (sse + self.beta * weight * kl).mean()
        terms = {"loss": sse + self.beta * kl, "reconstruction_sse": sse, "kl_bits": kl / math.log(2)}
        return Losses(total, terms)

    def on_validation_epoch_end(self) -> None:
        active = self.active_units.compute()
        self.log("val/active_units", active.float().mean())
        if self.step > 1000 and not active.any():
            log.warning(
                "posterior collapse: no latent unit is in use at any level; try more perturbation.sigma or less model.beta"
            )
        self.active_units.reset()
        super().on_validation_epoch_end()
