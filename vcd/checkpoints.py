"""Checkpoints: written atomically, made of plain types, and enough on their own to sample from."""

import hashlib
import logging
import zipfile
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.io import TorchCheckpointIO

from vcd import __version__, exports, hub, identity, stored
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.files import atomic
from vcd.migrations import migrate_config, migrate_state
from vcd.models.base import Diffusion
from vcd.spaces import Space

log = logging.getLogger(__name__)
CONFIG = "vcd_config"  # in a checkpoint: the resolved config of its run
WEIGHTS = {"state_dict", "current_model_state"}  # averaged, or the only ones; and those in training
VERSION = "vcd_version"  # and the version that wrote it; 0.1 wrote none
FITTED = "fitted"  # and True once what is fitted after training is in it


class AtomicCheckpointIO(TorchCheckpointIO):
    """A new checkpoint takes the old one's place only when it is whole and on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            with atomic(path) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            kept = "the previous one is kept" if path.exists() else "there is no previous one"
            raise UserError(f"could not write the checkpoint {path} ({_reason(error)}); {kept}: free some space and "
                            "run the same command again") from error  # fmt: skip

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        return read(path, map_location or "cpu")


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".splitlines()[0]


def read(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint at `path`, its types plain; UserError when it is missing, damaged or not ours.

    Or the model of an exported folder, of one that comes with vcd, or of user/name on the Hugging Face Hub: see `hub.find`.
    """
    place = hub.find(path)
    if place.is_dir():
        checkpoint = exports.read(place)
    elif place.is_file():
        checkpoint = _unpickled(place, map_location)
    else:
        known = ", ".join(hub.shipped())
        raise UserError(f"ckpt={path}: there is no such file" + (f"; with vcd come: {known}" if known else ""))
    try:
        if not all(isinstance(checkpoint[name], dict) for name in (CONFIG, "state_dict")):
            raise TypeError("a config and weights are dicts")
        version = str(checkpoint.get(VERSION, "0.1"))
        if _release(version) <= _release(__version__):
            return _migrated(checkpoint) if _release(version) < _release(__version__) else checkpoint
    except Exception as error:  # it is something else
        raise UserError(f"ckpt={path} was not written by vcd.train; take the last.ckpt of a run folder") from error
    raise UserError(f"ckpt={path} was written by vcd {version}, and this is {__version__}: update vcd to use it")


def _unpickled(path: Path, map_location: Any) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            if (flipped := archive.testzip()) is not None:  # torch reads them without a look at their checksums
                raise zipfile.BadZipFile(flipped)
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # whatever a reader makes of any bytes
        raise UserError(f"ckpt={path} is damaged, or no checkpoint at all; take another one") from error


