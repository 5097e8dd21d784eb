"""Sheets and animations of 8-bit images."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vcd.files import atomic
from vcd.spaces import BLACK, to_float, to_uint8

__all__ = ["BLACK", "grid", "to_float", "to_uint8", "write_gif", "write_png"]


def grid(images: UInt8[Tensor, "n c h w"], columns: int | None = None, scale: int | None = None) -> Image.Image:
    """Tile images, row by row and on grey, into one PIL image; small ones are enlarged by a whole factor, exactly.

    `columns` defaults to the square root of n; `scale` to what brings an image to about 64 pixels.
    """
    n, c, h, w = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    scale = scale or max(1, 64 // max(h, w))
    rows, gap = math.ceil(n / columns), max(2, scale)
    big = images.expand(n, 3, h, w).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    empty = torch.full((rows * columns - n, *big.shape[1:]), 128, dtype=torch.uint8)
    tiles = F.pad(torch.cat([big, empty]), (0, gap, 0, gap), value=128).unflatten(0, (rows, columns))
    sheet = F.pad(tiles.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2), (gap, 0, gap, 0), value=128)
    return Image.fromarray(sheet.permute(1, 2, 0).numpy())


def write_png(path: Path, images: UInt8[Tensor, "n c h w"], columns: int | None = None) -> Path:
    """Write a grid of images to `path`."""
    with atomic(path) as temporary:
        grid(images, columns).save(temporary, "PNG")
    return path


def write_gif(path: Path, frames: Sequence[UInt8[Tensor, "n c h w"]], columns: int | None = None) -> Path:
    """Write a looping animation, one grid a frame; the last frame is held for two seconds."""
    sheets = [grid(frame, columns) for frame in frames]
    durations = [300] * (len(sheets) - 1) + [2000]
    with atomic(path) as temporary:
        sheets[0].save(temporary, "GIF", save_all=True, append_images=sheets[1:], duration=durations, loop=0)
    return path
