"""Stopping within the step when a signal says so, with everything saved."""

from pathlib import Path

import pytorch_lightning as L
import torch

from vcd.signals import Listener


class Preemption(L.Callback):
    """On SIGUSR2 or SIGTERM: `path` is saved at the end of this very step, and Preempted is raised.

    In a validation nothing is saved and the stop is at once: `Checkpoint` saved just before it. Place it after
    `Checkpoint`. Several processes stop at the same step: any of them being told is enough.
    """

    def __init__(self, *, path: Path):
        self.path, self.listener = path, Listener()
        self._seen = 0

    def on_train_start(self, trainer, pl_module) -> None:
        self._seen = trainer.global_step
        self.listener.start()  # in place of Lightning's handlers, which are there since just before

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == self._seen:  # amid the batches of one step
            return
        self._seen = trainer.global_step
        if self._asked(trainer, pl_module):
            trainer.save_checkpoint(self.path, weights_only=False)
            self.listener.obey()

    def on_validation_batch_end(self, trainer, pl_module, *_) -> None:
        if self._asked(trainer, pl_module):
            self.listener.obey()

    def _asked(self, trainer, pl_module) -> bool:
        asked = self.listener.asked
        if trainer.world_size > 1:  # the largest signal number of all processes; 0: none
            asked = (
                int(trainer.strategy.reduce(torch.tensor(asked or 0, device=pl_module.device), reduce_op="max")) or None
            )
            self.listener.asked = asked
        return asked is not None

    def teardown(self, trainer, pl_module, stage) -> None:
        self.listener.stop()

    def on_exception(self, trainer, pl_module, exception) -> None:
        self.listener.stop()
