"""What all variants share: parts, optimiser, logging by name and unit, sampling."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytorch_lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Normal

from vcd.batch import Degraded
from vcd.degradations.base import Degradation
from vcd.metrics.levels import PerLevel
from vcd.perturbations import Perturbation, Shown
from vcd.predictions import Prediction
from vcd.randomness import PerImage
from vcd.samplers import Sampler, Trajectory
from vcd.starts import Natural, Start

REPORT = "report"  # in a checkpoint: what is logged of its step


@dataclass
class Losses:
    """total: the scalar to minimise; terms: values per image, each named with its unit."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, " b"]]


class Diffusion(L.LightningModule, ABC):
    """A degradation and a network that undoes it. Concrete classes say what the objective is and where z comes from."""

    def __init__(
        self, *, degradation: Degradation, prediction: Prediction, perturbation: Perturbation, network: nn.Module,
        start: Start | Natural, sampler: Sampler, optimizer: Callable, scheduler: Callable,
    ):  # fmt: skip
        super().__init__()
        prediction.bind(degradation)
        self.degradation, self.prediction, self.perturbation = degradation, prediction, perturbation
        sampler.bind(degradation, prediction)
        self.network, self.start, self.sampler = network, start.bind(degradation), sampler
        self.optimizer, self.scheduler = optimizer, scheduler
        self.averaged: Callable[[], Diffusion | None] = lambda: None  # the EMA callback sets it
        self.levels = PerLevel(T=degradation.T)

    @abstractmethod
    def losses(self, batch: Degraded) -> Losses:
        """The objective on a batch."""

    def shown(self, batch: Degraded) -> Shown:
        """The states that stand in for x_t: perturbed in training, on the true path in validation."""
        return self.perturbation(batch, self) if self.training else self.perturbation.on_true_path(batch)

    def encode(self, x_t: Tensor, x_s: Tensor, t: Int[Tensor, " b"], s: Int[Tensor, " b"]) -> Normal | None:
        """q(z_t | x_t, x_s); None for a model without latents."""
        return None

    def latents(self, randomness: PerImage) -> Float[Tensor, "T n d"] | None:
        """Latents for unconditional sampling; None for a model without."""
        return None

    def teacher(self, warm: bool) -> "Diffusion":
        """Who rolls out: the averaged weights, or these while warming up."""
        return self if warm else self.averaged() or self

    def restore(
        self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], s: Int[Tensor, " b"], z: Tensor | None
    ) -> Float[Tensor, "b c h w"]:
        """xhat_s from x_t."""
        return self.prediction.read(self.network(x_t, t, s, z), x_t, t, s)

    @torch.no_grad()
    def sample(self, randomness: PerImage, most: int | None = None) -> Trajectory:
        """Unconditional samples, one for every image of `randomness`; most: how many states to keep, None for all."""
        x_T = self.start.sample(randomness)
        return self.sampler(self, x_T, self.latents(randomness), randomness, most=most)

    def finish(self, x0: Iterable[Float[Tensor, "b c h w"]]) -> None:
        """What is fitted after training; x0: the training images in batches, again and again."""

    @property
    def step(self) -> int:
        """Optimiser steps taken; 0 outside training."""
        return self.global_step if self._trainer is not None else 0

    def training_step(self, batch: Degraded, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        self.levels.update(losses.terms, batch.t)
        self.log("loss", losses.total.detach(), prog_bar=True, logger=False)
        return losses.total

    def on_train_batch_end(self, *_) -> None:
        if self.global_step % self.trainer.log_every_n_steps == 0:
            self._log_levels("train")

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        if self.global_step % self.trainer.log_every_n_steps:
            checkpoint["levels"] = self.levels.pack()
        else:  # logged right after this, if nothing happens in between
            checkpoint[REPORT] = {name: float(value) for name, value in self._report("train").items()}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if self.trainer.is_global_zero:  # it holds what all of them had gathered
            self.levels.unpack(checkpoint.get("levels", {}))

    def on_validation_epoch_start(self) -> None:
        self.levels.reset()  # what training has gathered since its last report is dropped

    def validation_step(self, batch: Degraded, batch_idx: int) -> None:
        with torch.random.fork_rng():  # comparable from one validation to the next
            torch.manual_seed(batch_idx)
            self.levels.update(self.losses(batch).terms, batch.t)

    def on_validation_epoch_end(self) -> None:
        self._log_levels("val")

    def _log_levels(self, stage: str) -> None:
        self.log_dict(self._report(stage))
        self.levels.reset()

    def _report(self, stage: str) -> dict[str, Tensor]:
        """The means since the last one."""
        means = self.levels.compute() if self.levels.count.sum() > 0 else {}
        return {f"{stage}/{name}": value for name, value in means.items()}

    def configure_optimizers(self):
        optimizer = self.optimizer(p for p in self.parameters() if p.requires_grad)
        optimizer._step_supports_amp_scaling = (
            False  # bf16 has no scaler; else Lightning refuses to clip before a fused step
        )
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": "step"}]
