"""Checkpoints: written atomically, made of plain types, and enough on their own to sample from."""

import hashlib
import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.io import TorchCheckpointIO

from vcd import __version__
from vcd.errors import UserError
from vcd.migrations import migrate_config, migrate_state
from vcd.models.base import Diffusion

log = logging.getLogger(__name__)
CONFIG = "vcd_config"  # in a checkpoint: the resolved config of its run
WEIGHTS = ("state_dict", "current_model_state")  # averaged, or the only ones; and those in training
VERSION = "vcd_version"  # and the version that wrote it; 0.1 wrote none


class AtomicCheckpointIO(TorchCheckpointIO):
    """A new checkpoint takes the old one's place only when it is whole and on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            kept = "the previous one is kept" if path.exists() else "there is no previous one"
            raise UserError(f"could not write the checkpoint {path} ({_reason(error)}); {kept}: free some space and "
                            "run the same command again") from error  # fmt: skip
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        return read(path, map_location or "cpu")


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


def read(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint at `path`, its types plain; UserError when it is missing, damaged or not ours."""
    if not Path(path).is_file():
        raise UserError(f"ckpt={path}: there is no such file")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise UserError(f"ckpt={path} is damaged, or no checkpoint at all; take another one") from error
    version = checkpoint.get(VERSION, "0.1") if isinstance(checkpoint, dict) else None
    ours = isinstance(version, str) and re.match(r"\d+\.\d+(\.|$)", version)
    if not ours or not isinstance(checkpoint.get(CONFIG), dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"ckpt={path} was not written by vcd.train; take the last.ckpt of a run folder")
    if _release(version) > _release(__version__):
        raise UserError(f"ckpt={path} was written by vcd {version}, and this is {__version__}: update vcd to use it")
    return _migrated(checkpoint, version)


def _migrated(checkpoint: dict[str, Any], version: str) -> dict[str, Any]:
    """The checkpoint in today's form."""
    if _release(version) < _release(__version__):
        checkpoint[CONFIG] = migrate_config(checkpoint[CONFIG])
        for weights in WEIGHTS:
            if weights in checkpoint:
                checkpoint[weights] = migrate_state(checkpoint[weights])
        checkpoint[VERSION] = __version__
    return checkpoint


def _release(version: str) -> tuple[int, ...]:
    """What decides the form of a checkpoint: (0, 2) of 0.2.1."""
    return tuple(int(number) for number in version.split(".")[:2])


def build(cfg: DictConfig) -> Diffusion:
    """The model of a config, with its degradation built once: whoever else needs it takes `model.degradation`."""
    model = instantiate(
        cfg.model, _partial_=True, _convert_="all"
    )  # plain lists: what optimisers keep goes into checkpoints
    space = instantiate(cfg.space) if "space" in cfg else None
    return model(degradation=instantiate(cfg.degradation), space=space)


def load(
    path: str | Path, device: torch.device | str = "cpu", raw: bool = False, parts: dict[str, Any] | None = None
) -> tuple[Diffusion, DictConfig]:
    """The model of a checkpoint with its averaged (or raw) weights, ready to sample, and the config of its run.

    parts: nodes that replace parts of the model, such as {"prior": ...}.
    """
    checkpoint = read(path)
    cfg = OmegaConf.create(checkpoint[CONFIG])
    for name, node in (parts or {}).items():
        cfg.model[name] = node
    model = build(cfg)
    state = checkpoint["current_model_state" if raw and "current_model_state" in checkpoint else "state_dict"]
    needed = model.state_dict()
    replaced = tuple(f"{name}." for name in parts or {})
    state = {name: value for name, value in state.items() if name in needed or not name.startswith(replaced)}
    if any(name.startswith("prior.") and name not in state for name in needed if name.startswith(replaced)):
        raise UserError(f"ckpt={path} holds no {type(model.prior).__name__}: a prior that is fitted has to be fitted first; "
                        "python -m vcd.refit ckpt=... prior=... writes a checkpoint that has it")  # fmt: skip
    if raw and any(name.startswith("prior.") for name in needed) and "prior" not in (parts or {}):
        log.warning("raw=true: the prior is the one that was fitted to the averaged weights (unless vcd.refit raw=true made "
                    "this checkpoint)")  # fmt: skip
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"ckpt={path} does not fit the code or the parts asked for: {_reason(error)}") from error
    return model.to(device).eval(), cfg


def store_buffers(path: str | Path, model: Diffusion) -> None:
    """Put what was fitted after training into the checkpoint, atomically."""
    checkpoint = read(path)
    state, buffers = model.state_dict(), dict(model.named_buffers())
    fitted = {name: state[name].cpu() for name in state if name in buffers}
    for weights in WEIGHTS:
        if weights in checkpoint:
            checkpoint[weights].update(fitted)
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def store_prior(path: str | Path, out: str | Path, model: Diffusion, config: dict[str, Any]) -> None:
    """Copy the checkpoint at `path` to `out` with this model's prior in the place of its own, and with this config."""
    checkpoint = read(path)
    fitted = {name: value.cpu() for name, value in model.state_dict().items() if name.startswith("prior.")}
    for weights in WEIGHTS:
        if weights in checkpoint:
            own = {name: value for name, value in checkpoint[weights].items() if not name.startswith("prior.")}
            checkpoint[weights] = own | fitted
    checkpoint[CONFIG] = config
    AtomicCheckpointIO().save_checkpoint(checkpoint, out)


def device_of(name: str) -> str:
    """What `device=auto` means: a GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
