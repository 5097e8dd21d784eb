"""Whether samples are copies of training images, and whether they cover the classes."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vcd.images import to_float


def nearest(
    images: UInt8[Tensor, "n c h w"],
    train: UInt8[Tensor, "m c h w"],
    device: torch.device | str = "cpu",
    chunk: int = 4096,
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """The root-mean-square distance of every image, in [-1, 1] units, to its nearest training image, and which that is."""
    x = to_float(images.to(device)).flatten(1)
    best, which = torch.full((len(x),), torch.inf, device=device), torch.zeros(len(x), dtype=torch.int64, device=device)
    for first in range(0, len(train), chunk):
        distance, at = torch.cdist(x, to_float(train[first : first + chunk].to(device)).flatten(1)).min(1)
        closer = distance < best
        best, which = torch.where(closer, distance, best), torch.where(closer, at + first, which)
    return (best / x.shape[1] ** 0.5).cpu(), which.cpu()


def total_variation(a: Int[Tensor, " n"], b: Int[Tensor, " m"], classes: int) -> float:
    """Half the sum of |p - q| over classes, between two sets of labels: 0 equal, 1 disjoint."""
    p, q = (torch.bincount(x, minlength=classes).double() / len(x) for x in (a, b))
    return (p - q).abs().sum().item() / 2
