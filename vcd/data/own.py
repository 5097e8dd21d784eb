"""The user's own images, resized and converted to what a model was trained on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from vcd.data.decode import decode
from vcd.data.files import open_files
from vcd.errors import UserError


def read(places: str | list[str], *, size: int, channels: int, key: str) -> UInt8[Tensor, "n c h w"]:
    """Images from a file, several files, or a folder or zip (its files by name); cropped and resized as in training.

    UserError, naming `key`, for what is missing, and one for all files that are not images.
    """
    images, broken = [], []
    for place in [places] if isinstance(places, str) else places:
        path = Path(place).expanduser()
        if not path.exists():
            raise UserError(f"{key}={place}: there is no such file or folder")
        if path.is_file() and path.suffix.lower() != ".zip":
            found: dict[str, Callable[[], bytes]] = {path.name: path.read_bytes}
        else:
            try:
                files = open_files(path)
            except UserError as error:
                raise UserError(f"{key}={place} is neither an image, a folder nor a readable zip") from error
            found = {f.path: partial(files.read, f.path) for f in files.listing()}
        if not found:
            raise UserError(f"{key}={place} is an empty folder")
        for name, content in found.items():
            try:
                images.append(torch.tensor(decode(content(), size, channels)[0]))
            except Exception:  # whatever Pillow raises for a broken file
                broken.append(name)
    if not images and not broken:
        raise UserError(f"{key} is empty: give a file, [FILE,...] or a folder")
    if broken:
        raise UserError(f"{key}: {', '.join(broken[:20])} cannot be read as images; take others")
    return torch.stack(images)
