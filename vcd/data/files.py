"""The files of a data set, in a folder or a zip, behind one interface."""

import os
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import final

from vcd.errors import UserError


@dataclass(frozen=True)
class File:
    path: str  # relative, with forward slashes
    stamp: str  # changes when the file does


class Files(ABC):
    """All files under one place; hidden files and the extras that macOS adds to zips are skipped."""

    def listing(self) -> list[File]:
        """Every file, sorted by path."""
        seen = (file for file in self._all() if not _litter(file.path))
        return sorted(seen, key=lambda file: file.path)

    @abstractmethod
    def _all(self) -> list[File]: ...

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The content of a file; safe to call from several threads."""


def _litter(path: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))


@final
class FolderFiles(Files):
    """Symbolic links are followed, and each folder is visited once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _all(self) -> list[File]:
        files, visited = [], set()
        for folder, subfolders, names in os.walk(self.folder, followlinks=True):
            if (real := os.path.realpath(folder)) in visited:
                subfolders.clear()
                continue
            visited.add(real)
            for name in names:
                path = Path(folder, name)
                status = path.stat() if path.exists() else path.lstat()  # a dangling link is found when it is read
                files.append(File(path.relative_to(self.folder).as_posix(), f"{status.st_size}-{status.st_mtime_ns}"))
        return files

    def read(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()


@final
class ZipFiles(Files):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive

    def _all(self) -> list[File]:
        return [File(i.filename, f"{i.file_size}-{i.CRC}") for i in self.archive.infolist() if not i.is_dir()]

    def read(self, path: str) -> bytes:
        return self.archive.read(path)


def open_files(path: Path) -> Files:
    """The files at `path`, a folder or a zip. Raises UserError naming `dataset.path`."""
    if path.is_dir():
        return FolderFiles(path)
    if not path.exists():
        raise UserError(f"dataset.path={path} does not exist: set dataset.path to a folder of images or a zip of it")
    try:
        return ZipFiles(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"dataset.path={path} is neither a folder nor a readable zip ({error})") from error
