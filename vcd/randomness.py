"""Random numbers of an image's own: those of image i of a seed are the same in any batch, on any device."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt64
from torch import Tensor

Words = UInt64[np.ndarray, "n words"]
Values = Float32[np.ndarray, "n words"]
CACHE = 2**14  # words at a time, to stay in the processor's cache


class PerImage:
    """For every image a stream of random numbers, a function of (seed, index) alone.

    The streams are counter-based (Philox 4x64: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), with
    (seed, index) as their key of 128 bits: no two images share one. Numbers are drawn on the CPU and moved, so they are
    the same on every device. What a network makes of them is the same in any batch and on any device up to rounding.

    Examples:
        >>> five, last = PerImage(0, range(5)), PerImage(0, [4])
        >>> torch.equal(five.normal(3)[4], last.normal(3)[0])  # image 4 of seed 0, in any batch
        True
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self._keys = [(int(index) << 64) + seed % 2**64 for index in indices]
        self._drawn = 0  # blocks of four words, of every image

    @functools.cached_property
    def _streams(self) -> list[np.random.Philox]:
        return [np.random.Philox(key=key, counter=self._drawn) for key in self._keys]

    def __len__(self) -> int:
        return len(self._keys)

    def take(self, rows: Sequence[int] | None = None) -> "PerImage":
        """These images' numbers (default: all images') from here on, to be drawn independently; rows may repeat."""
        other = PerImage(0, [], self.device)
        other._keys = self._keys[:] if rows is None else [self._keys[row] for row in rows]
        other._drawn = self._drawn
        return other

    def apart(self) -> "PerImage":
        """Numbers of the same images that these here never come to: for what is drawn beside a walk, and must not move it."""
        other = self.take()
        other._drawn += 2**128
        return other

    def normal(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Standard normal (n, *shape)."""
        size = math.prod(shape)
        blocks = math.ceil(size / 8)  # a block makes eight
        values = np.empty((len(self), 2, 4 * blocks), np.float32)
        images = max(1, CACHE // max(1, 4 * blocks))
        for first in range(0, len(self), images):
            some = slice(first, first + images)
            _box_muller(self._words(some, blocks), values[some, 0], values[some, 1])
        self._drawn += blocks
        return torch.from_numpy(values.reshape(len(self), 8 * blocks)[:, :size].reshape(len(self), *shape)).to(
            self.device
        )

    def uniform(self) -> Float[Tensor, " n"]:
        """Uniform on [0, 1), (n,)."""
        words = self._words(slice(None), 1)
        self._drawn += 1
        return torch.from_numpy(_fraction(words[:, :1] >> np.uint64(40)).reshape(-1)).to(self.device)

    def _words(self, images: slice, blocks: int) -> Words:
        """The next blocks of these images' streams."""
        streams = self._streams[images]
        words = np.empty((len(streams), 4 * blocks), np.uint64)
        for row, stream in zip(words, streams, strict=True):
            row[:] = stream.random_raw(len(row))
        return words


def _fraction(bits: Words) -> Values:
    """Whole numbers of 24 bits as multiples of 2^-24 in [0, 1)."""
    return bits.astype(np.float32) * np.float32(2**-24)


def _box_muller(words: Words, x: Values, y: Values) -> None:
    """x, y: two independent standard normals of every word (Box and Muller 1958). Its upper bits make the radius."""
    radius = _fraction(words >> np.uint64(40))
    radius += np.float32(2**-25)  # above 0
    np.sqrt(np.float32(-2) * np.log(radius), out=radius)
    angle = np.float32(2 * math.pi) * _fraction(words >> np.uint64(8) & np.uint64(2**24 - 1))
    np.multiply(radius, np.cos(angle), out=x)
    np.multiply(radius, np.sin(angle), out=y)
