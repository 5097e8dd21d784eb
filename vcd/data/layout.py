"""Which split and class an image file belongs to, from its path."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from vcd.data.files import File
from vcd.errors import UserError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".tga"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
LOOSE = "images"  # the class of files outside any sub-folder


@dataclass(frozen=True)
class Layout:
    """`groups` holds the files of each class of train, then those of each class of val; classes are sorted."""

    classes: tuple[str, ...]
    groups: list[list[File]]


def arrange(listing: Sequence[File], val_fraction: float | None, where: str) -> Layout:
    """Splits and classes of the image files in `listing`; other files are ignored.

    One outer folder (as in most zips) does not count. With train/ and val/ or test/ at the top, these are the
    splits (val/ before test/) and what lies beside them is ignored; else see `hashed`.
    The class is the outermost folder below. Raises UserError, beginning with `where`, without images or splits.
    """
    files = {file.path: file for file in listing if PurePosixPath(file.path).suffix.lower() in SUFFIXES}
    if not files:
        raise UserError(f"{where} holds no images (files ending in {', '.join(sorted(SUFFIXES))})")
    short = _without_outer_folder(list(files))  # short path -> full path
    tops = {path.split("/")[0] for path in short if "/" in path}
    held_out = next((top for top in ("val", "test") if top in tops), None)
    if "train" in tops and held_out:
        val = {path for path in short if path.startswith(f"{held_out}/")}
        train = {path for path in short if path.startswith("train/")}
        depth = 1
    elif val_fraction is None:
        raise UserError(f"{where} has no folders train/ and val/ (or test/)")
    else:
        val = hashed(list(short), val_fraction, where)
        train = short.keys() - val
        depth = 0

    def label(path: str) -> str:
        return (path.split("/")[depth:-1] or [LOOSE])[0]

    classes = tuple(sorted({label(path) for path in train | val}))
    groups = [[files[short[p]] for p in sorted(split) if label(p) == c] for split in (train, val) for c in classes]
    return Layout(classes, groups)


def hashed(paths: Sequence[str], fraction: float, where: str) -> set[str]:
    """A pseudo-random part of `paths`, at least one and not all, that depends on each path alone."""
    if len(paths) < 2:
        raise UserError(f"{where} holds one image: at least two are needed, one to train and one to validate")

    def u(path: str) -> float:
        return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64

    ranked = sorted(paths, key=u)
    n = sum(u(path) < fraction for path in paths)
    return set(ranked[: min(max(n, 1), len(paths) - 1)])


def _without_outer_folder(paths: Sequence[str]) -> dict[str, str]:
    """Short path -> path, where short leaves out the one folder that holds everything, if folders are inside it."""
    one = len({path.split("/")[0] for path in paths}) == 1 and all(path.count("/") >= 2 for path in paths)
    return {path.split("/", 1)[1] if one else path: path for path in paths}
