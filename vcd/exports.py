"""A model as a folder to share: weights as safetensors, a config that names parts and no place of a machine, and a card.

What is read is held to the same rules as a checkpoint: it is made of plain values, and names parts of vcd alone.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from vcd.errors import UserError
from vcd.files import PREFIX, atomic, write_text

WEIGHTS, FACTS, CARD = "model.safetensors", "config.json", "README.md"
# of a run's config, what builds its model and what other parts of it may refer to
KEPT = (
    "model", "degradation", "space", "dataset", "network", "schedule", "kernel", "ihd", "prior", "sampler", "seed",
    "batch_size", "T",
)  # fmt: skip
TRAINS = ("optimizer", "scheduler")  # of the model


def is_export(path: str | Path) -> bool:
    """Whether a folder is one that `write` made."""
    return (Path(path) / FACTS).is_file() and (Path(path) / WEIGHTS).is_file()


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config, resolved, without what trains it; a path of this machine is its last part alone."""
    kept = {key: config[key] for key in KEPT if key in config}
    kept["model"] = {key: value for key, value in config["model"].items() if key not in TRAINS}
    return _without_places(kept)


def _without_places(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_places(child) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [_without_places(child) for child in node]
    return portable_value(node) if isinstance(node, str) else node


def portable_value(text: str) -> str:
    """The text; of a path of this machine, its last part."""
    return Path(text).name if text.startswith("~") or Path(text).is_absolute() else text


@contextmanager
def new_folder(path: Path, key: str) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its place once all is written. UserError where something is there."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{key}={path} is there already: choose another folder, or move it away first")
    temporary = path.with_name(f"{PREFIX}{path.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{key}={path} cannot be written ({error.strerror}): choose another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(folder: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """The weights and what belongs to them, into `folder`."""
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with atomic(folder / WEIGHTS) as temporary:
        save_file(plain, temporary, metadata={"format": "pt"})
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    write_text(folder / FACTS, json.dumps({**facts, "sha256": digest}, indent=2) + "\n")


def read(folder: str | Path) -> dict[str, Any]:
    """The facts, and the weights as `state_dict`. UserError where the folder is another's, or damaged."""
    from safetensors.torch import load

    folder = Path(folder)
    if not is_export(folder):
        raise UserError(
            f"ckpt={folder} is a folder without {FACTS} and {WEIGHTS}: give a checkpoint, or a folder that vcd export wrote"
        )
    try:
        facts = json.loads((folder / FACTS).read_text())
        weights = (folder / WEIGHTS).read_bytes()
        if facts["sha256"] != hashlib.sha256(weights).hexdigest():
            raise ValueError(f"{WEIGHTS} is not the file that {FACTS} was written with")
        return {**facts, "state_dict": load(weights)}
    except Exception as error:  # whatever a reader makes of any bytes
        raise UserError(f"ckpt={folder} is damaged, or no model of vcd; take another one") from error
