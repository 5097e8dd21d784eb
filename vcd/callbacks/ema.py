"""The exponential moving average of the weights, through Lightning's weight averaging."""

import torch
from pytorch_lightning.callbacks import WeightAveraging

from vcd import compat


class EMA(WeightAveraging):
    """Decay min(decay, (1 + n) / (10 + n)) at step n, so that early averages follow the weights.

    Checkpoints hold the average as `state_dict` and the raw weights as `current_model_state`; validation, and the
    module after training, have the average. `model.averaged` gives the averaged module at any time.
    """

    def __init__(self, *, decay: float):
        super().__init__(use_buffers=False, multi_avg_fn=self._average)
        self.decay, self._n = decay, 0

    def _average(self, averaged, current, _n_averaged) -> None:
        torch._foreach_lerp_(averaged, current, 1.0 - min(self.decay, (1 + self._n) / (10 + self._n)))

    def on_fit_start(self, trainer, pl_module) -> None:
        average = compat.average_of(trainer)
        assert average is not None
        average.to(pl_module.device).eval()

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self._n = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, *args)
