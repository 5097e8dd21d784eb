"""What a data set is: uint8 images with labels, in memory or mapped from a file, in two splits."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from vcd.errors import UserError

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Images:
    """One split. `images` may be a view of a memory-mapped file: index it, do not copy it whole.

    `labels` are indices into `classes`.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Int64[Tensor, " b"] | Int64[np.ndarray, " b"] | Sequence[int]) -> UInt8[Tensor, "b c h w"]:
        """The images at `index`, copied."""
        return self.images[torch.as_tensor(index)]

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of all labels and pixels."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        for tensor in (self.labels, *self.images.split(1024)):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def balanced(self, n: int) -> UInt8[Tensor, "n c h w"]:
        """A fixed batch for pictures: the first image of every class in turn, then the second of each, ...

        Classes without images are left out. A class with too few images starts again from its first one.
        """
        rows = [torch.nonzero(self.labels == c).flatten() for c in torch.unique(self.labels)]
        index = [int(rows[i % len(rows)][(i // len(rows)) % len(rows[i % len(rows)])]) for i in range(n)]
        return self.batch(index)


class ImageData(ABC):
    """A data set of square images of one size, with the splits "train" and "val".

    "val" is the official test split where there is one.
    """

    def __init__(self, *, name: str, size: int, channels: int) -> None:
        self.name, self.size, self.channels = name, size, channels

    def prepare(self) -> None:
        """Download or cache what is missing; called by one process per machine, before any `load`."""

    def load(self, split: Split) -> Images:
        """The images of a split; prepares them first if need be.

        Raises UserError where they are missing or damaged, or not of `size` and `channels`.
        """
        images = self._load(split)
        n, c, h, w = images.images.shape
        if n == 0:
            raise UserError(f"the {split} split of {self.name} is empty")
        if (h, w) != (self.size, self.size):
            raise UserError(f"{self.name} has images of {h}x{w} pixels, not {self.size}: set dataset.size={h}")
        if c != self.channels:
            raise UserError(f"{self.name} has images of {c} channel(s), not {self.channels}: set dataset.channels={c}")
        return images

    @abstractmethod
    def _load(self, split: Split) -> Images: ...
