"""What is measured, and what it is compared with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vcd.data.base import ImageData, Images, Split
from vcd.data.decode import VERSION
from vcd.metrics.cached import Tensors, cached, key
from vcd.metrics.extractor import Extractor
from vcd.models.base import Diffusion

OTHER: dict[Split, Split] = {"train": "val", "val": "train"}
ENDING = {"train": "_train", "val": "_heldout"}  # of a number's name, where it is not of the reference


@dataclass(frozen=True)
class Comparison:
    """A split that samples are compared with.

    stand_ins: rows of the other split, as many as there are samples. Compared in their stead, they give the floor.
    """

    ending: str  # of the names of its numbers
    split: Split
    other: Split
    stand_ins: Int64[Tensor, " k"]


@dataclass
class Evaluation:
    """Samples, the model that made them (None for a folder of images), and a data set, of which one split is the
    reference.

    make_extractor: called when features are first needed. cache: a folder for what depends on the data set alone. restored:
    how many test images are restored, from how many `levels`.
    """

    images: UInt8[Tensor, "n c h w"]
    model: Diffusion | None
    data: ImageData
    split: Split
    make_extractor: Callable[[], Extractor]
    cache: Path
    out: Path
    restored: int
    levels: int
    seed: int
    device: torch.device | str = "cpu"

    @property
    def n(self) -> int:
        return len(self.images)

    @cached_property
    def extractor(self) -> Extractor:
        return self.make_extractor()

    @cached_property
    def train(self) -> Images:
        return self.data.load("train")

    @cached_property
    def test(self) -> Images:
        return self.data.load("val")

    def of(self, split: Split) -> Images:
        return self.train if split == "train" else self.test

    @property
    def reference(self) -> Images:
        return self.of(self.split)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """With the reference, and with the other split."""
        return [
            Comparison(
                "" if split == self.split else ENDING[split], split, other, some(len(self.of(other)), self.n, seed=0)
            )
            for split, other in ((self.split, OTHER[self.split]), (OTHER[self.split], self.split))
        ]

    def protocol(self, comparison: Comparison, **more: Any) -> dict[str, Any]:
        """What a number depends on besides its subject."""
        images = self.of(comparison.split)
        return {
            "n": self.n, "data": self.data.name, "size": self.data.size, "channels": self.data.channels,
            "split": comparison.split, "reference": images.fingerprint, "reference_n": len(images),
            "floor_n": len(comparison.stand_ins), "transform": f"8 bits, decode version {VERSION}", **more,
        }  # fmt: skip

    @cached_property
    def features(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        """Features and class logits of the samples."""
        return self.extractor.features(self.images, "the samples")

    def features_of(self, split: Split) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m k"]]:
        """Features and class logits of a split, kept."""

        def make() -> Tensors:
            features, logits = self.extractor.features(self.of(split).images, f"the {split} split")
            return {"features": features, "logits": logits}

        kept = self.keep("features", split, make, **self.extractor.protocol)
        return kept["features"], kept["logits"]

    def keep(self, what: str, split: Split, make: Callable[[], Tensors], **facts: Any) -> Tensors:
        """What is made of a split and of these facts: made once for all evaluations."""
        whole = key(what=what, images=self.of(split).fingerprint, decode=VERSION, **facts)
        return cached(self.cache / f"{self.data.name}-{split}-{what}-{whole}.pt", make)


class Once(ImageData):
    """A data set whose splits are read once and stay, for all who look at them."""

    def __init__(self, data: ImageData):
        super().__init__(name=data.name, size=data.size, channels=data.channels)
        self.data, self.splits = data, dict[Split, Images]()

    def _load(self, split: Split) -> Images:
        if split not in self.splits:
            self.splits[split] = self.data.load(split)
        return self.splits[split]


def some(of: int, n: int, *, seed: int) -> Int64[Tensor, " k"]:
    """n of so many rows, or all where there are fewer, chosen by the seed."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:n]
