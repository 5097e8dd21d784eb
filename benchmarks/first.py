"""A callback that says when the first step is done."""

import pytorch_lightning as L


class FirstStep(L.Callback):
    """Prints a line after the first step of training."""

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == 1:
            print("the first step is done", flush=True)
