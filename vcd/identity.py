"""A run's identity is what is trained: a digest of the values that decide it, and of nothing else."""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vcd.migrations import migrate_config, renamed

# What training is made of. Other groups (network, schedule, ...) count where these refer to them.
TRAINED = (
    "model", "degradation", "space", "level_sampler", "dataset.source", "dataset.flip", "data", "batch_size", "trainer",
    "callbacks.ema",
)  # fmt: skip

# What may differ between two starts of one run: where things are and how they are watched, not what is computed.
INCIDENTAL = (
    "hydra", "launcher", "sweep", "runs", "run_dir", "data.root", "data.val_images", "data.val_batch_size",
    "dataset.source.root", "space.size", "space.channels", "space.ckpt", "threads", "checkpoint_every", "keep_every", "logger", "callbacks",
    *(f"trainer.{key}" for key in (
        "devices", "num_nodes", "strategy", "accelerator", "enable_progress_bar", "estimate_memory", "compile",
        "log_every_n_steps", "val_check_interval",
    )),
)  # fmt: skip
BUT = "callbacks.ema"  # counts all the same

# Keys that are younger than version 0.1, each with the value that means what 0.1 did: with it, a key does not count, and
# no run is orphaned. Patterns of fnmatch; a node is compared whole, after what is in it, its `_target_` a bare name.
NEUTRAL: dict[str, Any] = {
    "data": {"_target_": "DegradationDataModule"},
    "level_sampler": {"_target_": "Stratified"},
    "*.continuous": False,
    "callbacks.ema.every": 1,
    "callbacks.ema.start": 0,
    "*.sampler.power": 1,
    "model.network.classes": None,
    "model.network.context": 0,
    "model.network.shift": False,
    "*.unlabelled": 0.1,
    "model.guess": None,
    "model.conditional": None,
    "model.network.fourier": [],
    "model.network.residual": False,
    "*.self_conditioning": False,
    "model.network.outputs": 1,
    "model.weight": None,
    "model.calibrated": False,
    "model.free_bits": 0,
    "space": {"_target_": "Pixels"},
    "*.zero": -1,
}


def incidental(key: str) -> bool:
    """Whether a dotted key, and all that is below it, has no bearing on the outcome."""
    if f"{key}.".startswith(f"{BUT}.") or f"{BUT}.".startswith(f"{key}."):
        return False
    return f"{key}.".startswith(tuple(f"{other}." for other in INCIDENTAL))


def digest(config: DictConfig | Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of every value that changes the outcome, but the seed."""
    return hashlib.sha256(json.dumps(_counted(config), sort_keys=True).encode()).hexdigest()[:8]


def _counted(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Every value that changes the outcome, but the seed."""
    cfg = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    nodes = {key: node for key in TRAINED if (node := OmegaConf.select(cfg, key)) is not None}
    plain = {key: OmegaConf.to_container(n, resolve=True) if OmegaConf.is_config(n) else n for key, n in nodes.items()}
    return _values(plain)


def _values(node: Any, key: str = "") -> Any:
    """The part of the config at `key` as far as it counts: 1.0 is 1, and a class or function is its bare name."""
    if isinstance(node, dict):
        found = {}
        for name, child in node.items():
            path = f"{key}.{name}" if key else name
            if name in ("_partial_", "_convert_", "_recursive_") or incidental(path):
                continue
            value = _values(renamed(child).rpartition(".")[2] if name == "_target_" else child, path)
            neutral = any(fnmatchcase(path, pattern) and value == meant for pattern, meant in NEUTRAL.items())
            if not neutral and value != {}:
                found[name] = value
        return found
    if isinstance(node, list):
        return [_values(child, key) for child in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def of(config: DictConfig | Mapping[str, Any]) -> str:
    """The digest, and the seed."""
    return f"{digest(config)}-seed{config['seed']}"


def name(*, _root_: DictConfig) -> str:
    """`${identity:}`: dataset-model-degradation-digest-seed, the name of a run's folder."""
    whole: Any = _root_ if "hydra" in _root_ else HydraConfig.instance().cfg  # Hydra takes its node out before the task
    choices = OmegaConf.select(whole, "hydra.runtime.choices") if whole is not None else None
    names = [choices[group] for group in ("dataset", "model", "degradation")] if choices else []
    return "-".join([*names, of(_root_)])


def stored(folder: Path) -> str | None:
    """The identity of the run in `folder` by its config.yaml, whatever version wrote it; None where there is none."""
    path = folder / "config.yaml"
    try:
        return _stored(path, path.stat().st_mtime_ns)
    except OSError:
        return None


def differences(folder: Path, config: DictConfig) -> list[str]:
    """What counts in `config` and is another in the config.yaml of `folder`: "model.beta is 7 there, here 0.02"."""
    there, here = (dict(_leaves({"seed": c["seed"]} | _counted(c))) for c in (_read(folder / "config.yaml"), config))
    return [
        f"{key} is {there.get(key, 'not')} there, here {here.get(key, 'not')}"
        for key in sorted(here | there, key=lambda key: key.count("."))  # what was chosen before what follows from it
        if there.get(key) != here.get(key)
    ]


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values below a node, by dotted key."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _leaves(child, f"{key}.{name}".lstrip("."))
    else:
        yield key, node


def _read(path: Path) -> dict[str, Any]:
    """A config.yaml as today's version would have written it."""
    return migrate_config(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=4096)
def _stored(path: Path, written: int) -> str | None:
    try:
        return of(_read(path))
    except Exception:  # damaged, or not a config of ours: whatever that makes of it
        return None
