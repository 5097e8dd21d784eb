"""Files that are whole or not there: every writer of the project goes through here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".writing-"  # of files that a killed process may leave behind: see `sweep`


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`: what is written there takes the place of `path` once it is on the disk.

    If the block raises, or the process is killed, `path` is as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PREFIX}{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def sweep(folder: str | Path) -> None:
    """Delete what killed processes left half-written in `folder`."""
    for left in Path(folder).glob(f"{PREFIX}*"):
        left.unlink(missing_ok=True)
