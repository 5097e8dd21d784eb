"""What `python -m vcd.control` is asked for, whatever the task: which images, their paths, and the steps to act on."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vcd import steering
from vcd.data import own
from vcd.errors import UserError
from vcd.models.base import Diffusion
from vcd.models.variational import Variational
from vcd.randomness import PerImage

COLUMNS = 12  # of steps in a figure, at most
SOURCES = 100_000  # the first index of generated sources: others than the images


@dataclass(frozen=True, kw_only=True)
class Request:
    """The keys of conf/control.yaml, apart from the task."""

    n: int
    seed: int
    images: str | list[str] | None
    sources: str | list[str] | None
    levels: int | list[int] | None
    posterior: float
    temperatures: list[float]
    variations: int
    weights: int
    place: list[int | float] | None = None

    def randomness(self, model: Variational, n: int, first: int = 0) -> PerImage:
        """Of n images."""
        return PerImage(self.seed, range(first, first + n), model.device)

    def given(self, model: Diffusion, key: str = "images") -> Float[Tensor, "n c h w"]:
        """x0 of the user's images, or generated ones."""
        places = getattr(self, key)
        if places is None:
            steered = steering.variational(model)
            return steering.decode(steered, self.paths(steered, key, self.n), keep=2).x0
        channels, size, _ = model.image_shape
        images = own.read(places, size=size, channels=channels, key=key)
        return model.space.encode(images.to(model.device))

    def paths(self, model: Variational, key: str, n: int) -> steering.Path:
        """Of the user's images, or of n generated ones."""
        first = 0 if key == "images" else SOURCES
        if getattr(self, key) is None:
            return steering.draw(model, self.randomness(model, n, first))
        x0 = self.given(model, key)
        return steering.encode(model, x0, self.randomness(model, len(x0), first), self.posterior)[0]

    def pair(self, model: Variational) -> tuple[steering.Path, steering.Path]:
        """Target and source, row by row under the same noise, so that latents alone tell them apart."""
        target = self.paths(model, "images", self.n)
        source = self.paths(model, "sources", len(target))
        if len(source) != len(target):
            raise UserError(
                f"images has {len(target)} and sources {len(source)}: they are taken in pairs, give as many of each"
            )
        return target, replace(source, noise=target.noise)

    def chosen(self, model: Variational) -> list[int]:
        """The levels asked for, T first; none for `levels=null`."""
        if self.levels is None:
            return []
        ends = self.levels if isinstance(self.levels, list) else [self.levels] * 2
        T = model.degradation.T
        if len(ends) != 2 or not all(isinstance(t, int) and 1 <= t <= T for t in ends):
            raise UserError(f"levels={self.levels}: give one step, or [from,to], between 1 and T={T}")
        return list(range(max(ends), min(ends) - 1, -1))

    def steps(self, model: Variational) -> list[list[int]]:
        """The levels asked for, together; or each on its own."""
        together = self.chosen(model)
        return [together] if together else [[t] for t in steering.levels_of(model, COLUMNS)]


def steerable(models: Mapping[str, Diffusion]) -> dict[str, Variational]:
    """The models, all of which have latents; else UserError."""
    return {name: steering.variational(model) for name, model in models.items()}


def title(levels: Sequence[int]) -> str:
    """t=4, or t=5..2."""
    return f"t={levels[0]}" if len(levels) == 1 else f"t={levels[0]}..{levels[-1]}"


def columns(model: Variational, paths: Iterable[steering.Path]) -> UInt8[Tensor, "rows columns c h w"]:
    """The images, a path a column."""
    return torch.stack([shown(model, steering.decode(model, path, keep=2).x0) for path in paths], 1)


def shown(model: Diffusion, x: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c2 h2 w2"]:
    """The images of x, whichever space the model lives in."""
    return model.space.decode(x).cpu()


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
