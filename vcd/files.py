"""Files that are whole or not there: every writer of the project goes through here."""

import csv
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vcd.errors import UserError

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


def check_writable(path: Path, key: str, *, folder: bool = False) -> Path:
    """`path`, a file or folder that `key` names and that is written later. UserError where that will not be possible."""
    place = path if folder else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        if path.exists() and path.is_dir() != folder:
            raise OSError(0, f"it is a {'folder' if path.is_dir() else 'file'}")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"{key}={path} cannot be written ({error.strerror}): choose another place, {key}=..."
        ) from error
    return path


def sweep(folder: str | Path) -> None:
    """Delete what killed processes left half-written in `folder`."""
    for left in Path(folder).glob(f"{PREFIX}*"):
        left.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """UserError where `path`, a file of a run, cannot be written inside: why, and what to do about it."""
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        yield
    except OSError as error:
        if not path.parent.is_dir():
            raise UserError(f"{path.parent} was deleted while it was in use: the same command begins again") from error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "free some space" if full else "see to it that it can be written"
        raise UserError(f"could not write {path} ({error.strerror}): {mend} and run the same command again") from error


def read_steps(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV of numbers (and gaps) by step. A last line that a killed process has not finished does not count.

    UserError, naming the line, where the file is damaged.
    """
    try:
        lines = Path(path).read_bytes().decode().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, or put a copy in its place") from error
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    found = []
    try:
        for row in rows:
            if None in row or None in row.values() or "step" not in row:
                raise ValueError("its fields are not those of the first line")
            _ = int(row["step"]), [float(value) for value in row.values() if value]
            found.append(row)
    except (csv.Error, ValueError) as error:
        raise UserError(
            f"{path} is damaged in line {rows.line_num} ({error}): delete that line, or the file"
        ) from error
    return found


def read_metrics(path: Path) -> dict[str, Any]:
    """A metrics.json, as vcd.evaluate writes it. UserError where it is damaged."""
    try:
        found = json.loads(path.read_text())
        if isinstance(found["subject"], dict) and all("value" in number for number in found["metrics"].values()):
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path} is damaged: python -m vcd.evaluate writes it again")
