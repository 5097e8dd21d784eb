"""torch.compile of what a model spends its time in."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as L
import torch
from torch import nn

from vcd.errors import UserError


class Compiled(L.Callback):
    """Compiles the model when training starts, and the averaged one that rolls out. Place it after the EMA."""

    def __init__(self, *, backend: str = "inductor"):
        self.backend = backend

    def on_fit_start(self, trainer, pl_module) -> None:
        for model in (pl_module, pl_module.averaged):
            if model is not None:
                compile_in_place(model, self.backend)


def compile_in_place(model: nn.Module, backend: str = "inductor") -> None:
    """torch.compile of model.network and model.encoder, under their names, so that checkpoints stay as they are.

    One graph each for training, for rolling out with dropout and for evaluation; t, s and the size of the batch (from
    16 images) are free. UserError where a CPU has no C++ compiler.
    """
    if backend == "inductor" and next(model.parameters()).device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise UserError("trainer.compile=true needs a C++ compiler on a CPU (g++, or the one that $CXX names); install one, "
                            "or leave trainer.compile=false") from error  # fmt: skip
    for module in (model.network, getattr(model, "encoder", None)):
        if module is not None:
            module.compile(backend=backend)
            module._compiled_call_impl = _any_batch(module._compiled_call_impl)


def _any_batch(compiled: Callable) -> Callable:
    """The compiled call, made for batches of any size from the first on."""

    def call(*tensors: torch.Tensor | None) -> Any:
        for tensor in tensors:
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(*tensors)

    return call
