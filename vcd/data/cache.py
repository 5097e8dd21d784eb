"""Many image files, decoded once into one array that later runs map into memory."""

import json
import logging
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from vcd.data.decode import decode
from vcd.data.files import Files
from vcd.errors import UserError
from vcd.files import atomic, write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What images.npy holds: the rows of group 0, then those of group 1, ...; a group is a class of a split."""

    counts: list[int]  # rows of each group
    broken: dict[str, str]  # path -> why it could not be decoded
    checksum: int  # crc32 of all pixels


def open_cache(folder: Path, shape: tuple[int, int, int]) -> tuple[UInt8[np.ndarray, "n c h w"], Record] | None:
    """The array and its record; None if there is none, or (with a warning) if it is damaged."""
    if not (folder / "record.json").exists():
        return None
    try:
        record = Record(**json.loads((folder / "record.json").read_text()))
        images = np.load(folder / "images.npy", mmap_mode="c")  # read-only on disk, writable to torch's eyes
        if images.shape != (sum(record.counts), *shape) or images.dtype != np.uint8:
            raise ValueError(f"an array of {images.dtype} {images.shape}")
        if zlib.crc32(images) != record.checksum:
            raise ValueError("the checksum differs")
        return images, record
    except (OSError, ValueError, TypeError, EOFError) as error:
        log.warning("the cache %s is damaged (%s): it is built again", folder, error)
        return None


def build_cache(folder: Path, files: Files, groups: Sequence[Sequence[str]], shape: tuple[int, int, int]) -> None:
    """Decode the paths of every group, in order, to `shape` (C, H, H) and write the cache; broken files are left out.

    The two files appear complete or not at all. Raises UserError when they cannot be written.
    """
    paths = [path for group in groups for path in group]
    broken: dict[str, str] = {}
    odd: Counter[str] = Counter()
    checksum = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / "images.npy") as part, open(part, "wb") as out:
            _header(out, len(paths), shape)
            for path, result in _decoded(files, paths, shape):
                if isinstance(result, Exception):
                    broken[path] = f"{type(result).__name__}: {result}"
                    continue
                pixels, remarks = result
                odd.update(remarks)
                checksum = zlib.crc32(pixels.data, checksum)
                out.write(pixels.data)
            if len(broken) == len(paths):
                first, why = next(iter(broken.items()))
                raise UserError(f"none of the {len(paths)} files in dataset.path is a readable image ({first}: {why})")
            _header(out, len(paths) - len(broken), shape)
        counts = [sum(path not in broken for path in group) for group in groups]
        write_text(folder / "record.json", json.dumps(asdict(Record(counts, broken, checksum))))
    except OSError as error:
        raise UserError(
            f"cannot write the image cache {folder} ({error.strerror}): free space or set data.root"
        ) from error
    log.info("%d images cached in %s%s", sum(counts), folder, _summary(odd))


def _summary(odd: Mapping[str, int]) -> str:
    return "; of these " + ", ".join(f"{n} {what}" for what, n in sorted(odd.items())) if odd else ""


def _decoded(
    files: Files, paths: Sequence[str], shape: tuple[int, int, int]
) -> Iterator[tuple[str, tuple[np.ndarray, list[str]] | Exception]]:
    """(path, (pixels, remarks) or the exception) in order, a few hundred at a time so that Ctrl-C is prompt."""

    def work(path: str) -> tuple[np.ndarray, list[str]] | Exception:
        try:
            return decode(files.read(path), shape[1], shape[0])
        except Exception as error:  # noqa: BLE001  a broken file may raise anything
            return error

    bar = tqdm(total=len(paths), desc="decoding images", unit="img", delay=1, mininterval=0.5, leave=False)
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        warnings.simplefilter("ignore")  # Pillow's remarks, one a file
        for start in range(0, len(paths), 256):
            chunk = paths[start : start + 256]
            for path, result in zip(chunk, pool.map(work, chunk), strict=True):
                bar.update()
                yield path, result


def _header(out: IO[bytes], rows: int, shape: tuple[int, int, int]) -> None:
    """Write the .npy header; numpy leaves room in it, so that a later one with fewer rows fits the same place."""
    out.seek(0)
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (rows, *shape)})
    out.seek(0, os.SEEK_END)
