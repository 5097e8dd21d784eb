"""Variational bounds: what a model says of the likelihood of images, in bits."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from vcd.batch import UNCONDITIONAL
from vcd.degradations.gaussian import GaussianDegradation
from vcd.levels import Levels, per_image
from vcd.predictions import gaussian
from vcd.randomness import PerImage
from vcd.restorer import Restorer, Spreading

Pixels = Float[Tensor, "n c h w"]


@dataclass(frozen=True)
class Quantity:
    """A number, which way is better (lower, higher or neither), and its unit."""

    value: float
    better: str
    unit: str


@dataclass(frozen=True)
class Bound:
    """Named numbers, what they depend on, and tables for plots."""

    numbers: dict[str, Quantity]
    protocol: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)


def gaussian_bits(sse: Float[Tensor, "k n"], beta: float, dimensions: int) -> Float[Tensor, "k n"]:
    """-log2 N(x_s; xhat_s, beta/2 I): the decoder that the objective sse + beta KL implies, as a density of the step."""
    variance = beta / 2
    return (sse / (2 * variance) + dimensions / 2 * math.log(2 * math.pi * variance)) / math.log(2)


def step_nats(
    D: GaussianDegradation, x0: Pixels, x0hat: Pixels, t: Levels, v: Pixels | float = 0.0
) -> Float[Tensor, " n"]:
    """KL(q(x_{t-1} | x_t, x_0) || p), for t = 2..T. v: ln of the variance of p lies between that of q (0) and that of the
    forward step (1).

    The means are apart by xhat_0 - x_0, whose square counts as much as SNR is gained.
    """
    noise2 = D.noise.double() ** 2
    snr = D.signal.double() ** 2 / noise2.clamp(min=1e-20)
    gain = per_image(snr[t - 1] - snr[t]).to(x0hat.dtype)
    wider = v * per_image((noise2[t] / noise2[t - 1]).log()).to(x0hat.dtype)  # ln of the ratio of variances
    error = torch.exp(-wider) * gain * (x0hat - x0).square()
    return (wider + torch.expm1(-wider) + error).flatten(1).sum(1) / 2


def decoder_nats(D: GaussianDegradation, x0: Pixels, x0hat: Pixels, v: Pixels | float = 0.0) -> Float[Tensor, " n"]:
    """-log P(x_0 | x_1), as `bin_nats`.

    v as in `step_nats`; in the place of the posterior's variance, which is 0 here, is that of t = 2.
    """
    noise2, (a_1, a_2) = D.noise.double() ** 2, D.signal[1:3].double()
    small = noise2[1] * (1 - (a_2 / a_1) ** 2 * noise2[1] / noise2[2])
    std = torch.exp((v * (noise2[1] / small).log().to(x0hat.dtype) + small.log().to(x0hat.dtype)) / 2)
    return bin_nats(x0, x0hat, std)


def bin_nats(x0: Pixels, mean: Pixels, std: Tensor) -> Float[Tensor, " n"]:
    """-log P(x_0) of a Gaussian integrated over the 256 bins, the outermost open (Ho et al. 2020, eq. 13)."""
    decoder, half = Normal(mean, std), 1 / 255
    above = torch.where(x0 > 1 - half, 1.0, decoder.cdf(x0 + half))
    below = torch.where(x0 < -1 + half, 0.0, decoder.cdf(x0 - half))
    return -(above - below).clamp(min=1e-12).log().flatten(1).sum(1)


def level_bits(D: GaussianDegradation, x0: Pixels, x0hat: Pixels, t: Levels, v: Pixels | float) -> Float[Tensor, " n"]:
    """T times the share of level t in the bound, in bits per dimension: the mean over t is that of the steps and the decoder."""
    steps, last = step_nats(D, x0, x0hat, t.clamp(min=2), v), decoder_nats(D, x0, x0hat, v)
    return D.T * torch.where(t == 1, last, steps) / (x0[0].numel() * math.log(2))


@torch.no_grad()
def ddpm_bits(model: Restorer, x0: Pixels, randomness: PerImage, levels: int | None = None) -> Float[Tensor, "n 3"]:
    """DDPM's bound in bits per dimension, for images of 256 values: prior, steps t = 2..T, decoder (Ho et al. 2020, eq. 5).

    levels: of the steps, so many are measured per image, spread evenly in log SNR with a random offset and weighted by
    how rarely each is met; None: all. Variances are those that the model says, or the exact posterior's. The signal has to
    be one number per level.
    """
    D: GaussianDegradation = gaussian(model.degradation)
    T, shape, dims, x = D.T, x0.shape[1:], x0[0].numel(), x0.double()

    def estimate(t: Levels) -> tuple[Pixels, Pixels | float]:
        """xhat_0 from x_t ~ q(x_t | x_0), and v."""
        x_t = D(x0, t, randomness.normal(*shape))
        if isinstance(model, Spreading):
            x0hat, v = model.spread(x_t, t, UNCONDITIONAL)
            return x0hat.double(), v.double()
        return model.restore(x_t, t, torch.zeros_like(t), UNCONDITIONAL).double(), 0.0

    # KL(q(x_T | x_0) || N(0, std^2)), std the last sigma where noise is added to the image
    signal2, noise2 = D.signal.double() ** 2, D.noise.double() ** 2
    start2 = 1.0 if D.fades else noise2[T]
    end = (signal2[T] * x.square() / start2 + noise2[T] / start2 - 1 - (noise2[T] / start2).log()).flatten(1).sum(1) / 2

    count = T - 1 if levels is None else min(levels, T - 1)
    offset, between = randomness.uniform().double(), torch.zeros_like(end)
    log_snr = (signal2 / noise2.clamp(min=1e-20)).log()
    share = log_snr[1:T] - log_snr[2:]
    share = share / share.sum() / 2 + 1 / (2 * (T - 1))  # of t = 2..T; half of it uniform: no weight is extreme
    for i in range(count):
        if count == T - 1:
            t, weight = torch.full_like(offset, i + 2, dtype=torch.int64), torch.ones_like(offset)
        else:
            t = 2 + torch.searchsorted(share.cumsum(0), (i + offset) / count).clamp(max=T - 2)
            weight = 1 / (count * share[t - 2])
        x0hat, v = estimate(t)
        between += step_nats(D, x, x0hat, t, v) * weight

    x0hat, v = estimate(torch.ones(len(x0), dtype=torch.int64, device=x0.device))
    last = decoder_nats(D, x, x0hat, v)
    return torch.stack([end, between, last], 1) / (dims * math.log(2))


def bin_bits(
    x: Float[Tensor, "n c h w"], eps: Float[Tensor, "n c h w"], gamma_0: Float[Tensor, ""]
) -> Float[Tensor, " n"]:
    """-log2 p(x | z_0) summed over dimensions: which of 256 bins of [-1, 1] the noisy value x + e^(gamma_0 / 2) eps is from.

    The probability of a bin is proportional to the Gaussian density at its centre (Kingma et al. 2021,
    arXiv:2107.00630, eq. 9). Far bins have none: 32 on either side of the value are looked at.
    """
    y = x + torch.exp(gamma_0 / 2) * eps
    nearest = ((y + 1) * 128 - 0.5).round()
    precision = torch.exp(-gamma_0)
    logits = []
    for k in range(-32, 33):
        centre = (nearest + k + 0.5) / 128 - 1
        logit = -precision * (y - centre) ** 2 / 2
        logits.append(torch.where((nearest + k >= 0) & (nearest + k <= 255), logit, -math.inf))
    whole = torch.stack(logits).logsumexp(0)
    return (whole + precision * (y - x) ** 2 / 2).flatten(1).sum(1) / math.log(2)
