"""last.ckpt: saved every so often and at the end, with all that an exact resume needs."""

import logging
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch

from vcd.checkpoints import CONFIG
from vcd.errors import UserError

log = logging.getLogger("vcd")


class Checkpoint(L.Callback):
    """Saves every `every` steps, before every validation, and after the last step. Place it after every callback whose
    state counts. What was saved before a validation begins with it again, so that nothing is left unmeasured. (After the
    last step Lightning has nothing to go on with: `vcd.train` repeats that validation.)

    keep: every so many steps a copy stays, step-0000500.ckpt, for curves of what is measured afterwards; None: none.
    """

    def __init__(self, *, path: Path, every: int, config: dict[str, Any], keep: int | None = None):
        self.path, self.every, self.config, self.keep = path, every, config, keep
        self._seen = 0  # the last step that was looked at: a step may be several batches, and is saved after its last

    def on_train_start(self, trainer, pl_module) -> None:
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer, *_) -> None:
        step, last = trainer.global_step, trainer.global_step == trainer.max_steps
        if step == self._seen:
            return
        self._seen = step
        kept = self.keep is not None and step % self.keep == 0 and not last
        if step % self.every == 0 or last or kept:
            trainer.save_checkpoint(self.path, weights_only=False)
        if kept and trainer.is_global_zero:
            temporary = self.path.with_name(f".step-{step:07d}")
            shutil.copyfile(self.path, temporary)
            temporary.replace(self.path.with_name(f"step-{step:07d}.ckpt"))

    def on_validation_start(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        checkpoint[CONFIG] = self.config
        if trainer.validating:  # Lightning begins a validation again when it was left within a batch
            begun = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
            begun["ready"] += 1
            begun["started"] += 1


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

    def on_train_start(self, trainer, pl_module) -> None:
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
            key = (torch.initial_seed(), trainer.global_step, trainer.global_rank)
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _together() -> bool:
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _draws() -> dict[str, Any]:
    """The random states of this process, as plain types."""
    numpy = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]),
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

    def on_train_batch_end(self, trainer, pl_module, outputs, *_) -> None:
        ok = torch.isfinite(outputs["loss"])
        self.finite = ok if self.finite is None else self.finite & ok
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._check(trainer)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        weights = torch.stack([p.isfinite().all() for p in pl_module.parameters()]).all()
        self.finite = weights if self.finite is None else self.finite & weights
        self._check(trainer)

    def _check(self, trainer) -> None:
        if self.finite is not None and not bool(self.finite):
            raise UserError(
                f"the loss or a weight is no longer finite at step {trainer.global_step}; last.ckpt is from before: "
                "try a smaller optimizer.lr, trainer.gradient_clip_val=1 or trainer.precision=32-true"
            )
