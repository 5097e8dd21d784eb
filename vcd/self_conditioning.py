"""Self-conditioning: network and encoder read the xhat_0 of the step before (Chen et al. 2022, arXiv:2208.04202).

The noise of a state hides what earlier steps have said in fine detail; their estimate does not, so latents need not say it
again.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.batch import Degraded
from vcd.errors import UserError
from vcd.levels import per_image

if TYPE_CHECKING:
    from vcd.models.base import Diffusion
    from vcd.models.variational import Variational

SEEN = 0.75  # of the images of a batch read an estimate; the others learn the first step, which has none


def check(model: "Diffusion") -> None:
    """UserError where a model's network reads an estimate that there is not."""
    if not model.self_conditioning:
        return
    if not model.has_latents:
        raise UserError(f"network.unet.self_conditioning=true: model={type(model).__name__.lower()} is not trained with it; "
                        "vcd, vwd and plain are")  # fmt: skip
    t = torch.arange(1, model.degradation.T + 1)
    if model.sampler.ask(t, t - 1).any():
        raise UserError("network.unet.self_conditioning=true shows the network the clean image as the step before saw it: "
                        "take prediction=x0 and sampler=cold, or another sampler that asks for the clean image")  # fmt: skip


@torch.no_grad()
def seen_before(model: "Variational", batch: Degraded) -> Float[Tensor, "b c h w"]:
    """xhat_0 from the true x_{t+1} with a latent of the encoder; zeros at T, and in training for some images."""
    T = model.degradation.T
    t = (batch.t + 1).clamp(max=T)
    clean = torch.zeros_like(t)
    with model.evaluating():
        v = model.perturbation.noisy(model.degradation(batch.x0, t, batch.eps))
        z = model.encode(v, batch.x0, t, clean).sample()
        x0hat = model.restore(v, t, clean, batch.condition.given(z))
    kept = batch.t < T
    if model.training:
        kept &= torch.rand(len(kept), device=kept.device) < SEEN
    return x0hat * per_image(kept.to(x0hat.dtype))
