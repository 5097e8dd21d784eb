"""What a run builds on: an earlier run's model, which becomes part of its config, and then of its checkpoint."""

import logging
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from vcd import identity
from vcd.errors import UserError
from vcd.runs import RunFolder
from vcd.signals import Listener, told

log = logging.getLogger("vcd")
# what the training of stage 1 has in common with the one that asks for it
SHARED = ("runs", "data.root", "seed", "threads", "trainer.accelerator", "trainer.enable_progress_bar")


def ready(cfg: DictConfig, *, trains: bool = True) -> RunFolder:
    """Complete the config of a run by the models that it builds on: stage 1 of `guess`, the autoencoder of `space`.

    Where `stage1` is a list of overrides, the run that they make is trained first, or gone on with, in a process of its
    own; trains=False: it must be finished. UserError where one is missing.

    Returns the run's folder, whose name depends on all this. `cfg.run_dir` is set to it: an earlier version of vcd may have
    begun the run under another name.
    """
    if _waits(cfg.get("guess")):
        if not cfg.stage1:
            raise UserError("say whose guess is refined: stage1=runs/.../last.ckpt, of experiment=vae_..., or how to train it: "
                            "'stage1=[\"experiment=vae_mnist\"]'")  # fmt: skip
        cfg.stage1 = str(_trained(cfg, trains) if isinstance(cfg.stage1, ListConfig) else cfg.stage1)
        cfg.guess.vae, cfg.guess.weights, shape = _node(cfg.stage1, "stage1")
        if cfg.guess.tells_z:
            cfg.network.encoder.latent = math.prod(shape)
    if _waits(cfg.get("space")):
        if not cfg.space.ckpt:
            raise UserError(
                "say which autoencoder makes the latents: space.ckpt=runs/.../last.ckpt, of model=autoencoder"
            )
        cfg.space.vae, cfg.space.weights, shape = _node(cfg.space.ckpt, "space.ckpt")
        if len(shape) != 3:
            raise UserError(
                f"space.ckpt={cfg.space.ckpt}: its latents have no place in the image; take a checkpoint of model=autoencoder"
            )
        cfg.space.channels, cfg.space.size = shape[:2]
    named = cfg.run_dir
    run = RunFolder(run_dir=named, identity=identity.of(cfg), config=cfg)
    elsewhere = run.path != Path(named).resolve()
    cfg.run_dir = os.path.join(os.path.dirname(named), run.path.name) if elsewhere else named
    return run


def fill(model: Any, *, stage1: str | None, autoencoder: str | None) -> None:
    """The weights of these checkpoints, into the model of the completed config."""
    from vcd import checkpoints

    if stage1 is not None and hasattr(model.guess, "frozen"):
        checkpoints.load_weights(model.guess.frozen.vae, stage1)
    if autoencoder is not None and hasattr(model.space, "frozen"):
        checkpoints.load_weights(model.space.frozen.vae, autoencoder)


def _waits(node: DictConfig | None) -> bool:
    """Whether a part has a place for a model, with none in it."""
    return node is not None and "vae" in node and node.vae is None


def _node(path: str, key: str) -> tuple[DictConfig, str, tuple[int, ...]]:
    """The model of a checkpoint as a node of a config, without what trains it, the fingerprint of its weights, and the
    shape of its latents."""
    from vcd import checkpoints, stored
    from vcd.models.variational import Variational

    checkpoint = checkpoints.read(path)
    config = checkpoint[checkpoints.CONFIG]
    node = {name: value for name, value in config["model"].items() if name not in ("optimizer", "scheduler")}
    node |= {"degradation": config["degradation"], "space": config.get("space")}
    model = stored.Reader(f"{key}={path}").make(
        node, Variational, "model"
    )  # it may come from anybody: all is checked first
    return stored.literal(node), checkpoints.digest(checkpoint), model.encoder.shape


def _trained(cfg: DictConfig, trains: bool) -> Path:
    """The checkpoint of the run that the overrides `stage1` make, trained to its end."""
    import hydra

    overrides = [*map(str, cfg.stage1)]
    said = {text.partition("=")[0].lstrip("+~") for text in overrides}
    overrides += [f"{key}={_written(OmegaConf.select(cfg, key))}" for key in SHARED if key not in said]
    run = ready(hydra.compose("train", overrides, return_hydra_config=True), trains=trains)
    if not run.finished:
        if not trains:
            raise UserError(
                "stage1 is not trained yet, and the folders of the runs depend on it; first, and until it is finished: python -m "
                f"vcd.train --multirun launcher=slurm {shlex.join(overrides)}"
            )
        log.info("stage 1 first: python -m vcd.train %s", shlex.join(overrides))
        _train(overrides)
    log.info("stage 1: %s", run.last)
    return run.last


def _train(overrides: Sequence[str]) -> None:
    """Train by the command, which is told of every signal that comes here; end as it ends."""
    child = subprocess.Popen([sys.executable, "-m", "vcd.train", *overrides])
    with Listener() as listener:
        try:
            code = child.wait()
        except BaseException as error:
            if (signum := told(error)) and signum != 2:  # a terminal's Ctrl-C it has heard already
                child.send_signal(signum)
            child.wait()
            listener.hand_over()
            raise
    if code:
        raise SystemExit(code)  # it has said why


def _written(value: Any) -> str:
    if isinstance(value, str):
        return os.path.expanduser(value)  # a ~ is no value on a command line of Hydra's
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
