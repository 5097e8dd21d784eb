"""The random choices of a training batch, and a way to make them repeatable."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def stratified(n: int, T: int, device: torch.device | str = "cpu") -> Int64[Tensor, " n"]:
    """n levels, each uniform on 1..T, together spread evenly: every level comes n/T times, rounded up or down.

    t = 1 + floor(T (i + u) / n) with one u for all and i in random order (Kingma et al. 2021, arXiv:2107.00630, I.1).
    """
    i = torch.randperm(n, device=device)
    u = torch.rand((), device=device)
    return 1 + (T * (i + u) / n).long().clamp(max=T - 1)


def flipped(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
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
