"""The likelihood that models with noise on every state have: inverse heat dissipation, and VCD and VWD with latents."""

import logging
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vcd import bounds
from vcd.bounds import Bound, Quantity
from vcd.levels import Levels
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.samplers import Sequential

Images = Float[Tensor, "n c h w"]
Restore = Callable[[Images, Images, Levels, Levels], tuple[Images, Float[Tensor, " n"]]]
log = logging.getLogger("vcd")


@torch.no_grad()
def noisy_path(model: Diffusion, x0: Images, randomness: PerImage, restore: Restore) -> Bound | None:
    """-log2 P(x_0) per dimension at most, for images of 256 values (Rissanen et al. 2022, arXiv:2206.13397, section 3).

      KL(q(u_T | x_0) || p(u_T)) + sum_t KL(q(u_s | x_0) || p(u_s | u_t)) - log P(x_0 | u_1)   [+ KL(q(z_t) || p(z_t))]

    with q(u_t | x_0) = N(D(x_0, t), sigma^2), sigma the noise of training, and p(u_s | u_t) = N(xhat_s, delta^2), delta
    that of sampling. restore: xhat_s from u_t, the true x_s, t and s, and the nats of its latent, 0 where there is none.

    None, and a line in the log that says why, where sampling is not this chain: without noise, with another sampler than
    sequential, from images that are not of the next level, for a random degradation, or from a start whose density is not
    known.
    """
    D, sampler, sigma, delta = model.degradation, model.sampler, model.perturbation.sigma, model.sampler.delta
    levels = sampler.grid(D.T)
    why, start = _no_chain(model), None
    if why is None:
        start = model.start.nats(D(x0, torch.full((len(x0),), D.T, device=x0.device)), sigma, delta)
    if start is None:
        why = why or f"no density is known of a start of {type(model.start).__name__}, as start=train_set has one"
        log.warning("no bits per dimension of a %s: %s", type(model).__name__, why)
        return None
    bits = 1 / (x0[0].numel() * math.log(2))
    parts = {"start": start, "steps": torch.zeros_like(start), "decoder": torch.zeros_like(start)}
    table: list[dict[str, float]] = []
    latents = torch.zeros_like(start)
    for level in reversed(levels[:-1]):
        t = torch.full((len(x0),), level, device=x0.device)
        s = sampler.below(t, D.T)
        x_s = D(x0, s)
        xhat_s, latent = restore(D(x0, t) + sigma * randomness.normal(*x0.shape[1:]), x_s, t, s)
        last = not s.any()
        step = (
            bounds.bin_nats(x0, xhat_s, torch.tensor(delta))
            if last
            else _apart(Normal(x_s, sigma), Normal(xhat_s, delta))
        )
        parts["decoder" if last else "steps"] += step
        latents += latent
        table.append({"t": level, "bits_per_dim": ((step + latent).mean() * bits).item()})
    if model.has_latents:
        parts["latents"] = latents
    terms = {name: (value.mean() * bits).item() for name, value in parts.items()}
    protocol = {
        "draws": "1 path per image", "sigma": sigma, "delta": delta, "decoder": "Gaussian of std delta over 256 bins",
    }  # fmt: skip
    return Bound(
        {"bits_per_dim": Quantity(sum(terms.values()), "lower", "bits")}, protocol, {"bound": terms, "levels": table}
    )


def _no_chain(model: Diffusion) -> str | None:
    """Why sampling is not the chain of `noisy_path`; None where it is."""
    sampler, levels = model.sampler, torch.tensor(model.sampler.grid(model.degradation.T))
    if model.degradation.stochastic:
        return "its degradation is random"
    if not isinstance(sampler, Sequential):
        return f"the bound is that of sampler=sequential, not of {type(sampler).__name__}"
    if not (sampler.ask(levels[:-1], levels[1:]) == levels[1:]).all():
        return "its steps do not go through images of the next level, as those of prediction=xt and vxt do"
    if not model.perturbation.sigma > 0:
        return "it is trained without noise on its states (perturbation.sigma)"
    return None if sampler.delta > 0 else "sampling has no noise (sampler.delta)"


def _apart(q: Normal, p: Normal) -> Float[Tensor, " n"]:
    return kl_divergence(q, p).flatten(1).sum(1)
