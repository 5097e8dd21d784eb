"""What training runs on, and what it runs fastest with."""

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as L
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from vcd.callbacks.compiled import Compiled
from vcd.errors import UserError
from vcd.memory import Forecast

GAIN = 1.3  # bf16 is chosen where it is at least this many times as fast


def trainer(
    *,
    estimate_memory: bool = False,
    compile: bool | str = False,
    val_check_interval: int | None = None,
    accumulate_grad_batches: int = 1,
    enable_progress_bar: bool = True,
    callbacks: Sequence[L.Callback] = (),
    **options: Any,
) -> L.Trainer:
    """Lightning's Trainer with its own options, but val_check_interval is in steps, where Lightning counts batches.

    estimate_memory: a line says beforehand what memory a step takes. compile: the network and the encoder are compiled by
    torch.compile; a string names its backend. UserError where Lightning refuses an option, or SLURM has started other
    processes than devices and num_nodes say.
    """
    if estimate_memory:
        callbacks = [Forecast(), *callbacks]
    if compile:
        callbacks = [*callbacks, Compiled(backend=compile)]
    if not enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, L.callbacks.ProgressBar)]
    if val_check_interval is not None:
        val_check_interval *= accumulate_grad_batches
    try:
        made = L.Trainer(
            callbacks=list(callbacks), val_check_interval=val_check_interval, enable_progress_bar=enable_progress_bar,
            accumulate_grad_batches=accumulate_grad_batches, **options,
        )  # fmt: skip
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    started, devices, nodes = os.environ.get("SLURM_STEP_NUM_TASKS"), made.num_devices, made.num_nodes
    if started is not None and int(started) != devices * nodes:
        raise UserError(f"SLURM has started {started} processes, but trainer.devices={devices} and trainer.num_nodes={nodes} are "
                        f"{devices * nodes}: set hydra.launcher.tasks_per_node={devices} and hydra.launcher.nodes={nodes}")  # fmt: skip
    return made


def precision(device: torch.device, *, width: int, size: int) -> tuple[str, str]:
    """(Lightning's precision, why): bf16-mixed on GPUs that have it, and on CPUs whose convolutions of `width` channels
    at size x size gain from it, which is measured; else 32-true."""
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
