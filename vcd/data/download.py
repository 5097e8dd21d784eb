"""Fetch the files of a published data set, whole or not at all."""

import hashlib
import logging
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from vcd.errors import UserError
from vcd.files import atomic

TIMEOUT = 15  # seconds without an answer until a server counts as unreachable
log = logging.getLogger(__name__)


def fetch(name: str, folder: Path, files: Mapping[str, str], mirrors: Sequence[str]) -> None:
    """Download `files` (name -> md5) of the data set `name` into `folder`, from the first mirror that has them.

    A file appears under its name only when it is complete and its md5 is right.
    Raises UserError, naming every file, the folder and the source, when a file cannot be had.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}): set data.root to one you own") from error
    for file, md5 in files.items():
        failures = []
        for mirror in mirrors:
            try:
                _download(mirror + file, folder / file, md5)
                break
            except (OSError, HTTPException, ValueError) as error:
                failures.append(str(getattr(error, "reason", error)))
        else:
            raise UserError(
                f"{name} is not in {folder} and cannot be downloaded ({failures[0]}): "
                f"put {', '.join(files)} there, from {mirrors[0]}"
            )


def _download(url: str, path: Path, md5: str) -> None:
    """One file; ValueError if the download is not the file that was asked for."""
    log.info("downloading %s", url)
    digest = hashlib.md5(usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "vcd"})
    with atomic(path) as part:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, open(part, "wb") as out:
            size = answer.headers.get("Content-Length")
            with tqdm(total=size and int(size), unit="B", unit_scale=True, desc=path.name, leave=False) as bar:
                while chunk := answer.read(1 << 16):
                    out.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
        if digest.hexdigest() != md5:
            raise ValueError(f"what {url} sends has the wrong checksum")
