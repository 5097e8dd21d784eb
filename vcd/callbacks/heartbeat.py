"""How far a run is, for those who look at its folder."""

import time
from typing import TYPE_CHECKING, Any

import pytorch_lightning as L

if TYPE_CHECKING:
    from vcd.runs import RunFolder


class Heartbeat(L.Callback):
    """status.json: step, steps, loss and seconds per step, every few `seconds` of training.

    UserError where the folder has been deleted meanwhile. Place it before whatever writes there.
    """

    def __init__(self, *, run: "RunFolder", seconds: float = 5.0):
        self.run, self.seconds = run, seconds
        self._began = self._last = 0.0
        self._from = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began, self._from = time.monotonic(), trainer.global_step
        self._last = self._began
        self.run.set_status("running", step=trainer.global_step, steps=trainer.max_steps)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.run.check()
        now, step = time.monotonic(), trainer.global_step
        if step > self._from and (now - self._last >= self.seconds or step == trainer.max_steps):
            self._last = now
            each = (now - self._began) / (step - self._from)
            self.run.set_status("running", step=step, loss=float(outputs["loss"]), seconds_per_step=round(each, 6))
