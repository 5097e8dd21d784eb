"""Samples and sequences under fixed latents, so that their pictures can be compared over the run."""

import logging
from pathlib import Path

import pytorch_lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from vcd.errors import NotFinite
from vcd.images import write_gif, write_png
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.spaces import Space
from vcd.tracking import Tracker

log = logging.getLogger("vcd")


def write_sequences(path: Path, states: Float[Tensor, "levels n c h w"], space: Space, columns: int = 13) -> Path:
    """Draw x_T .. x_0, one image per row, in no more than `columns` of the states, which begin with x_0."""
    last = len(states) - 1
    shown = torch.linspace(last, 0, min(last + 1, columns)).round().long()
    rows = states[shown.to(states.device)].transpose(0, 1).flatten(0, 1)
    return write_png(path, space.decode(rows).cpu(), columns=len(shown))


FRAMES = 25  # states of a trajectory that pictures and animations show at most


class Pictures(L.Callback):
    """At every validation: samples, and the sequences x_T .. x_0, from the averaged weights, as PNG and in wandb or TensorBoard.

    At the end also sequences.gif. n: samples in a grid; rows: sequences.
    """

    def __init__(self, *, folder: str | Path, n: int = 64, rows: int = 8, seed: int = 0):
        self.folder, self.n, self.rows, self.seed = Path(folder), n, rows, seed

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Diffusion)
        model = pl_module.averaged or pl_module
        if (drawn := self.draw(model, self.folder / "pictures", f"{trainer.global_step:07d}")) is None:
            return
        samples, sequences = drawn
        for logger in trainer.loggers:
            if isinstance(logger, Tracker):
                logger.show({"samples": samples, "sequences": sequences}, step=trainer.global_step - 1)  # as metrics

    def draw(self, model: Diffusion, folder: Path, suffix: str = "") -> tuple[Path, Path] | None:
        """Write samples.png and sequences.png (with a suffix) into `folder`; None, and a warning, where sampling diverges."""
        with model.evaluating():
            trajectory = model.sample(PerImage(self.seed, range(self.n), model.device), keep=FRAMES)
        try:
            images = [model.space.decode(x).cpu() for x in trajectory.states]
        except NotFinite as error:  # training may mend it
            log.warning("no pictures: %s", error)
            return None
        suffix = f"-{suffix}" if suffix else ""
        samples = write_png(folder / f"samples{suffix}.png", images[0])
        sequences = write_sequences(folder / f"sequences{suffix}.png", trajectory.states[:, : self.rows], model.space)
        if not suffix:
            write_gif(folder / "sequences.gif", images[::-1])
        return samples, sequences
