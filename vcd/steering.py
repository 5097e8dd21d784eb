"""Control through latents: encode, decode, exchange, interpolate and resample the path of an image, step by step.

A generation is decided by x_T, one latent per step and, where the model was trained with it, a little noise on every
state: its `Path`. Decoding the same path gives the same image; changing z_t changes what step t contributes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vcd.batch import UNCONDITIONAL
from vcd.errors import UserError
from vcd.models.base import Diffusion
from vcd.models.variational import Variational
from vcd.networks.cells import Cells
from vcd.randomness import PerImage
from vcd.samplers import Trajectory
from vcd.spaces import finite


@dataclass(frozen=True)
class Path:
    """All that decides n images: x_T, z (z_t at index t - 1), and the noise of sampling, which replays; where the model
    refines a first guess, also the guess's code."""

    x_T: Float[Tensor, "n c h w"]
    z: Float[Tensor, "T n d"]
    noise: PerImage
    code: Float[Tensor, "n d2"] | None = None

    def __len__(self) -> int:
        return len(self.x_T)

    def take(self, rows: Sequence[int]) -> "Path":
        """These images' paths; rows may repeat."""
        rows = list(rows)
        code = None if self.code is None else self.code[rows]
        return Path(self.x_T[rows], self.z[:, rows], self.noise.take(rows), code)


def levels_of(model: Diffusion, limit: int | None = None) -> list[int]:
    """The levels at which the model's sampler takes a latent, T first; no more than `limit`, evenly spread."""
    levels = model.sampler.grid(model.degradation.T)[:-1]
    if limit is None or len(levels) <= limit:
        return levels
    return [levels[i] for i in torch.linspace(0, len(levels) - 1, limit).round().long()]


def variational(model: Diffusion) -> Variational:
    """The model, if it has latents; else UserError."""
    if not model.has_latents:
        raise UserError(f"a {type(model).__name__} has no latents to steer by: take a checkpoint of model=vcd or vwd")
    return cast(Variational, model)


@torch.no_grad()
def draw(model: Variational, randomness: PerImage, temperature: float | None = None) -> Path:
    """The paths of unconditional samples; at the model's temperature, None, they decode to those of `model.sample`."""
    temperature = model.temperature if temperature is None else temperature
    if model.guess is None:
        x_T, code = model.start.sample(randomness), None
    else:
        code = model.guess.draw(randomness.apart())
        x_T, _ = model.begin(model.guess.condition(code, model.space), randomness)
    return Path(x_T, model.prior.sample(model.degradation.T, randomness, temperature), randomness.take(), code)


def encode(
    model: Variational,
    x0: Float[Tensor, "n c h w"],
    randomness: PerImage,
    temperature: float = 0.0,
    level: int | None = None,
) -> tuple[Path, Float[Tensor, "T n"]]:
    """The paths of given images, and the KL of every step to the prior in nats; see `Variational.encode_path`.

    NotFinite where a latent or its KL is.
    """
    found = model.encode_path(x0, randomness, temperature=temperature, level=level)
    finite(torch.cat([found.z.flatten(2), found.kl[..., None]], 2).transpose(0, 1), "paths of images")
    return Path(found.x_T, found.z, found.noise, found.code), found.kl


@torch.no_grad()
def decode(
    model: Variational, path: Path, keep: int | None = None, level: int | None = None, batch: int = 256
) -> Trajectory:
    """The images of the paths, and the states on the way (see `Trajectory`), `batch` images at a time.

    level: where the paths begin; None: T, or where the model's first guess says. NotFinite where a state is.
    """
    parts, level = [], level or (model.guess.level if model.guess is not None else None)
    for first in range(0, len(path), batch):
        part = path.take(range(first, min(first + batch, len(path))))
        told = UNCONDITIONAL
        if model.guess is not None and part.code is not None:
            told = model.guess.condition(part.code, model.space)
        parts.append(model.walk(part.x_T, part.noise, latents=part.z, condition=told, level=level, keep=keep))
        finite(parts[-1].states.transpose(0, 1), "images")
    return Trajectory(parts[0].levels, torch.cat([p.states for p in parts], 1))


def exchange(target: Path, source: Path, levels: Sequence[int], units: Bool[Tensor, "T d"] | None = None) -> Path:
    """The target's paths with the source's latents at `levels`; level T brings the source's x_T along.

    units: which of their numbers, such as those of `at_place`; None: all. x_T comes along if all of level T do.

    Examples:
        >>> model = vcd.load("digits")
        >>> a, b = model.draw([0, 1]), model.draw([2, 3])
        >>> torch.equal(model.decode(exchange(a, b, [])), model.sample([0, 1]))  # nothing is exchanged
        True
    """
    z, T = target.z.clone(), len(target.z)
    index = [t - 1 for t in levels]
    z[index] = source.z[index] if units is None else source.z[index].where(units[index][:, None], z[index])
    whole = T in levels and (units is None or bool(units[T - 1].all()))
    return replace(target, z=z, x_T=source.x_T if whole else target.x_T)


def at_place(model: Variational, place: Sequence[int | float]) -> Bool[Tensor, "T d"]:
    """Which numbers of z_t belong to a place, (top, left, bottom, right) in fractions of the image (`Cells.inside`).

    UserError where latents have no place, or where it holds none of them at any level.
    """
    top, left, bottom, right = place if len(place) == 4 else (math.nan,) * 4
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise UserError(
            f"place={list(place)}: top, left, bottom and right are fractions of the image, such as [0,0,0.5,1]"
        )
    cells = getattr(model.encoder, "cells", None)
    if not isinstance(cells, Cells):
        raise UserError("place: the latents of this model have no place in the image; train with injection=spatial")
    T = model.degradation.T
    t = torch.arange(1, T + 1, device=model.device)
    found = torch.zeros(T, model.prior.latent, dtype=torch.bool, device=model.device)
    for level in levels_of(model):
        s = model.sampler.ask(t[level - 1 :][:1], model.sampler.below(t[level - 1 :][:1], T))
        found[level - 1] = cells.inside(place, int(s))
    if not found.any():
        raise UserError(f"place={list(place)} holds no cell: there are {cells.shape[1]} across the image")
    return found


def interpolate(a: Path, b: Path, weight: float, levels: Sequence[int]) -> Path:
    """Spherically from a (weight 0) to b (weight 1) in the latents of `levels`, with x_T straight; else a's path."""
    z, T = a.z.clone(), len(a.z)
    index = [t - 1 for t in levels]
    z[index] = slerp(a.z[index], b.z[index], weight)
    return replace(a, z=z, x_T=torch.lerp(a.x_T, b.x_T, weight) if T in levels else a.x_T)


def slerp(a: Float[Tensor, "*n d"], b: Float[Tensor, "*n d"], weight: float) -> Float[Tensor, "*n d"]:
    """Spherical interpolation of vectors (Shoemake 1985), straight where they are (nearly) parallel."""
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).clamp(-1, 1)
    angle = torch.acos(cosine).to(a.dtype)[..., None]
    sine = angle.sin()
    parallel = sine.abs() < 1e-4
    along = [torch.sin(w * angle) / sine.masked_fill(parallel, 1.0) for w in (1 - weight, weight)]
    return torch.where(parallel, torch.lerp(a, b, weight), along[0] * a + along[1] * b)


@torch.no_grad()
def resample(model: Variational, path: Path, levels: Sequence[int], randomness: PerImage) -> Path:
    """The paths with the latents of `levels` drawn anew from the prior, given those that stay."""
    return replace(path, z=model.prior.resample(path.z, levels, randomness))
