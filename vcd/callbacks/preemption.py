"""Stopping within the step when a signal says so, with everything saved."""

from pathlib import Path
from typing import Any

import pytorch_lightning as L
import torch

from vcd.callbacks.checkpoint import validation_follows
from vcd.signals import Listener


class Preemption(L.Callback):
    """When `listener` hears a signal: `path` is saved at the end of this very step, and Stopped is raised.

    Where a validation follows the step, `Checkpoint` saves at its start; while it lasts the stop is at once, for a resume
    repeats it. Several processes stop at the same place: any of them being told is enough. Place it after `Checkpoint`.
    """

    def __init__(self, *, path: Path, listener: Listener):
        self.path, self.listener = path, listener
        self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen = trainer.global_step
        self.listener.listen()  # in place of Lightning's handlers, which are there since just before
        self.listener.patient = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._seen:  # amid the batches of one step
            return
        self._seen = trainer.global_step
        if not validation_follows(trainer) and self._asked(trainer, pl_module):
            trainer.save_checkpoint(self.path, weights_only=False)
            self.listener.obey()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_batch_end(trainer, pl_module)
        self.listener.listen()
        self.listener.patient = trainer.world_size > 1

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not trainer.sanity_checking and self._asked(trainer, pl_module):
            self.listener.obey()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.listener.patient = True

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.listener.patient = False

    def _asked(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        asked = self.listener.asked
        if trainer.world_size > 1:  # the largest signal number of all processes; 0: none
            told = torch.tensor(asked or 0, device=pl_module.device)
            asked = int(trainer.strategy.reduce(told, reduce_op="max")) or None
            self.listener.asked = asked
        return asked is not None
