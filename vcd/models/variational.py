"""The variational bound that VCD, VWD and the plain model share; what sets them apart is the perturbation."""

import logging
import math
from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from vcd import bounds
from vcd.annealing import kl_weight
from vcd.batch import UNCONDITIONAL, UNTOLD, Condition, Degraded
from vcd.bounds import Bound, Quantity
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.models.base import Batches, Diffusion, Losses
from vcd.models.noisy_path import Restore, noisy_path
from vcd.monitoring import ActiveUnits
from vcd.networks.conditional import Conditional
from vcd.networks.encoder import Encoder, Posterior
from vcd.networks.injection import Maps
from vcd.networks.unet import UNet
from vcd.perturbations import Perturbation
from vcd.predictions import Prediction, Xt
from vcd.priors import Encoded, Independent, Prior
from vcd.randomness import PerImage
from vcd.samplers import Latents, Sampler, Sequential
from vcd.self_conditioning import seen_before
from vcd.starts import Start

log = logging.getLogger(__name__)
RATE = 0.01  # of the running means that beta is calibrated by
FIT = 20_220_415  # the seed of the latents that priors are fitted to


class Variational(Diffusion, ABC):
    """||x_s - xhat_s||^2 + beta KL(q(z | x_t, x_s) || p(z)), the mean over images of sums over pixels and latents.

    beta is in units of images in [-1, 1]: four times the papers'. annealing: the A of `kl_weight`, in steps.
    calibrated: beta_t is twice the mean squared error at level t, a running mean, and at least `beta`, the variance of the
    decoder at its most likely (sigma-VAE, Rybkin et al. 2020, arXiv:2006.13202). free_bits: what the KL of a level, the
    mean of its images in the batch, may be without cost (Kingma et al. 2016, arXiv:1606.04934). conditional: the p(z) that
    the KL is taken to, learned with the model and looking at x_t; None: N(0, I). temperature: of the latents in sampling.

    Parts that are not given are those of `python -m vcd.train`, its smallest network for images of the shape of `start`;
    but for the prior, which is the standard normal of training.
    """

    has_latents = True
    mse: Tensor

    def __init__(
        self, *, degradation: Degradation, start: Start | Callable[[Degradation], Start],
        prediction: Prediction | None = None, perturbation: Perturbation, network: nn.Module | None = None,
        encoder: Posterior | None = None, prior: Prior | None = None, sampler: Sampler | None = None, beta: float = 0.02,
        annealing: int = 0, calibrated: bool = False, free_bits: float = 0.0, conditional: Conditional | None = None,
        temperature: float = 1.0, **parts: Any,
    ):  # fmt: skip
        start = start if isinstance(start, Start) else start(degradation)
        channels, size, _ = start.shape
        encoder = Encoder(size=size, channels=channels, T=degradation.T) if encoder is None else encoder
        if network is None:
            injection = partial(Maps, latent=encoder.latent)
            network = UNet(size=size, channels=channels, T=degradation.T, injection=injection)
        super().__init__(  # the parts every Diffusion has, by name: an unknown one is a TypeError there
            degradation=degradation, start=start, network=network, perturbation=perturbation,
            prediction=Xt() if prediction is None else prediction,
            sampler=Sequential(delta=perturbation.sigma) if sampler is None else sampler, **parts,
        )  # fmt: skip
        self.encoder, self.beta, self.annealing = encoder, beta, annealing
        self.prior = Independent(latent=encoder.latent) if prior is None else prior
        shape = getattr(getattr(network, "injection", None), "shape", None)  # where it takes z to have a place
        if shape is not None and shape != encoder.shape:
            raise UserError(
                f"the network takes z as {shape}, the encoder makes {encoder.shape}: injection=spatial sets both"
            )
        self.calibrated, self.free_bits, self.conditional = calibrated, free_bits, conditional
        self.temperature = temperature
        if calibrated:
            self.register_buffer("mse", torch.zeros(self.degradation.T + 1))  # of each level; 0 until it is seen
        self.active_units = ActiveUnits(T=self.degradation.T, latent=encoder.latent)

    def encode(self, x_t: Tensor, x_s: Tensor, t: Levels, s: Levels, x0hat: Tensor | None = None) -> Normal:
        return self.encoder(x_t, x_s, t, s, x0hat) if self.self_conditioning else self.encoder(x_t, x_s, t, s)

    def kl(
        self, q: Normal, x_t: Float[Tensor, "b c h w"], t: Levels, z: Float[Tensor, "b d"] | None = None
    ) -> Float[Tensor, " b"]:
        """KL(q || p) in nats, to N(0, I); or to what is learned in its place, estimated at a sample z of q."""
        return self.prior.kl(q, x_t, t) if self.conditional is None else self.conditional.kl(q, x_t, t, z)

    @contextmanager
    def tempered(self, temperature: float) -> Iterator[None]:
        """Meanwhile with latents of this temperature."""
        usual, self.temperature = self.temperature, temperature
        try:
            yield
        finally:
            self.temperature = usual

    def latents(self, randomness: PerImage) -> Latents:
        return self.prior.sample(self.degradation.T, randomness, self.temperature)

    @torch.no_grad()
    def encode_path(
        self, x0: Float[Tensor, "n c h w"], randomness: PerImage, *, temperature: float = 1.0, level: int | None = None
    ) -> Encoded:
        """The latents of given images, each from the encoder at the state that decoding reaches.

        So later steps mend what earlier ones missed, and a prior fitted to them meets in sampling what it was fitted
        to. temperature: 0 takes the posterior's mean, 1 a sample of it. level: where the path begins; None: T.
        """
        D, T = self.degradation, self.degradation.T
        eps = D.draw(x0, randomness)
        level = level or (None if self.guess is None else self.guess.level)
        x_T = D(x0, torch.full((len(x0),), level or T, device=x0.device), eps)
        noise_z = randomness.normal(T, self.prior.latent).transpose(0, 1)
        z, mean = torch.zeros_like(noise_z).contiguous(), torch.zeros_like(noise_z)
        kl = torch.zeros(T, len(x0), device=x0.device)
        noise = randomness.take()

        def look(v: Tensor, t: Levels, s: Levels, x0hat: Tensor | None) -> Tensor:
            asked, i = self.sampler.ask(t, s), int(t[0]) - 1
            q = self.encode(v, D(x0, asked, eps), t, asked, x0hat)
            spread = q.stddev * noise_z[i]
            z[i], mean[i], kl[i] = q.mean + temperature * spread, q.mean, self.kl(q, v, t, q.mean + spread)
            return z[i]

        code, told = None, UNCONDITIONAL
        if self.guess is not None:
            code = self.guess.encode(x0, self.space, randomness.apart())
            told = self.guess.condition(code, self.space)
        x_0 = self.walk(x_T, noise.take(), latents=look, condition=told, level=level, keep=2).x0
        return Encoded(x_T, z, mean, kl, noise, x_0=x_0, code=code)

    def fit_prior(self, x0: Batches) -> None:
        """Fit the prior to the latents of training images, along the model's own path."""

        def encoded() -> Iterator[Encoded]:
            first, numbers = 0, dict[bytes, int]()  # an image that comes again is known by the hash of its pixels
            for x in x0:
                image = [
                    numbers.setdefault(sha256(pixels.tobytes()).digest(), len(numbers)) for pixels in x.cpu().numpy()
                ]
                randomness = PerImage(FIT, range(first, first + len(x)), self.device)
                yield replace(self.encode_path(x.to(self.device), randomness), image=torch.tensor(image))
                first += len(x)

        with self.evaluating():
            self.prior.fit(encoded())

    def losses(self, batch: Degraded) -> Losses:
        x_t = self.shown(batch)
        x0hat = seen_before(self, self.perturbation, batch, self.training) if self.self_conditioning else None
        q = self.encode(x_t.base, batch.x_s, batch.t, batch.s, x0hat)
        out = self.ask(x_t.network, batch.t, batch.s, batch.condition.given(q.rsample()).seen(x0hat))
        sse = (self.prediction.target(batch, x_t.base, self.degradation) - out).square().flatten(1).sum(1)
        kl = self.kl(q, x_t.base, batch.t)
        if not self.training:
            self.active_units.update(q.mean, batch.t)
        weight = kl_weight(self.step, self.annealing) if self.training else 1.0
        if self.training and self.calibrated:
            self._calibrate(sse.detach().float() / batch.x0[0].numel(), batch.t)
        beta = self.betas(batch.t)
        total = batch.mean(sse + beta * weight * self._charged(kl, batch.t))
        terms = {"loss": sse + beta * kl, "reconstruction_sse": sse, "kl_bits": kl / math.log(2)}
        return Losses(total, terms)

    def betas(self, t: Levels) -> Float[Tensor, " b"] | float:
        """The weight of the KL at each of these levels, or the one of all."""
        return (2 * self.mse[t]).clamp(min=self.beta) if self.calibrated else self.beta

    def _calibrate(self, mse: Float[Tensor, " b"], t: Levels) -> None:
        """Take a batch into the running means; the first mean of a level is that of its first batch."""
        count = torch.bincount(t, minlength=len(self.mse))
        now = torch.zeros_like(self.mse).index_add_(0, t, mse) / count.clamp(min=1)
        mean = torch.where(self.mse > 0, torch.lerp(self.mse, now, RATE), now)
        self.mse.copy_(torch.where(count > 0, mean, self.mse))

    def _charged(self, kl: Float[Tensor, " b"], t: Levels) -> Float[Tensor, " b"]:
        """The KL as it counts in the loss: that of a level whose mean is within the free bits, not at all."""
        if not self.free_bits or not self.training:
            return kl
        count = torch.bincount(t, minlength=self.degradation.T + 1).clamp(min=1)
        mean = torch.zeros(count.shape, device=kl.device).index_add_(0, t, kl.detach().float()) / count
        free = self.free_bits * math.log(2)
        return torch.where(mean[t] > free, kl, free)

    def on_validation_epoch_end(self) -> None:
        active = self.active_units.compute()
        self.log("val/active_units", active.float().mean())
        if self.step > 1000 and not active.any():
            log.warning(
                "posterior collapse: no latent unit is in use at any level; try more perturbation.sigma or less model.beta"
            )
        self.active_units.reset()
        super().on_validation_epoch_end()

    @torch.no_grad()
    def bound(self, x0: Float[Tensor, "n c h w"], randomness: PerImage) -> Bound:
        """Rate and distortion of the steps that the sampler takes, on the true path; where every step restores the level
        that it goes to, the bound on the density of the whole path; and, where sampling has noise on every state, that on
        images of 256 values (see `noisy_path`)."""
        D, dims = self.degradation, x0[0].numel()
        eps, whole = D.draw(x0, randomness), 0.0
        table: list[dict[str, Any]] = []
        betas: list[float] = []
        levels = self.sampler.grid(D.T)[:-1]
        self.active_units.reset()
        path = True
        with self.evaluating(), torch.random.fork_rng():
            torch.manual_seed(int(randomness.uniform()[0] * 2**31))
            for level in reversed(levels):
                t = torch.full((len(x0),), level, device=x0.device)
                below = self.sampler.below(t, D.T)
                s = self.sampler.ask(t, below)
                path &= bool((s == below).all())
                batch = Degraded(x0, t, s, D(x0, t, eps), D(x0, s, eps), eps, torch.full_like(t, UNTOLD))
                terms = self.losses(batch).terms
                rate, sse = terms["kl_bits"].mean().item(), terms["reconstruction_sse"]
                beta = float(self.betas(t[:1]))
                whole += rate + bounds.gaussian_bits(sse[None], beta, dims).mean().item()
                table.append({"t": level, "rate_bits": rate, "distortion_mse": sse.mean().item() / dims})
                betas.append(beta)
        active = self.active_units.compute().tolist()
        self.active_units.reset()
        for row in table:
            row["active_units"] = active[row["t"] - 1]
        numbers = {
            "rate_bits": Quantity(sum(row["rate_bits"] for row in table), "neither", "bits per image, all steps"),
            "distortion_mse": Quantity(sum(row["distortion_mse"] for row in table), "lower", "all steps"),
        }
        if path:  # else the steps do not restore one another's states, and their sum bounds nothing
            numbers["path_bound_bits_per_dim"] = Quantity(
                whole / dims, "lower", "bits per dimension of x_0, density of all steps"
            )
        how = "its level's variance, beta_t/2" if self.calibrated else f"variance beta/2 = {self.beta / 2:g}"
        protocol: dict[str, Any] = {
            "draws": "1 path per image",
            "decoder": f"Gaussian of {how}",
            "beta": betas if self.calibrated else self.beta,
            "levels": levels[::-1],
        }
        with self.evaluating():
            found = noisy_path(self, x0, randomness, self._restore_encoded(randomness))
        learned = "p(z_t | x_t, t) as it was learned, one z per step"
        latents = {"latents": "KL to " + ("N(0, I)" if self.conditional is None else learned)}
        protocol |= latents
        if found is None:
            return Bound(numbers, protocol, {"steps": table})
        protocol["bits_per_dim"] = found.protocol | latents
        return Bound(numbers | found.numbers, protocol, {"steps": table} | found.curves)

    def _restore_encoded(self, randomness: PerImage) -> Restore:
        """With a latent of the encoder, which looks at the true x_s."""

        def restore(v: Tensor, x_s: Tensor, t: Levels, s: Levels) -> tuple[Tensor, Tensor]:
            q = self.encode(v, x_s, t, s)
            z = q.mean + q.stddev * randomness.normal(q.mean.shape[1])
            return self.restore(v, t, s, Condition(z=z)), self.kl(q, v, t, z)

        return restore
