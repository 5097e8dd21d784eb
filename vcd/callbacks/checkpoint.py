"""last.ckpt: saved every so often and at the end, with all that an exact resume needs."""

import logging
import random
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as L
import torch
from pytorch_lightning.trainer.states import TrainerFn

from vcd import __version__, compat, seeds
from vcd.checkpoints import CONFIG, VERSION
from vcd.errors import UserError
from vcd.files import atomic, explained

if TYPE_CHECKING:
    from vcd.runs import RunFolder

log = logging.getLogger("vcd")


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning validates right after the training batch that has just ended."""
    if not trainer.enable_validation:
        return False
    interval, batches = trainer.val_check_batch, trainer.fit_loop.total_batch_idx + 1
    return trainer.global_step == trainer.max_steps or (interval is not None and batches % interval == 0)


class LastStep(L.Callback):
    """The last step is logged and validated, wherever the intervals of logging and validation fall."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True


class Checkpoint(L.Callback):
    """Saves every `every` steps, before every validation, and after the last step. Place it after every callback whose
    state counts.

    Where a validation follows a step, its start saves, and a training that resumes from there begins with it, so that
    nothing is left unmeasured. (After the last step Lightning has nothing to go on with: `vcd.training` repeats that
    validation.)

    config: that of the run, which checkpoints hold. keep: every so many steps a copy stays, step-0000500.ckpt, for curves
    of what is measured afterwards; None: none.
    """

    def __init__(self, *, run: "RunFolder", config: dict[str, Any], every: int, keep: int | None = None):
        self.run, self.config, self.every, self.keep = run, config, every, keep
        self._seen = 0  # the last step that was looked at: a step may be several batches, and is saved after its last

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen = trainer.global_step
        if self._seen:
            self._copy(trainer)  # which a kill right after the save may have prevented

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        compat.log_at(trainer, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen:
            return
        self._seen = step
        due = step % self.every == 0 or step == trainer.max_steps or self._kept(trainer)
        if due and not validation_follows(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG], checkpoint[VERSION] = self.config, __version__
        if trainer.validating:
            compat.begin_with_validation(checkpoint)

    def _save(self, trainer: L.Trainer) -> None:
        self.run.check()
        trainer.save_checkpoint(self.run.last, weights_only=False)
        self._copy(trainer)

    def _kept(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        return self.keep is not None and step % self.keep == 0 and step < trainer.max_steps

    def _copy(self, trainer: L.Trainer) -> None:
        path = self.run.path / f"step-{trainer.global_step:07d}.ckpt"
        if self._kept(trainer) and trainer.is_global_zero and not path.exists():
            with explained(path), atomic(path) as temporary:
                shutil.copyfile(self.run.last, temporary)


class RandomState(L.Callback):
    """Python's, NumPy's and torch's random states travel with the checkpoint.

    Several processes that train together each draw their own noise, and each goes on with its own; where a run goes on
    with another number of processes, from fresh noise.
    """

    def state_dict(self) -> dict[str, Any]:
        if not _together():
            return _draws()
        states: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, _draws())
        return {"processes": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restored last of all, when nothing before the first batch draws any more."""
        state = self.__dict__.pop("_state", None)
        states = None if state is None else state.get("processes", [state])
        if states is not None and len(states) == trainer.world_size:
            _draw_on(states[trainer.global_rank])
        elif states is not None or trainer.world_size > 1:
            if states is not None:
                log.warning(
                    "trained by %d processes so far, now by %d: the noise is drawn afresh",
                    len(states),
                    trainer.world_size,
                )
            torch.manual_seed(seeds.mix(torch.initial_seed(), trainer.global_step, trainer.global_rank))


def _together() -> bool:
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _draws() -> dict[str, Any]:
    """The random states of this process, as plain types."""
    state: Any = np.random.get_state()  # a tuple, for it is not asked for a dict
    kind, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _draw_on(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class StopOnNonFinite(L.Callback):
    """A loss that is not finite stops the run; nothing saved afterwards, so last.ckpt stays finite.

    The check is gathered on the device and read when metrics are logged and before every save.
    """

    def __init__(self) -> None:
        self.finite: torch.Tensor | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        ok = torch.isfinite(outputs["loss"])
        self.finite = ok if self.finite is None else self.finite & ok
        if trainer.global_step % compat.logging_steps(trainer) == 0:
            self._check(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        weights = torch.stack([p.isfinite().all() for p in pl_module.parameters()]).all()
        self.finite = weights if self.finite is None else self.finite & weights
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        if self.finite is not None and not bool(self.finite):
            raise UserError(
                f"the loss or a weight is no longer finite at step {trainer.global_step}; last.ckpt is from before: "
                "try a smaller optimizer.lr, trainer.gradient_clip_val=1 or trainer.precision=32-true"
            )
