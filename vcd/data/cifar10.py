"""CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels, in ten classes."""

import gzip
import pickle
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from vcd.data.base import ImageData, Images, Split
from vcd.data.download import fetch
from vcd.errors import UserError
from vcd.files import atomic

ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "val": ("test_batch",)}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@final
class CIFAR10(ImageData):
    """The "python version" in root/cifar-10-batches-py, unpacked from root/cifar-10-python.tar.gz or downloaded."""

    def __init__(self, *, root: str, size: int, channels: int) -> None:
        super().__init__(name="cifar10", size=size, channels=channels)
        self.root = Path(root).expanduser()
        self.folder = self.root / "cifar-10-batches-py"

    def prepare(self) -> None:
        if all((self.folder / file).exists() for files in BATCHES.values() for file in files):
            return
        archive = self.root / ARCHIVE
        if not archive.exists():
            from torchvision.datasets import CIFAR10 as official

            fetch(self.name, self.root, {ARCHIVE: official.tgz_md5}, [official.url.removesuffix(ARCHIVE)])
        try:
            with tempfile.TemporaryDirectory(dir=self.root) as scratch, tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
                self.folder.mkdir(exist_ok=True)
                for file in (Path(scratch) / self.folder.name).iterdir():
                    with atomic(self.folder / file.name) as part:
                        file.replace(part)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{archive} is damaged ({error}): delete it and it is downloaded again") from error
        except OSError as error:
            raise UserError(f"{archive} cannot be unpacked there ({error}): free space or set data.root") from error

    def _load(self, split: Split) -> Images:
        self.prepare()
        images, labels = zip(*(read_batch(self.folder / file) for file in BATCHES[split]), strict=True)
        return Images(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)), CLASSES)


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 of one official batch file.

    Raises UserError, naming the file, when it is damaged.
    """
    try:
        with open(path, "rb") as file:
            batch = _Plain(file, encoding="latin1").load()
        images, labels = np.asarray(batch["data"]), np.asarray(batch["labels"], dtype=np.int64)
        if images.dtype != np.uint8 or images.shape != (len(labels), 3 * 32 * 32):
            raise ValueError(f"{len(labels)} labels, but an array of {images.dtype} {images.shape}")
        return images.reshape(-1, 3, 32, 32), labels
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} is damaged ({error}): delete it and it is unpacked or downloaded again") from error


def _empty(kind: type[np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What a pickled array begins as, which the pickle then fills."""
    return np.ndarray.__new__(kind, shape, dtype)


class _Plain(pickle.Unpickler):
    """Reads arrays and plain values only: a pickle of unknown origin cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes into an old pickle
            return str.encode
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")
