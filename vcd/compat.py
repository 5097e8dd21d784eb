"""The private names of torch, Lightning and Hydra that the project needs, each in one small function.

They may change with any release: pyproject.toml bounds the versions, and this file is the one to look at when a bound
is raised. Imports are inside, so that a command pays only for what it uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from hydra.plugins.launcher import Launcher
    from omegaconf import DictConfig
    from pytorch_lightning import LightningModule, Trainer
    from torch import Tensor, nn
    from torch.optim import Optimizer


# --- torch ------------------------------------------------------------------------------------------------------------


def lerp_(ends: "list[Tensor]", others: "list[Tensor]", weight: float) -> None:
    """ends += weight * (others - ends), all tensors in one call; torch has no public name for it."""
    import torch

    torch._foreach_lerp_(ends, others, weight)


def compile_for_any_batch(module: "nn.Module", backend: str) -> None:
    """`module.compile`, whose graphs hold for batches of any size from the first on.

    `dynamic=True` would free every dimension; `mark_dynamic` has to be called on the tensors of every call, which only
    the compiled call itself sees.
    """
    import torch

    module.compile(backend=backend)
    compiled: Callable = module._compiled_call_impl  # type: ignore[assignment]

    def call(*arguments: Any) -> Any:
        for argument in arguments:  # tensors, and a Condition that holds some
            for part in vars(argument).values() if is_dataclass(argument) else (argument,):
                if isinstance(part, torch.Tensor):
                    torch._dynamo.maybe_mark_dynamic(part, 0)
        return compiled(*arguments)

    module._compiled_call_impl = call  # type: ignore[assignment]


def has_cpp_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU; it only says so in the first forward pass."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


# --- Lightning --------------------------------------------------------------------------------------------------------


def trainer_of(module: "LightningModule") -> "Trainer | None":
    """The trainer that a module is attached to; `module.trainer` raises where there is none."""
    return module._trainer


def data_of(trainer: "Trainer") -> Any:
    """The data module that a trainer fits with."""
    return trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it from elsewhere


def gathered(module: "LightningModule", x: "Tensor") -> "Tensor":
    """One after the other, what all processes have of a tensor of one dimension."""
    whole: Any = module.all_gather(x)  # with a dimension in front, where there are several
    return whole.flatten()


def average_of(trainer: "Trainer | None") -> "nn.Module | None":
    """The averaged weights of a training under way; Lightning keeps them in the callback."""
    from pytorch_lightning.callbacks import WeightAveraging

    callbacks = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it from elsewhere
    for callback in callbacks:
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            return callback._average_model.module
    return None


def logging_steps(trainer: "Trainer") -> int:
    """Steps from one row of metrics to the next."""
    return trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it from elsewhere


def allow_clipping(optimizer: "Optimizer") -> None:
    """Let Lightning clip gradients before a fused step: bf16 has no gradient scaler that could be in the way."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def begin_with_validation(checkpoint: dict[str, Any]) -> None:
    """Let the training that resumes from this checkpoint begin with the validation before which it was saved.

    Lightning goes on with a validation only where a checkpoint says that one of its batches was under way.
    """
    begun = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    begun["ready"] += 1
    begun["started"] += 1


def log_at(trainer: "Trainer", step: int) -> None:
    """What is logged next belongs to this step, counted from 0.

    Lightning's own count is off by one after a resume where the checkpoint was saved before a validation that is no
    longer due, because trainer.val_check_interval has changed.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


# --- Hydra ------------------------------------------------------------------------------------------------------------


def basic_launcher() -> "type[Launcher]":
    """Hydra's own launcher, which does one job after the other, for launchers that derive from it."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    return BasicLauncher


def is_group(loader: "ConfigLoader", name: str) -> bool:
    """Whether the name is a config group."""
    return loader.repository.group_exists(name)  # type: ignore[attr-defined]


def apply_overrides(overrides: "Sequence[Override]", config: "DictConfig") -> None:
    """Set, add and delete the values that parsed overrides name: what Hydra does after it has composed the groups."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)
