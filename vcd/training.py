"""The training of one run, step by step: build, begin or resume, fit, finish."""

import contextlib
import itertools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytorch_lightning as L
import torch
from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch import Tensor
from tqdm import tqdm

from vcd import checkpoints, curves, hardware, labels, seeds, stages
from vcd.callbacks.checkpoint import Checkpoint, LastStep
from vcd.callbacks.heartbeat import Heartbeat
from vcd.callbacks.pictures import Pictures
from vcd.callbacks.preemption import Preemption
from vcd.callbacks.timing import Timing
from vcd.data.datamodule import DegradationDataModule
from vcd.errors import NotFinite
from vcd.loggers import CSVMetrics
from vcd.models.base import REPORT, Diffusion
from vcd.quiet import quiet
from vcd.resolvers import register_resolvers
from vcd.runs import RunFolder
from vcd.signals import Listener
from vcd.tracking import Tracker

log = logging.getLogger("vcd")
register_resolvers()  # a config may reach `build` without vcd.train, in a process that was spawned, or composed by hand


def train(cfg: DictConfig, run: RunFolder, listener: Listener) -> None:
    """Fit, from the last checkpoint where there is one; leave pictures and curves; mark the run as finished."""
    quiet()
    training = prepare(cfg, run, listener)
    training.announce()
    with training.tracked():
        training.fit()
        if training.complete:
            training.fit_priors()
            training.conclude()


# --- build ------------------------------------------------------------------------------------------------------------


def prepare(cfg: DictConfig, run: RunFolder, listener: Listener) -> "Training":
    """All that the config names, built; begun anew, or from the last checkpoint. What follows knows no config."""
    seeds.everything(cfg.seed)
    model = build(cfg)
    data = datamodule(cfg, model)
    if model.classes is not None:
        labels.check(model, len(data.train_images.classes))
    metrics = CSVMetrics(path=run.path / "metrics.csv")
    begun = resume(run, metrics)
    if begun.step == 0:
        stages.fill(model, stage1=cfg.stage1, autoencoder=cfg.space.get("ckpt"))
        model.space.fit(data.image_batches())
        model.start.fit(data.train_batches(), model.degradation)
    else:
        log.info("resuming at step %d of %d", begun.step, cfg.trainer.max_steps)
    cfg.trainer.precision = choose_precision(cfg, begun.precision)
    config: dict = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]  # it is a mapping
    trackers = [tracker(config=config, resumed=begun.step > 0) for tracker in instantiate(cfg.logger).values()]
    saving = [  # after those whose state counts
        Heartbeat(run=run),
        LastStep(),
        Timing(path=run.path / "times.csv"),
        Checkpoint(run=run, config=config, every=cfg.checkpoint_every, keep=cfg.keep_every),
        Preemption(path=run.last, listener=listener),
    ]
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    trainer = instantiate(cfg.trainer, _partial_=True)(
        callbacks=[*instantiate(cfg.callbacks).values(), *saving],
        logger=[metrics, *trackers],
        plugins=[checkpoints.AtomicCheckpointIO(), *slurm],
        default_root_dir=run.path,
    )
    return Training(
        run=run, listener=listener, begun=begun, model=model, data=data, trainer=trainer, metrics=metrics, trackers=trackers
    )  # fmt: skip


def build(cfg: DictConfig) -> Diffusion:
    """The model, with its degradation built once: whoever else needs it takes `model.degradation`."""
    model = instantiate(cfg.model, _partial_=True, _convert_="all")  # plain lists: optimisers put them into checkpoints
    space = instantiate(cfg.space) if "space" in cfg else None
    return model(degradation=instantiate(cfg.degradation), space=space)


def datamodule(cfg: DictConfig, model: Diffusion) -> DegradationDataModule:
    """The node `data`, less the place of the data sets, with what the run and the model decide."""
    node: dict = OmegaConf.to_container(cfg.data, resolve=True)  # type: ignore[assignment]  # it is a mapping
    node.pop("root", None)
    return instantiate(node)(
        dataset=instantiate(cfg.dataset.source),
        degradation=model.degradation,
        prediction=model.prediction,
        space=model.space,
        level_sampler=instantiate(cfg.level_sampler),
        batch_size=cfg.batch_size,
        steps=cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches,
        flip=cfg.dataset.flip,
        seed=cfg.seed,
    )


@dataclass(frozen=True)
class Begun:
    """What an earlier start left: steps taken, the precision, which a run keeps wherever it goes on, and whether the prior
    is fitted already, and so the last validation done."""

    step: int = 0
    precision: str | None = None
    fitted: bool = False


