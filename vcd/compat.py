"""The private names of torch, Lightning and Hydra that the project uses, one function each, and why.

pyproject.toml bounds the versions of these packages: a new one is admitted once this file works with it.
"""

import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import nn


def trainer_of(module: L.LightningModule) -> L.Trainer | None:
    """The trainer that a module is attached to; `module.trainer` raises where there is none."""
    return module._trainer


def average_of(trainer: L.Trainer | None) -> nn.Module | None:
    """The averaged weights of a training under way; Lightning keeps them in the callback."""
    callbacks = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it from elsewhere
    for callback in callbacks:
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            return callback._average_model.module
    return None


def allow_clipping(optimizer: torch.optim.Optimizer) -> None:
    """Let Lightning clip gradients before a fused step: bf16 has no gradient scaler that could be in the way."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
