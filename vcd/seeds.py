"""Every seed of the project is set here, and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix(*numbers: int) -> int:
    """A well-mixed 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def everything(seed: int) -> None:
    """Seed Python, NumPy and torch, in this process and in those that Lightning starts."""
    import pytorch_lightning as L

    L.seed_everything(seed, verbose=False)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random state as after `manual_seed(seed)`; outside it, on the CPU and on `device`, nothing changes."""
    accelerator = device.type not in ("cpu", "mps")
    kind = device.type if accelerator else "cuda"
    with torch.random.fork_rng(devices=[device] if accelerator else [], device_type=kind):
        torch.manual_seed(seed)
        yield
