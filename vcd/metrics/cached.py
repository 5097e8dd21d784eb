"""Tensors that are dear to make, kept in a file: written atomically, verified when read, made anew when damaged."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vcd.files import atomic

log = logging.getLogger(__name__)
Tensors = dict[str, Tensor]


def key(**facts: Any) -> str:
    """Sixteen hexadecimal digits of everything that the content depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest(tensors: Tensors) -> str:
    """SHA-256 of names and values."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode() + tensors[name].contiguous().cpu().numpy().tobytes())
    return whole.hexdigest()


def cached(path: Path, make: Callable[[], Tensors]) -> Tensors:
    """What `path` holds, if it is whole; else what `make` makes, kept there."""
    if path.exists():
        try:
            kept = torch.load(path, weights_only=True)
            if kept["digest"] == digest(kept["tensors"]):
                return kept["tensors"]
        except Exception:  # truncated, in whatever way
            pass
        log.warning("%s is damaged: it is made anew", path)
    tensors = make()
    with atomic(path) as temporary:
        torch.save({"digest": digest(tensors), "tensors": tensors}, temporary)
    return tensors
