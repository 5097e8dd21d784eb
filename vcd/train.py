"""python -m vcd.train: train a model, resume it, or say that it is finished."""

import itertools
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vcd.cli import entry, explain
from vcd.runs import RunFolder, register_resolvers
from vcd.signals import Preempted

if TYPE_CHECKING:
    import torch

    from vcd.data.datamodule import DegradationDataModule
    from vcd.models.base import Diffusion

log = logging.getLogger("vcd")
register_resolvers()


@entry("train")
def main(cfg: DictConfig) -> float | None:
    """Train the model of `cfg` in its run folder; print where pictures, curves and checkpoint are.

    Returns the last validation loss, for hydra/sweeper=optuna.
    """
    run = RunFolder(cfg).open()
    if run.finished:
        log.info("this run is finished, there is nothing to do; another seed or another key makes another run")
    else:
        with run.held():
            attempt(cfg, run)
    for name, file in run.results():
        log.info("%-11s %s", name, file)
    return run.status.get("val_loss")


def attempt(cfg: DictConfig, run: RunFolder) -> None:
    """Train; however that ends, the run's status says so."""
    try:
        run.set_status("running")
        train(cfg, run)
    except Preempted as stop:
        run.set_status("preempted")
        log.info("told to stop (%s): saved; the same command goes on from there", signal.Signals(stop.signum).name)
        stop.hand_over()
        raise
    except SystemExit:  # told to stop before there was anything to save
        run.set_status("preempted")
        raise
    except KeyboardInterrupt:
        run.set_status("cancelled")
        raise
    except BaseException as error:
        run.fail(error, explain(error, "train"))
        raise


def train(cfg: DictConfig, run: RunFolder) -> None:
    """Fit, from the last checkpoint where there is one; leave pictures and curves; mark the run as finished."""
    if cfg.threads:  # before anything reads them; torch, NumPy and scikit-learn would each take all cores
        for library in ("OMP", "OPENBLAS", "MKL"):
            os.environ.setdefault(f"{library}_NUM_THREADS", str(cfg.threads))
    import pytorch_lightning as L
    import torch
    from hydra.utils import instantiate
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    from vcd import checkpoints, curves
    from vcd.callbacks.checkpoint import Checkpoint
    from vcd.callbacks.heartbeat import Heartbeat
    from vcd.callbacks.preemption import Preemption
    from vcd.callbacks.timing import Timing
    from vcd.data.datamodule import DegradationDataModule
    from vcd.data.draws import seeded
    from vcd.loggers import CSVMetrics
    from vcd.models.base import REPORT
    from vcd.quiet import quiet

    quiet()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    L.seed_everything(cfg.seed, verbose=False)
    model = checkpoints.build(cfg)
    data = DegradationDataModule(
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
    metrics = CSVMetrics(path=run.path / "metrics.csv")
    step = 0
    if run.last.exists():
        saved = checkpoints.read(run.last)
        step = saved["global_step"]
        metrics.resume(step, saved.get(REPORT, {}))
        log.info("resuming at step %d of %d", step, cfg.trainer.max_steps)
    else:
        model.start.fit(data.train_batches(), model.degradation)
    callbacks = instantiate(cfg.callbacks)
    if not cfg.trainer.enable_progress_bar:
        callbacks.pop("progress", None)
    timing = Timing(path=run.path / "times.csv")
    checkpoint = Checkpoint(
        path=run.last, every=cfg.checkpoint_every, config=run.config, keep=cfg.keep_every
    )  # after those whose state counts
    preemption = Preemption(path=run.last)
    loggers = [logger(config=run.config, resumed=step > 0) for logger in instantiate(cfg.logger).values()]
    precision = cfg.trainer.precision
    if precision == "auto":
        device = torch.device("cpu" if cfg.trainer.accelerator == "cpu" else checkpoints.device_of("auto"))
        precision = _precision(cfg, run, device)
    trainer = instantiate(cfg.trainer, _partial_=True, precision=precision)(
        callbacks=[*callbacks.values(), timing, checkpoint, Heartbeat(run=run), preemption],
        logger=[metrics, *loggers],
        plugins=[
            checkpoints.AtomicCheckpointIO(),
            *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []),
        ],
        default_root_dir=run.path,
    )
    weights = sum(p.numel() for p in model.parameters())
    log.info("%s: %.2f M parameters, %d training images, T=%d, %d steps of %d images on %s", type(model).__name__,
             weights / 1e6, len(data.train_images), cfg.T, cfg.trainer.max_steps, cfg.batch_size,
             trainer.strategy.root_device)  # fmt: skip
    if cfg.trainer.estimate_memory:
        _say_memory(model, data, cfg.batch_size // trainer.world_size, precision, trainer.strategy.root_device)
    try:
        for logger in loggers:
            logger.start(metrics.before(step), run.path / "pictures")
        trainer.fit(model, data, ckpt_path=run.last if run.last.exists() else None)
        if step == trainer.max_steps and step * trainer.accumulate_grad_batches % trainer.val_check_batch == 0:
            trainer.validate(
                model, data, verbose=False
            )  # all was trained, but for this; Lightning does not begin it again
        preemption.listener.obey()  # told after the last step: what follows is repeated
        if trainer.is_global_zero and trainer.global_step >= trainer.max_steps:
            for path in (*sorted(run.path.glob("step-*.ckpt")), run.last):
                model, _ = checkpoints.load(path, trainer.strategy.root_device)  # its averaged weights
                with seeded(cfg.seed, model.device):  # whatever happened on the way here
                    model.fit_prior(itertools.chain.from_iterable(data.train_batches() for _ in itertools.count()))
                checkpoints.store_buffers(path, model)
            pictures = callbacks["pictures"].draw(model, run.path)
            for logger in loggers:
                logger.conclude(*pictures, step=trainer.global_step - 1)
            curves.draw(metrics.path, run.path / "curves.png")
            losses = curves.curve(curves.read(metrics.path), "val/loss")[1]
            run.set_status(
                "finished", step=trainer.global_step, steps=trainer.global_step, val_loss=losses[-1] if losses else None
            )
    finally:
        for logger in loggers:
            logger.finish(failed=sys.exc_info()[0] is not None)


def _precision(cfg: DictConfig, run: RunFolder, device: "torch.device") -> str:
    """What trainer.precision=auto means here; a run that goes on keeps what it began with, wherever it goes on."""
    from vcd import checkpoints, hardware

    if run.last.exists():
        chosen, why = checkpoints.read(run.last)[checkpoints.CONFIG]["trainer"]["precision"], "as the run began"
    elif device.type == "cpu" and cfg.trainer.get("strategy"):
        chosen, why = "32-true", "several processes, whose trials could differ"
    else:
        chosen, why = hardware.precision(
            device, width=cfg.network.unet.dim, size=cfg.dataset.size // cfg.network.unet.patch
        )
    log.info("precision: %s (%s)", chosen, why)
    run.config["trainer"]["precision"] = chosen  # what checkpoints say
    return chosen


def _say_memory(
    model: "Diffusion", data: "DegradationDataModule", batch_size: int, precision: str, device: "torch.device"
) -> None:
    """One line: the peak of a training step on this device, and the largest batch that fits."""
    import torch

    from vcd import memory

    with torch.random.fork_rng(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        found = memory.estimate(model, data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0))
    free = memory.available(device)
    log.info("memory: about %.2f GiB for a step of %d images, %.1f GiB are free: batch_size=%d fits", found.total(batch_size) / 2**30,
             batch_size, free / 2**30, found.largest(free))  # fmt: skip


if __name__ == "__main__":
    main()
