"""The random choices of a training batch."""

import torch
from jaxtyping import Shaped
from torch import Tensor


def flipped(x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
    """Each image mirrored left to right with probability 1/2."""
    coin = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(coin, x.flip(-1), x)
