"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 pixels, in ten classes."""

import gzip
import struct
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import UInt8

from vcd.data.base import ImageData, Images, Split
from vcd.data.download import fetch
from vcd.errors import UserError


class IdxData(ImageData):
    """Four idx files, packed (.gz) or not, where torchvision puts them; missing ones are downloaded."""

    def __init__(self, *, name: str, folder: Path, classes: tuple[str, ...], size: int, channels: int) -> None:
        super().__init__(name=name, size=size, channels=channels)
        self.folder, self.classes = folder, classes

    @abstractmethod
    def published(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Mirrors, and the four .gz files with their md5."""

    def prepare(self) -> None:
        files = [f"{s}-{kind}-ubyte" for s in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        missing = [f for f in files if not (self.folder / f).exists() and not (self.folder / f"{f}.gz").exists()]
        if missing:
            mirrors, md5 = self.published()
            fetch(self.name, self.folder, {f"{f}.gz": md5[f"{f}.gz"] for f in missing}, mirrors)

    def _load(self, split: Split) -> Images:
        self.prepare()
        stem = {"train": "train", "val": "t10k"}[split]
        images = read_idx(self.folder / f"{stem}-images-idx3-ubyte", dimensions=3)
        labels = read_idx(self.folder / f"{stem}-labels-idx1-ubyte", dimensions=1)
        if len(images) != len(labels):
            raise UserError(
                f"the {stem} files in {self.folder} hold {len(images)} images but {len(labels)} labels: "
                "delete them and they are downloaded again"
            )
        return Images(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long(), self.classes)


@final
class MNIST(IdxData):
    """Handwritten digits, in root/MNIST/raw."""

    def __init__(self, *, root: str, size: int, channels: int) -> None:
        folder = Path(root).expanduser() / "MNIST" / "raw"
        classes = tuple(str(digit) for digit in range(10))
        super().__init__(name="mnist", folder=folder, classes=classes, size=size, channels=channels)

    def published(self) -> tuple[Sequence[str], Mapping[str, str]]:
        from torchvision.datasets import MNIST as official

        return official.mirrors, dict(official.resources)


@final
class FashionMNIST(IdxData):
    """Pieces of clothing, in root/FashionMNIST/raw."""

    def __init__(self, *, root: str, size: int, channels: int) -> None:
        folder = Path(root).expanduser() / "FashionMNIST" / "raw"
        classes = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
        super().__init__(name="fashion_mnist", folder=folder, classes=classes, size=size, channels=channels)

    def published(self) -> tuple[Sequence[str], Mapping[str, str]]:
        from torchvision.datasets import FashionMNIST as official

        return official.mirrors, dict(official.resources)


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The array in an idx file of unsigned bytes (big-endian header), or in `path`.gz if that is all there is.

    Raises UserError, naming the file, when it is damaged.
    """
    file = path if path.exists() else path.with_name(f"{path.name}.gz")
    try:
        raw = file.read_bytes()
        if file is not path:
            raw = gzip.decompress(raw)
        if raw[:4] != bytes((0, 0, 8, dimensions)):  # 8: unsigned bytes
            raise ValueError(f"its first bytes are not those of an idx file with {dimensions} dimension(s)")
        shape = struct.unpack_from(f">{dimensions}I", raw, 4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{file} is damaged ({error}): delete it and it is downloaded again") from error
