"""The random choices of a training batch, and a way to make them repeatable."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Shaped
from torch import Tensor


def flipped(x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b c h w"]:
    """Each image mirrored left to right with probability 1/2."""
    coin = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(coin, x.flip(-1), x)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random state as after `manual_seed(seed)`; outside it, on the CPU and on `device`, nothing changes."""
    accelerator = device.type not in ("cpu", "mps")
    kind = device.type if accelerator else "cuda"
    with torch.random.fork_rng(devices=[device] if accelerator else [], device_type=kind):
        torch.manual_seed(seed)
        yield
