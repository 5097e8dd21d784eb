"""Images in, degraded images out: what every variant trains on."""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vcd.batch import Degraded
from vcd.data.base import ImageData, Images
from vcd.data.draws import flipped
from vcd.data.stream import TrainStream, ValidationPairs, permutation
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.levels import Levels, LevelSampler, Stratified
from vcd.predictions import Prediction
from vcd.seeds import seeded
from vcd.spaces import Pixels, Space


class DegradationDataModule(L.LightningDataModule):
    """Loads the images, draws the levels and degrades on the device, for every model alike.

    Training is one stream of `steps` batches (see `TrainStream`), None: as many as the Trainer's max_steps take; the levels, flips and eps are drawn from torch's
    global random state. Validation has the same images, levels and randomness every time, never flipped, and leaves
    the global random state as it was. `batch_size` and `val_batch_size` are totals over all processes;
    `val_images` is about how many (image, level) pairs a validation has (see `ValidationPairs`).

    Examples:
        >>> from vcd.data.digits import Digits
        >>> from vcd.degradations.fade import Fade
        >>> from vcd.predictions import Xt
        >>> from vcd.schedules import Cosine
        >>> D = Fade(T=4, size=8, schedule=Cosine())
        >>> data = DegradationDataModule(dataset=Digits(), degradation=D, prediction=Xt())
        >>> next(data.train_batches(10)).shape
        torch.Size([10, 1, 8, 8])
    """

    def __init__(
        self,
        *,
        dataset: ImageData,
        degradation: Degradation,
        prediction: Prediction,
        space: Space | None = None,
        level_sampler: LevelSampler | None = None,
        batch_size: int = 64,
        steps: int | None = None,
        flip: bool = False,
        seed: int = 0,
        val_batch_size: int | None = None,
        val_images: int = 2000,
    ) -> None:
        super().__init__()
        self.dataset, self.degradation, self.prediction = dataset, degradation, prediction
        self.space = Pixels() if space is None else space
        self.level_sampler = Stratified() if level_sampler is None else level_sampler
        self.batch_size, self.steps, self.flip, self.seed = batch_size, steps, flip, seed
        self.val_batch_size, self.pairs = val_batch_size or batch_size, val_images

    def prepare_data(self) -> None:
        self.dataset.prepare()

    def setup(self, stage: str | None = None) -> None:
        _ = self.train_images, self.val_images

    @cached_property
    def train_images(self) -> Images:
        return self.dataset.load("train")

    @cached_property
    def val_images(self) -> Images:
        return self.dataset.load("val")

    def picture_batch(self, n: int) -> Float[Tensor, "n c h w"]:
        """A fixed, class-balanced batch of validation images."""
        return self.space.encode(self.val_images.balanced(n))

    def train_batches(self, n: int = 512) -> Iterator[Float[Tensor, "b c h w"]]:
        """All training images once, in a fixed random order, n at a time, not flipped: for what is fitted to them."""
        yield from map(self.space.encode, self.image_batches(n))

    def image_batches(self, n: int = 512) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """The same as bytes."""
        for index in np.array_split(permutation(0, 0, len(self.train_images)), math.ceil(len(self.train_images) / n)):
            yield self.train_images.batch(index)

    def train_dataloader(self) -> TrainStream:
        rank, world_size = self._ranks()
        return TrainStream(
            self.train_images,
            batch_size=self.batch_size,
            steps=self._steps(),
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )

    def val_dataloader(self) -> ValidationPairs:
        rank, world_size = self._ranks()
        return ValidationPairs(
            self.val_images,
            T=self.degradation.T,
            batch_size=self.val_batch_size,
            pairs=self.pairs,
            rank=rank,
            world_size=world_size,
        )

    def _steps(self) -> int:
        """Batches of the stream; UserError where nobody has said how many."""
        if self.steps is not None:
            return self.steps
        if self.trainer is None or self.trainer.max_steps < 1:
            raise UserError("say how long training is: Trainer(max_steps=...), or steps=... of the data module")
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def state_dict(self) -> dict[str, Any]:
        """What the level sampler has learned."""
        return self.level_sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.level_sampler.load_state_dict(state_dict)

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Degraded:
        """Batches of the validation loader bring their own t and seed; the others are training batches."""
        images, D = batch["images"], self.degradation
        if "t" in batch:
            with seeded(batch["seed"], images.device):
                return self._degrade(self.space.encode(images), batch["t"], batch["label"])
        x0 = self.space.encode(flipped(images) if self.flip else images)
        t = self.level_sampler.draw(len(x0), D, x0.device)
        return self._degrade(x0, t, batch["label"], self.level_sampler.weights(t, D))

    def _degrade(
        self,
        x0: Float[Tensor, "b c h w"],
        t: Levels,
        label: Int64[Tensor, " b"],
        weight: Float[Tensor, " b"] | None = None,
    ) -> Degraded:
        s = self.prediction.level(t)
        with torch.autocast(x0.device.type, enabled=False):
            eps = self.degradation.draw(x0)
            return Degraded(x0, t, s, self.degradation(x0, t, eps), self.degradation(x0, s, eps), eps, label, weight)
