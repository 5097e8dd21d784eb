"""The learning rate over the course of training, as a factor on the optimiser's `lr`; counted in steps."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(optimizer: Optimizer, *, warmup: int) -> LambdaLR:
    """Linear from 0 over `warmup` steps, then 1."""
    return LambdaLR(optimizer, lambda n: _ramp(n, warmup))


def cosine(optimizer: Optimizer, *, warmup: int, steps: int, floor: float) -> LambdaLR:
    """Linear from 0 over `warmup` steps, then half a cosine down to `floor` at `steps`."""

    def factor(n: int) -> float:
        progress = min(1.0, max(0, n - warmup) / max(1, steps - warmup))
        return _ramp(n, warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    return LambdaLR(optimizer, factor)


def staircase(optimizer: Optimizer, *, every: int, factor: float) -> LambdaLR:
    """Times `factor` every `every` steps."""
    return LambdaLR(optimizer, lambda n: factor ** (n // every))


def _ramp(n: int, warmup: int) -> float:
    return min(1.0, (n + 1) / warmup) if warmup else 1.0
