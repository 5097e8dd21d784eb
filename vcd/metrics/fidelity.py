"""How like one image is to another, pixel by pixel: of 8-bit images, as files and eyes have them."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from vcd.spaces import to_float

WINDOW = 7  # of SSIM, uniform
CEILING = 60.0  # dB: the PSNR of equal images, and the most there is, as libvmaf has it for 8 bits


def fidelity(a: UInt8[Tensor, "n c h w"], b: UInt8[Tensor, "n c h w"]) -> dict[str, Float[Tensor, " n"]]:
    """Of every image of a against b: PSNR in dB, at most `CEILING`, so that one exact image leaves a mean finite; SSIM
    (uniform 7x7 windows at every pixel, the border reflected); MSE in [-1, 1] units."""
    x, y = (images.float() / 255 for images in (a, b))  # SSIM wants black to be 0
    psnr = peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(
        x, y, data_range=1.0, reduction="none", gaussian_kernel=False, kernel_size=WINDOW
    )
    assert isinstance(ssim, Tensor)  # not the pair with contrast sensitivities
    return {
        "psnr": psnr.clamp(max=CEILING),
        "ssim": ssim.reshape(-1),
        "mse": 4 * (x - y).square().flatten(1).mean(1),
    }


def lpips(a: UInt8[Tensor, "n c h w"], b: UInt8[Tensor, "n c h w"]) -> Float[Tensor, ""] | None:
    """The mean LPIPS with AlexNet (Zhang et al. 2018, arXiv:1801.03924); None where its weights are not on this machine.

    Images below 32 pixels are enlarged to that, nearest neighbour: AlexNet takes no smaller ones.
    """
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as distance

    if not list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-*.pth")):
        return None
    x, y = (to_float(images).expand(-1, 3, -1, -1) for images in (a, b))
    if x.shape[-1] < 32:
        x, y = (torch.nn.functional.interpolate(images, size=32) for images in (x, y))
    return distance(x, y, net_type="alex")
