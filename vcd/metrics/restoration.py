"""How well test images come back from level t: from their own latents, from the prior's, and in one step."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from vcd import steering
from vcd.batch import Condition
from vcd.images import to_float, to_uint8
from vcd.models.base import Diffusion
from vcd.randomness import PerImage

WINDOW = 7  # of SSIM, uniform


def fidelity(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> dict[str, Float[Tensor, " n"]]:
    """PSNR in dB, SSIM (uniform 7x7 windows at every pixel, the border reflected) and MSE (in [-1, 1] units) of every image of a against b, as 8-bit images."""
    a, b = (to_uint8(x).float() / 255 for x in (a, b))  # SSIM wants black to be 0
    psnr = peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(
        a, b, data_range=1.0, reduction="none", gaussian_kernel=False, kernel_size=WINDOW
    )
    return {"psnr": psnr, "ssim": ssim.reshape(-1), "mse": 4 * (a - b).square().flatten(1).mean(1)}


def lpips(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, ""] | None:
    """The mean LPIPS with AlexNet (Zhang et al. 2018, arXiv:1801.03924); None where its weights are not on this machine.

    Images below 32 pixels are enlarged to that, nearest neighbour: AlexNet takes no smaller ones.
    """
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as distance

    if not list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-*.pth")):
        return None
    a, b = (to_float(to_uint8(x)).expand(-1, 3, -1, -1) for x in (a, b))
    if a.shape[-1] < 32:
        a, b = (torch.nn.functional.interpolate(x, size=32) for x in (a, b))
    return distance(a, b, net_type="alex")


@torch.no_grad()
def restored(
    model: Diffusion, x0: Float[Tensor, "n c h w"], level: int, randomness: PerImage
) -> dict[str, Float[Tensor, "n c h w"]]:
    """x0 degraded to `level` and brought back, by every way the model has."""
    D, t = model.degradation, torch.full((len(x0),), level, device=x0.device)
    x_t, ways = D(x0, t, D.draw(x0, randomness)), {}
    latents = model.latents(randomness)
    ways["prior" if latents is not None else "sequential"] = model.sampler(
        model, x_t, randomness.take(), latents=latents, level=level, keep=2
    ).x0
    if model.has_latents:
        path, _ = steering.encode(steering.variational(model), x0, randomness.take(), level=level)
        ways["posterior"] = steering.decode(steering.variational(model), path, keep=2, level=level).x0
    if model.prediction.answers(t, torch.zeros_like(t)).all():
        s = torch.zeros_like(t)
        z = latents(x_t, t, s) if callable(latents) else None if latents is None else latents[level - 1]
        ways["one_step"] = model.restore(x_t, t, s, Condition(z=z))
    return ways