def _migrated(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of an earlier version in today's form."""
    weights = {name: migrate_state(checkpoint[name]) for name in WEIGHTS & checkpoint.keys()}
    return checkpoint | weights | {CONFIG: migrate_config(checkpoint[CONFIG]), VERSION: __version__}


def _release(version: str) -> tuple[int, int]:
    """What decides the form of a checkpoint: (0, 2) of 0.2.1."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


class Checkpoint:
    """A checkpoint that was read once: the config of its run, its step, its digest, and what can be made of it.

    trust: your own modules that it may name: without, it is made of parts of vcd alone, whoever wrote it. UserError when
    it is missing, damaged or not ours.
    """

    def __init__(self, path: str | Path, trust: Collection[str] = ()):
        self.path, self.trust = hub.find(path), [trust] if isinstance(trust, str) else list(trust)
        self._content = read(self.path)
        self.step: int = self._content.get("global_step", 0)
        self.home = Path(path).parent  # where what is made of it is kept: of a name, the current folder

    @cached_property
    def sha256(self) -> str:
        return fingerprint(self.path)

    @property
    def config(self) -> DictConfig:
        """The config of its run; what looks like an interpolation is text."""
        return stored.literal(self._content[CONFIG])

    @property
    def facts(self) -> dict[str, Any]:
        """What stays with its weights wherever they go."""
        config = self._content[CONFIG]
        return {"identity": self._content.get("identity") or identity.of(config), "global_step": self.step}

    def model(
        self, device: torch.device | str = "cpu", *, raw: bool = False, parts: Mapping[str, Any] | None = None
    ) -> tuple[Diffusion, DictConfig]:
        """The model with its averaged (or raw) weights, ready to sample, and the config that it is made of.

        parts: nodes and values that replace parts of the model, such as {"prior": ..., "guess.weight": 2}; they may
        refer to the run's config. Another sampler keeps the run's delta, unless it has its own.
        """
        parts = parts or {}
        named = stored.targets(OmegaConf.to_container(OmegaConf.create(dict(parts))))
        reader = stored.Reader(f"ckpt={self.path}", [*self.trust, *named])
        try:
            cfg = self.config
            if "guess.weight" in parts and not cfg.model.get("guess"):
                raise UserError(f"ckpt={self.path} refines no first guess: leave out guidance")
            if "temperature" in parts and "prior" not in cfg.model:
                raise UserError(f"ckpt={self.path} has no latents: leave out temperature")
            delta = OmegaConf.select(cfg.model, "sampler.delta")
            for name, node in parts.items():
                OmegaConf.update(cfg.model, name, node, merge=False, force_add=True)
            if "sampler" in parts and delta is not None and "delta" not in cfg.model.sampler:
                OmegaConf.update(cfg.model, "sampler.delta", delta, force_add=True)
            model = _planned(OmegaConf.to_container(cfg, resolve=True), reader)()
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"ckpt={self.path}: its config does not fit this version of vcd ({_reason(error)})"
            ) from error
        _fill(model, self._content, self.path, raw, parts)
        return model.to(device).eval(), cfg


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    raw: bool = False,
    parts: Mapping[str, Any] | None = None,
    trust: Collection[str] = (),
) -> tuple[Diffusion, DictConfig]:
    """The model of the checkpoint at `path`, ready to sample, and its config: `Checkpoint.model` in one call."""
    return Checkpoint(path, trust).model(device, raw=raw, parts=parts)


def load_weights(model: Diffusion, path: str | Path) -> bool:
    """Give the model the weights of a checkpoint of its own run, ready to sample; whether its prior is fitted already."""
    checkpoint = read(path)
    _fill(model.eval(), checkpoint, path, raw=False)
    return checkpoint.get(FITTED, False)


def _planned(config: Any, reader: stored.Reader) -> stored.Make:
    """What makes the model of a stored config, without what trains it; all of the config has been checked."""
    node = {key: value for key, value in config["model"].items() if key not in ("optimizer", "scheduler")}
    model = reader.plan({**node, "_partial_": True}, Callable[..., Diffusion], "model")
    degradation = reader.plan(config["degradation"], Degradation, "degradation")
    space = reader.plan(config.get("space"), Space | None, "space")
    return lambda: model()(degradation=degradation(), space=space())


def _fill(
    model: Diffusion, checkpoint: dict[str, Any], path: str | Path, raw: bool, parts: Collection[str] = ()
) -> None:
    """Load the weights; those of replaced parts are left out where they have no place."""
    state = checkpoint["current_model_state" if raw and "current_model_state" in checkpoint else "state_dict"]
    needed, replaced = model.state_dict(), tuple(f"{name}." for name in parts)
    state = {name: value for name, value in state.items() if name in needed or not name.startswith(replaced)}
    if any(name.startswith("prior.") and name not in state for name in needed if name.startswith(replaced)):
        raise UserError(f"ckpt={path} holds no {type(model.prior).__name__}: a prior that is fitted has to be fitted first; "
                        "python -m vcd.refit ckpt=... prior=... writes a checkpoint that has it")  # fmt: skip
    if raw and any(name.startswith("prior.") for name in needed) and "prior" not in (parts or {}):
        log.warning("raw=true: the prior is the one that was fitted to the averaged weights (unless vcd.refit raw=true made "
                    "this checkpoint)")  # fmt: skip
    try:
        model.load_state_dict(state)
    except Exception as error:
        raise UserError(f"ckpt={path} does not fit the code or the parts asked for: {_reason(error)}") from error
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"ckpt={path} holds numbers that are not finite, in {name}: take an earlier checkpoint")


def store_buffers(path: str | Path, model: Diffusion) -> None:
    """Put what was fitted after training into the checkpoint, atomically."""
    checkpoint = read(path)
    state, buffers = model.state_dict(), dict(model.named_buffers())
    fitted = {name: state[name].cpu() for name in state if name in buffers}
    for weights in WEIGHTS & checkpoint.keys():
        checkpoint[weights].update(fitted)
    checkpoint[FITTED] = True
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
    checkpoint.pop("identity", None)  # that of an export
    AtomicCheckpointIO().save_checkpoint(checkpoint, out)


def digest(checkpoint: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of the averaged weights."""
    found = hashlib.sha256()
    for name, value in sorted(checkpoint["state_dict"].items()):
        found.update(name.encode())
        found.update(value.cpu().contiguous().view(-1).numpy().tobytes())
    return found.hexdigest()[:16]


def device_of(name: str) -> str:
    """What `device=auto` means: a GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file, of an exported folder that of its weights."""
    path = Path(path) / exports.WEIGHTS if Path(path).is_dir() else path
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