def resume(run: RunFolder, metrics: CSVMetrics) -> Begun:
    """What the last checkpoint says; the rows of metrics.csv that belong to it are taken over."""
    if not run.last.exists():
        return Begun()
    saved = checkpoints.read(run.last)
    begun = Begun(
        step=saved["global_step"],
        precision=saved[checkpoints.CONFIG]["trainer"]["precision"],
        fitted=saved.get(checkpoints.FITTED, False),
    )
    metrics.resume(begun.step, saved.get(REPORT, {}))
    return begun


def choose_precision(cfg: DictConfig, began: str | None) -> str:
    """What trainer.precision means here; a run keeps the one with which it began."""
    chosen = cfg.trainer.precision
    if chosen != "auto":
        return began or chosen
    device = torch.device("cpu" if cfg.trainer.accelerator == "cpu" else checkpoints.device_of("auto"))
    if began:
        chosen, why = began, "as the run began"
    elif device.type == "cpu" and cfg.trainer.get("strategy"):
        chosen, why = "32-true", "several processes, whose trials could differ"
    else:
        size = cfg.network.unet.size // cfg.network.unet.get("patch", 1)
        chosen, why = hardware.precision(device, width=cfg.network.unet.dim, size=size)
    log.info("precision: %s (%s)", chosen, why)
    return chosen


# --- train ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Training:
    """One start of a run, from what `prepare` built of its config to the last picture."""

    run: RunFolder
    listener: Listener
    begun: Begun
    model: Diffusion
    data: DegradationDataModule
    trainer: L.Trainer
    metrics: CSVMetrics
    trackers: list[Tracker]

    @property
    def complete(self) -> bool:
        """Whether all steps are taken; one process finishes what several have trained."""
        return self.trainer.is_global_zero and self.trainer.global_step >= self.trainer.max_steps

    def announce(self) -> None:
        """A line that says what is trained."""
        log.info("%s: %.2f M parameters, %d training images, T=%d, %d steps of %d images on %s",
                 type(self.model).__name__, sum(p.numel() for p in self.model.parameters()) / 1e6,
                 len(self.data.train_images), self.model.degradation.T, self.trainer.max_steps, self.data.batch_size,
                 self.trainer.strategy.root_device)  # fmt: skip

    @contextlib.contextmanager
    def tracked(self) -> Iterator[None]:
        """wandb and TensorBoard, given what was logged before this start, and closed afterwards, however it ends."""
        try:
            for tracker in self.trackers:
                tracker.start(self.metrics.before(self.begun.step), self.run.path / "pictures")
            yield
        finally:
            for tracker in self.trackers:
                tracker.finish(failed=sys.exc_info()[0] is not None)

    def fit(self) -> None:
        """Train to the end. What was saved before the last validation has nothing left to train, and is validated."""
        trainer, begun = self.trainer, self.begun
        trainer.fit(self.model, self.data, ckpt_path=self.run.last if begun.step else None)
        self.listener.obey()
        if begun.step == trainer.max_steps and not begun.fitted and trainer.enable_validation:
            trainer.validate(self.model, self.data, verbose=False)
            self.listener.obey()

    def fit_priors(self) -> None:
        """Fit the prior of every checkpoint to its averaged weights. The model is left with those of the last one."""
        model = self.model.to(self.trainer.strategy.root_device)
        for path in (*sorted(self.run.path.glob("step-*.ckpt")), self.run.last):
            if checkpoints.load_weights(model, path):  # fitted by an earlier start
                continue
            with seeds.seeded(self.data.seed, model.device):  # whatever happened on the way here
                try:
                    model.fit_prior(
                        endless(self.data, of=path.name, bar=self.trainer.progress_bar_callback is not None)
                    )
                except NotFinite as error:  # the weights are worth keeping
                    log.warning("the prior of %s stays standard normal: %s", path.name, error)
            with self.listener.patiently():
                checkpoints.store_buffers(path, model)

    def conclude(self) -> None:
        """The last pictures, the curves, and the status that says that all is done."""
        step = self.trainer.global_step
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Pictures):
                log.info("drawing the last pictures")
                if (drawn := callback.draw(self.model, self.run.path)) is not None:
                    for tracker in self.trackers:
                        tracker.conclude(*drawn, step=step - 1)
        curves.draw(self.metrics.path, self.run.path / "curves.png")
        losses = curves.curve(curves.read(self.metrics.path), "val/loss")[1]
        self.run.set_status("finished", step=step, steps=step, val_loss=losses[-1] if losses else None)


def endless(data: DegradationDataModule, *, of: str, bar: bool) -> Iterator[Float[Tensor, "b c h w"]]:
    """Training images, again and again, in batches; a bar counts them."""
    log.info("fitting the prior of %s: training images are encoded, then a distribution is fitted to their latents", of)
    with tqdm(desc="encoded for the prior", unit=" images", file=sys.stdout, disable=not bar) as counted:
        for _ in itertools.count():
            for batch in data.train_batches():
                counted.update(len(batch))
                yield batch
