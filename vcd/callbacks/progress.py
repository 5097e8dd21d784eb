"""The progress bar: ETA of the whole run, and images a second."""

import time

from pytorch_lightning.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """One bar for the run (its stream of batches is one epoch), with the loss and the images seen a second."""

    def __init__(self, *, batch_size: int, refresh_rate: int = 10):
        super().__init__(refresh_rate=refresh_rate)
        self.batch_size = batch_size
        self._since: tuple[float, int] | None = None

    def on_train_start(self, trainer, pl_module) -> None:
        super().on_train_start(trainer, pl_module)
        self.train_progress_bar.total = self.total_train_batches  # a resumed epoch does not start, for Lightning
        self._since = (time.monotonic(), trainer.global_step)

    def on_train_epoch_start(self, trainer, *args) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer, pl_module) -> dict[str, str | float]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if self._since and trainer.global_step > self._since[1]:
            rate = (trainer.global_step - self._since[1]) * self.batch_size / (time.monotonic() - self._since[0])
            shown["images/s"] = f"{rate:.0f}"
        return shown
