"""torch.compile of what a model spends its time in."""

import pytorch_lightning as L
import torch
from torch import nn

from vcd import compat
from vcd.errors import UserError
from vcd.models.base import Diffusion


class Compiled(L.Callback):
    """Compiles the model when training starts, and the averaged one that rolls out. Place it after the EMA."""

    def __init__(self, *, backend: bool | str = True):
        self.backend = backend_of(backend, "trainer.compile")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Diffusion)
        for model in (pl_module, pl_module.averaged):
            if model is not None:
                compile_in_place(model, self.backend)


def backend_of(chosen: bool | str, key: str) -> str:
    """What `key` names; true is inductor. UserError where torch has no such backend."""
    known = torch.compiler.list_backends(exclude_tags=())
    if (backend := "inductor" if chosen is True else str(chosen)) not in known:
        raise UserError(f"{key}={backend} is not true, false or one of {', '.join(known)}")
    return backend


def compile_in_place(model: Diffusion, backend: str = "inductor", key: str = "trainer.compile") -> None:
    """torch.compile of model.network and model.encoder, under their names, so that checkpoints stay as they are.

    One graph each for training, for rolling out with dropout and for evaluation; t, s and the size of the batch (from
    16 images) are free. UserError where a CPU has no C++ compiler.
    """
    if backend == "inductor" and model.device.type == "cpu" and not compat.has_cpp_compiler():
        raise UserError(f"{key}=true needs a C++ compiler on a CPU (g++, or the one that $CXX names); install one, "
                        f"or leave {key}=false")  # fmt: skip
    for part in ("network", "encoder"):
        if isinstance(module := getattr(model, part, None), nn.Module):
            compat.compile_for_any_batch(module, backend)
