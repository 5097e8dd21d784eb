"""The exponential moving average of the weights, through Lightning's weight averaging."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from vcd import compat
from vcd.errors import UserError


class EMA(WeightAveraging):
    """Decay min(decay, (1 + n) / (10 + n)) at step n, so that early averages follow the weights.

    every: the average takes in the weights after every so many steps, the first among them. start: until so many steps
    were taken it is a copy of them. Cold diffusion as published (Bansal et al. 2022, code): every=10, start=2000.

    Checkpoints hold the average as `state_dict` and the raw weights as `current_model_state`; validation, and the
    module after training, have the average. `model.averaged` gives the averaged module at any time.
    """

    def __init__(self, *, decay: float, every: int = 1, start: int = 0):
        super().__init__(use_buffers=False, multi_avg_fn=self._average)
        if every < 1 or start < 0:
            raise UserError(f"callbacks.ema: every={every} must be at least 1, and start={start} at least 0 steps")
        self.decay, self.every, self.start, self._n = decay, every, start, 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx % self.every == 0

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _n_averaged: Any) -> None:
        decay = min(self.decay, (1 + self._n) / (10 + self._n)) if self._n > self.start else 0.0
        compat.lerp_(list(averaged), list(current), 1.0 - decay)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        average = compat.average_of(trainer)
        assert average is not None
        average.to(pl_module.device).eval()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._n = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, *args)
