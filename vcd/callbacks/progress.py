"""The progress bar: ETA of the whole run, and images per second."""

import sys
import time
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm


class Progress(ProgressBar):
    """One bar for the run, in steps, with the loss and the images seen per second; a second one while it validates."""

    def __init__(self, *, batch_size: int, refresh_rate: int = 10):
        super().__init__()
        self.batch_size, self.every = batch_size, refresh_rate
        self._off = False
        self._bars: list[tqdm] = []  # training's and, below it, validation's
        self._since = (0.0, 0)

    def disable(self) -> None:
        self._off = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = (time.monotonic(), trainer.global_step)
        self._open("training", trainer.max_steps, trainer.global_step, "step")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step != self._bars[0].n and (step % self.every == 0 or step == trainer.max_steps):
            self._show(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bars:
            self._show(trainer)
        self._open("validation", int(sum(trainer.num_val_batches)), 0, "batch")

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._bars[-1].update()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bars.pop().close()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, what: str, total: int, done: int, unit: str) -> None:
        bar = tqdm(desc=what, total=total, initial=done, unit=unit, file=sys.stdout, disable=self._off,
                   leave=not self._bars, dynamic_ncols=True)  # fmt: skip
        self._bars.append(bar)

    def _show(self, trainer: L.Trainer) -> None:
        bar, (began, first) = self._bars[0], self._since
        shown = {key: f"{float(value):.4g}" for key, value in trainer.progress_bar_metrics.items()}
        rate = (trainer.global_step - first) * self.batch_size / max(time.monotonic() - began, 1e-9)
        bar.n = trainer.global_step
        bar.set_postfix(shown | {"images/s": f"{rate:.0f}"})

    def _close(self) -> None:
        while self._bars:
            self._bars.pop().close()
