"""torch.compile of what a model spends its time in."""

import pytorch_lightning as L
import torch
from torch import nn

from vcd import compat
from vcd.errors import UserError
from vcd.models.base import Diffusion


class Compiled(L.Callback):
    """Compiles the model when training starts, and the averaged one that rolls out. Place it after the EMA."""

    def __init__(self, *, backend: str = "inductor"):
        if backend not in (known := torch.compiler.list_backends(exclude_tags=())):
            raise UserError(f"trainer.compile={backend} is not true, false or one of {', '.join(known)}")
        self.backend = backend

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Diffusion)
        for model in (pl_module, pl_module.averaged):
            if model is not None:
                compile_in_place(model, self.backend)


def compile_in_place(model: Diffusion, backend: str = "inductor") -> None:
    """torch.compile of model.network and model.encoder, under their names, so that checkpoints stay as they are.

    One graph each for training, for rolling out with dropout and for evaluation; t, s and the size of the batch (from
    16 images) are free. UserError where a CPU has no C++ compiler.
    """
    if backend == "inductor" and model.device.type == "cpu" and not compat.has_cpp_compiler():
        raise UserError("trainer.compile=true needs a C++ compiler on a CPU (g++, or the one that $CXX names); install one, "
                        "or leave trainer.compile=false")  # fmt: skip
    for part in ("network", "encoder"):
        if isinstance(module := getattr(model, part, None), nn.Module):
            compat.compile_for_any_batch(module, backend)
