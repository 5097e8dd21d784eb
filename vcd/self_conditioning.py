"""Self-conditioning: network and encoder read the xhat_0 of the step before (Chen et al. 2022, arXiv:2208.04202).

The noise of a state hides what earlier steps have said in fine detail; their estimate does not, so latents need not say it
again. Rollouts of VCD walk without it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.batch import Degraded
from vcd.errors import UserError
from vcd.levels import per_image
from vcd.perturbations import Perturbation, Teacher
from vcd.samplers import Sampler

SEEN = 0.75  # of the images of a batch read an estimate; the others learn the first step, which has none


def check(model: str, has_latents: bool, sampler: Sampler, T: int) -> None:
    """UserError where a model's network would read an estimate that there is not."""
    if not has_latents:
        raise UserError(
            f"network.unet.self_conditioning=true: model={model} is not trained with it; vcd, vwd and plain are"
        )
    t = torch.arange(1, T + 1)
    if sampler.ask(t, t - 1).any():
        raise UserError("network.unet.self_conditioning=true shows the network the clean image as the step before saw it: "
                        "take prediction=x0 and sampler=cold, or another sampler that asks for the clean image")  # fmt: skip


@torch.no_grad()
def seen_before(
    model: Teacher, perturbation: Perturbation, batch: Degraded, training: bool
) -> Float[Tensor, "b c h w"]:
    """xhat_0 from the true x_{t+1} with a latent of the encoder; zeros at T, and in training for some images."""
    D = model.degradation
    t = (batch.t + 1).clamp(max=D.T)
    clean = torch.zeros_like(t)
    with model.evaluating():
        v = perturbation.noisy(D(batch.x0, t, batch.eps))
        q = model.encode(v, batch.x0, t, clean)
        x0hat = model.restore(v, t, clean, batch.condition.given(None if q is None else q.sample()))
    kept = batch.t < D.T
    if training:
        kept &= torch.rand(len(kept), device=kept.device) < SEEN
    return x0hat * per_image(kept.to(x0hat.dtype))
