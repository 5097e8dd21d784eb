"""What training runs on, and what it runs fastest with."""

import statistics
import time
from typing import Any

import pytorch_lightning as L
import torch
from torch import nn

GAIN = 1.3  # bf16 is chosen where it is at least this many times as fast


def trainer(*, estimate_memory: bool = False, **options: Any) -> L.Trainer:
    """Lightning's Trainer, of its own options. estimate_memory: `vcd.train` says beforehand what a step will take."""
    return L.Trainer(**options)


def precision(device: torch.device, *, width: int, size: int) -> tuple[str, str]:
    """(Lightning's precision, why): bf16-mixed on GPUs that have it, and on CPUs whose convolutions of `width` channels
    at size x size gain from it, which is tried; else 32-true."""
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "the GPU has it") if has else ("32-true", "the GPU has no bf16")
    if device.type != "cpu":
        return "32-true", f"bf16 is not tried on {device.type}"
    gain = _seconds(torch.float32, width, size) / _seconds(torch.bfloat16, width, size)
    return ("bf16-mixed" if gain >= GAIN else "32-true"), f"convolutions in bf16 are {gain:.2f} times as fast here"


def _seconds(dtype: torch.dtype, width: int, size: int) -> float:
    """Of a convolution forwards and backwards, the median of five."""
    layer = nn.Conv2d(width, width, 3, padding=1).to(dtype)
    x = torch.randn(16, width, size, size, dtype=dtype).requires_grad_()
    taken = []
    for _ in range(7):
        began = time.perf_counter()
        layer(x).sum().backward()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])
