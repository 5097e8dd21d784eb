"""The user's own images: any sizes and kinds, in a folder or a zip, sub-folders as classes."""

import hashlib
import logging
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import final

import torch

from vcd.data.base import ImageData, Images, Split
from vcd.data.cache import Record, build_cache, open_cache
from vcd.data.decode import VERSION
from vcd.data.files import File, Files, open_files
from vcd.data.layout import Layout, arrange
from vcd.errors import UserError

SHOWN = 20  # names in an error message
log = logging.getLogger(__name__)


@final
class Folder(ImageData):
    """Images under `path`, resized to `size` x `size` and `channels` once (see decode.py) and cached under `root`.

    train/ and val/ (or test/) are the splits if both are there. Otherwise a fixed pseudo-random `val_fraction` of
    the files, chosen by their relative paths, is kept for validation; None refuses folders without splits.
    layout: another rule for splits and classes. Broken files raise one UserError that names them all; with `skip_broken` they are left out, with one warning.
    """

    def __init__(
        self,
        *,
        name: str,
        path: str | None,
        root: str,
        size: int,
        channels: int,
        val_fraction: float | None = 0.05,
        skip_broken: bool = False,
        layout: Callable[[Files], Layout] | None = None,
    ) -> None:
        super().__init__(name=name, size=size, channels=channels)
        if not path:
            raise UserError("say where the images are: dataset.path=FOLDER (or a zip; sub-folders are classes)")
        if size < 1 or channels not in (1, 3):
            raise UserError(f"dataset.size={size} must be at least 1 and dataset.channels={channels} must be 1 or 3")
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise UserError(f"dataset.val_fraction={val_fraction} must lie between 0 and 1")
        self.path, self.root = Path(path).expanduser(), Path(root).expanduser()
        self.val_fraction, self.skip_broken, self.layout = val_fraction, skip_broken, layout

    def prepare(self) -> None:
        _ = self._splits

    def _load(self, split: Split) -> Images:
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[Split, Images]:
        files = open_files(self.path)
        where = f"dataset.path={self.path}"
        layout = self.layout(files) if self.layout else arrange(files.listing(), self.val_fraction, where)
        shape = (self.channels, self.size, self.size)
        groups = [[file.path for file in group] for group in layout.groups]
        cache = self.root / "cache" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', self.name)}-{_key(layout.groups, shape)}"

        found = open_cache(cache, shape)
        if found is None or (found[1].broken and not self.skip_broken):  # they may have been mended by now
            build_cache(cache, files, groups, shape)
            found = open_cache(cache, shape)
        if found is None:
            raise UserError(f"the image cache {cache} cannot be read back: is the disk of data.root sound?")
        images, record = found
        self._report(record, cache)

        pixels, k = torch.from_numpy(images), len(layout.classes)
        labels = torch.arange(k).repeat(2).repeat_interleave(torch.tensor(record.counts))
        n = sum(record.counts[:k])
        for split, rows in (("train", n), ("val", len(pixels) - n)):
            if rows == 0:
                raise UserError(
                    f"no readable image is left in the {split} split of {self.path}: delete the broken files"
                    " or, where there are no train/ and val/, set another dataset.val_fraction"
                )
        return {
            "train": Images(pixels[:n], labels[:n], layout.classes),
            "val": Images(pixels[n:], labels[n:], layout.classes),
        }

    def _report(self, record: Record, cache: Path) -> None:
        """One error, or one warning, about all broken files."""
        if not record.broken:
            return
        names = ", ".join(list(record.broken)[:SHOWN])
        more = len(record.broken) - SHOWN
        rest = f" and {more} more, all listed in {cache / 'record.json'}" if more > 0 else ""
        total = sum(record.counts) + len(record.broken)
        what = f"{len(record.broken)} of {total} files in {self.path} cannot be decoded: {names}{rest}"
        if not self.skip_broken:
            raise UserError(f"{what}; delete them or set dataset.skip_broken=true")
        log.warning("%s; they are left out", what)


def _key(groups: list[list[File]], shape: tuple[int, int, int]) -> str:
    """Of everything that the cached pixels depend on."""
    digest = hashlib.sha256(repr((VERSION, shape)).encode())
    for group in groups:
        digest.update(repr([(file.path, file.stamp) for file in group]).encode())
    return digest.hexdigest()[:16]
