"""What all variants share: parts, optimiser, logging by name and unit, sampling."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as L
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.distributions import Normal

import vcd
from vcd import compat, self_conditioning
from vcd.batch import UNCONDITIONAL, UNTOLD, Condition, Degraded
from vcd.bounds import Bound
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.guess import Guess, Guided
from vcd.levels import Levels
from vcd.monitoring import PerLevel
from vcd.perturbations import Perturbation, Shown, Teacher
from vcd.predictions import Prediction
from vcd.randomness import PerImage
from vcd.restorer import Restorer
from vcd.samplers import Latents, Sampler, Trajectory
from vcd.spaces import Pixels, Space
from vcd.starts import Start

REPORT = "report"  # in a checkpoint: what is logged of its step
Batches = Iterator[Float[Tensor, "b c h w"]]


@dataclass(frozen=True)
class Losses:
    """total: the scalar to minimise; terms: values per image, each named with its unit."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, " b"]]


class Diffusion(L.LightningModule, ABC):
    """A degradation and a network that undoes it. Concrete classes say what the objective is and where z comes from.

    start: a `Start`, or a function of the degradation that makes one. guess: what is refined; None: images are made from
    x_T alone. unlabelled: the share of the images that are trained without their label, where the network is told of
    classes, so that it can do without: what takes no label, as bounds, priors and restoration, is asked so. optimizer: a
    function of the parameters; None where nothing is trained. scheduler: a function of the optimiser; None keeps its
    learning rate.
    """

    has_latents = False
    learns_variance = False

    def __init__(
        self, *, degradation: Degradation, prediction: Prediction, perturbation: Perturbation, network: nn.Module,
        start: Start | Callable[[Degradation], Start], sampler: Sampler, space: Space | None = None,
        guess: Guess | None = None, unlabelled: float = 0.1, optimizer: Callable | None = None,
        scheduler: Callable | None = None,
    ):  # fmt: skip
        super().__init__()
        prediction.check(degradation)
        if prediction.outputs > 1 and not self.learns_variance:
            raise UserError(
                "prediction=eps_variance is for model=ddpm: other models do not learn the variance of a step"
            )
        if getattr(network, "outputs", prediction.outputs) != prediction.outputs:
            raise UserError(f"this prediction needs network.unet.outputs={prediction.outputs}")
        sampler.check(degradation, prediction)
        self.degradation, self.prediction, self.perturbation = degradation, prediction, perturbation
        self.network, self.sampler = network, sampler
        self.self_conditioning: bool = getattr(network, "self_conditioning", False)
        self.start = start if isinstance(start, Start) else start(degradation)
        self.space, self.guess = Pixels() if space is None else space, guess
        if not 0.0 <= unlabelled <= 1.0:
            raise UserError(f"model.unlabelled={unlabelled} is a share of the images: it must lie between 0 and 1")
        self.unlabelled = unlabelled
        if guess is not None:
            guess.check(degradation.T, self.has_latents)
        if self.self_conditioning:
            self_conditioning.check(type(self).__name__.lower(), self.has_latents, sampler, degradation.T)
        if self.space.shape not in (None, self.start.shape):
            raise UserError(
                f"space.channels and space.size make x of shape {self.space.shape}, start.channels and start.size "
                f"{self.start.shape}: leave both of start out, and it follows space"
            )
        self.optimizer, self.scheduler = optimizer, scheduler
        self.levels = PerLevel(T=degradation.T)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's is no plain method
        cls, checkpoint_path: Any, map_location: Any = None, hparams_file: Any = None, strict: bool | None = None,
        weights_only: bool = True, **parts: Any,
    ) -> "Diffusion":  # fmt: skip
        """The model of a checkpoint, in eval mode.

        Without `parts`: of one that vcd.train wrote, which says itself how the model is built; `vcd.load` has more
        choices. With `parts`, the constructor's arguments: of one that a plain Trainer wrote, as Lightning has it.
        UserError where the checkpoint is missing, damaged, or holds another class.
        """
        if parts:
            model = super().load_from_checkpoint(
                checkpoint_path, map_location=map_location, hparams_file=hparams_file, strict=strict,
                weights_only=weights_only, **parts,
            )  # fmt: skip
            return model.eval()
        model = vcd.load(checkpoint_path, "cpu" if map_location is None else map_location).model
        if not isinstance(model, cls):
            raise UserError(
                f"ckpt={checkpoint_path} holds a {type(model).__name__}, not a {cls.__name__}: take vcd.load"
            )
        return model

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(c, h, w) of the images; x has the shape of `start`, which may be another."""
        return tuple(self.space.decode(torch.zeros(1, *self.start.shape, device=self.device)).shape[1:])

    @property
    def classes(self) -> int | None:
        """How many classes the network can be told of; None: it knows no labels."""
        return getattr(self.network, "classes", None)

    @abstractmethod
    def losses(self, batch: Degraded) -> Losses:
        """The objective on a batch."""

    def bound(self, x0: Float[Tensor, "n c h w"], randomness: PerImage) -> Bound | None:
        """The variational bound of these images; None for a model without one."""
        return None

    def likelihood(
        self, images: UInt8[Tensor, "n c h w"], randomness: PerImage, *, steps: int
    ) -> Float[Tensor, " n"] | None:
        """-log2 p per dimension of dequantised images, in `steps` steps; None for a model without a density."""
        return None

    def shown(self, batch: Degraded) -> Shown:
        """The states that stand in for x_t: perturbed in training, on the true path in validation."""
        return self.perturbation(batch, self) if self.training else self.perturbation.on_true_path(batch)

    def encode(self, x_t: Tensor, x_s: Tensor, t: Levels, s: Levels, x0hat: Tensor | None = None) -> Normal | None:
        """q(z_t | x_t, x_s); None for a model without latents."""
        return None

    def latents(self, randomness: PerImage) -> Latents:
        """Latents for unconditional sampling, or the rule that draws them on the way; None for a model without."""
        return None

    def ask(self, x_t: Tensor, t: Levels, s: Levels, condition: Condition) -> Tensor:
        """The network's output at x_t."""
        told = condition if self.self_conditioning else condition.seen(None)
        return self.network(self.degradation.normalise(x_t, t), t, s, told)

    def restore(
        self, x_t: Float[Tensor, "b c h w"], t: Levels, s: Levels, condition: Condition = UNCONDITIONAL
    ) -> Float[Tensor, "b c h w"]:
        """xhat_s from x_t."""
        return self.prediction.read(self.ask(x_t, t, s, condition), x_t, t, s, self.degradation)

    @torch.no_grad()
    def sample(
        self, randomness: PerImage, *, condition: Condition = UNCONDITIONAL, keep: int | None = None
    ) -> Trajectory:
        """Unconditional samples, one for every image of `randomness`; keep: how many states to keep, None for all.

        With a guess: refinements of guesses that are drawn first, unless `condition` has one.
        """
        if self.guess is not None and condition.image is None:
            told = self.guess.condition(self.guess.draw(randomness.apart()), self.space)
            condition = replace(told, label=condition.label)
        x, level = self.begin(condition, randomness)
        return self.walk(x, randomness, latents=self.latents(randomness), condition=condition, level=level, keep=keep)

    def begin(self, condition: Condition, randomness: PerImage) -> tuple[Float[Tensor, "n c h w"], int | None]:
        """Where sampling begins: x_T and None; or the degraded guess, and its level."""
        if self.guess is None or self.guess.level is None or condition.image is None:
            return self.start.sample(randomness), None
        D, level = self.degradation, self.guess.level
        t = torch.full((len(randomness),), level, device=condition.image.device)
        return D(condition.image, t, D.draw(condition.image, randomness)), level

    @torch.no_grad()
    def walk(
        self, x: Float[Tensor, "n c h w"], randomness: PerImage, *, latents: Latents = None,
        condition: Condition = UNCONDITIONAL, level: int | None = None, keep: int | None = None,
    ) -> Trajectory:  # fmt: skip
        """From x at `level` (None: T) to x_0 by the model's sampler, guided where the guess has a weight."""
        guided: Restorer = Guided(self, self.guess) if self.guess is not None and self.guess.weight else self
        return self.sampler(guided, x, randomness, latents=latents, condition=condition, level=level, keep=keep)

    def check_alone(self) -> None:
        """UserError where the model has never been asked without a first guess, and a degraded image has none."""
        if self.guess is not None and self.guess.drop == 0:
            raise UserError("this model has only learned to refine a first guess, which a degraded image does not have: "
                            "train with guess.drop=0.1 to restore without")  # fmt: skip

    def told(self, batch: Degraded) -> Degraded:
        """The batch with a first guess of its images, where the model refines one; in training, some without their label."""
        if self.training and self.classes and self.unlabelled:
            kept = torch.rand(len(batch.label), device=batch.label.device) >= self.unlabelled
            batch = replace(batch, label=batch.label.where(kept, UNTOLD))
        return batch if self.guess is None else self.guess.tell(batch, self.space)

    def fit_prior(self, x0: Batches) -> None:
        """Fit, after training, where latents come from; x0: an endless iterator of batches of training images."""

    @property
    def averaged(self) -> "Diffusion | None":
        """The model with the averaged weights, in a training that keeps them."""
        average = compat.average_of(compat.trainer_of(self))
        return average if isinstance(average, Diffusion) else None

    def teacher(self, live: bool) -> "Diffusion":
        """Who rolls out: these weights, or the averaged ones."""
        return self if live else self.averaged or self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout, meanwhile."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    @property
    def step(self) -> int:
        """Optimiser steps taken; 0 outside training."""
        return 0 if compat.trainer_of(self) is None else self.global_step

    def training_step(self, batch: Degraded, batch_idx: int) -> Tensor:
        losses = self.losses(self.told(batch))
        self.levels.update(losses.terms, batch.t)
        if batch.weight is not None:  # from levels that are drawn by what they cost
            t, loss = (compat.gathered(self, x) for x in (batch.t, losses.terms["loss"].detach()))
            compat.data_of(self.trainer).level_sampler.learn(t, loss, self.degradation)
        self.log("loss", losses.total.detach(), prog_bar=True, logger=False)
        return losses.total

    def on_train_batch_end(self, *_: Any) -> None:
        if self._logs():
            self._log_levels("train")

    def _logs(self) -> bool:
        """Whether Lightning logs after this step: every so often, and after the last one, where `should_stop` is set."""
        return self.trainer.should_stop or self.global_step % compat.logging_steps(self.trainer) == 0

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        if not self._logs():
            checkpoint["levels"] = self.levels.pack()
        else:  # logged right after this, if nothing happens in between
            checkpoint[REPORT] = {name: float(value) for name, value in self._report("train").items()}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        trainer = compat.trainer_of(self)
        if trainer is not None and trainer.is_global_zero:  # it holds what all of them had gathered
            self.levels.unpack(checkpoint.get("levels", {}))

    def on_validation_epoch_start(self) -> None:
        self.levels.reset()  # what training has gathered since its last report is dropped

    def validation_step(self, batch: Degraded, batch_idx: int) -> None:
        with torch.random.fork_rng():  # comparable from one validation to the next
            torch.manual_seed(batch_idx)
            self.levels.update(self.losses(self.told(batch)).terms, batch.t)

    def on_validation_epoch_end(self) -> None:
        self._log_levels("val")

    def _log_levels(self, stage: str) -> None:
        self.log_dict(self._report(stage))
        self.levels.reset()

    def _report(self, stage: str) -> dict[str, Tensor]:
        """The means since the last report."""
        means = self.levels.compute() if self.levels.count.sum() > 0 else {}
        return {f"{stage}/{name}": value for name, value in means.items()}

    def configure_optimizers(self) -> Any:
        if self.optimizer is None:
            raise UserError("this model was built to sample: to train it, give it an optimizer")
        optimizer = self.optimizer(p for p in self.parameters() if p.requires_grad)
        compat.allow_clipping(optimizer)
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": "step"}]


# isinstance of Python 3.12 and later does not see the parts that nn.Module keeps for it.
Teacher.register(Diffusion)  # type: ignore[type-abstract]
