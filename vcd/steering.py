"""Control through latents: encode, decode, exchange, interpolate and resample the path of an image, step by step.

A generation is decided by x_T, one latent a step and, where the model was trained with it, a little noise on every
state: its `Path`. Decoding the same path gives the same image; changing z_t changes what step t contributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.models.base import Diffusion
from vcd.models.variational import Variational
from vcd.randomness import PerImage
from vcd.samplers import Trajectory


@dataclass(frozen=True)
class Path:
    """All that decides n images: x_T, z (z_t at index t - 1), and the noise of sampling, which replays."""

    x_T: Float[Tensor, "n c h w"]
    z: Float[Tensor, "T n d"]
    noise: PerImage

    def __len__(self) -> int:
        return len(self.x_T)

    def take(self, rows: Sequence[int]) -> "Path":
        """These images' paths; rows may repeat."""
        rows = list(rows)
        return Path(self.x_T[rows], self.z[:, rows], self.noise.take(rows))


def levels_of(model: Diffusion, most: int | None = None) -> list[int]:
    """The levels at which the model's sampler takes a latent, T first; no more than `most`, evenly spread."""
    levels = model.sampler.grid(model.degradation.T)[:-1]
    if most is None or len(levels) <= most:
        return levels
    return [levels[i] for i in torch.linspace(0, len(levels) - 1, most).round().long()]


def eps_of(D: Degradation, x0: Float[Tensor, "n c h w"], randomness: PerImage) -> Tensor | None:
    """The randomness of the images' degradation, each image's from its own; None where there is none."""
    if not D.stochastic:
        return None
    return torch.cat([D.draw(x[None], g) for x, g in zip(x0, randomness.generators, strict=True)])


def variational(model: Diffusion) -> Variational:
    """The model, if it has latents; else UserError."""
    if not isinstance(model, Variational):
        raise UserError(f"a {type(model).__name__} has no latents to steer by: take a checkpoint of model=vcd or vwd")
    return model


@torch.no_grad()
def draw(model: Variational, randomness: PerImage, temperature: float = 1.0) -> Path:
    """The paths of unconditional samples; at temperature 1 they decode to those of `model.sample`."""
    x_T = model.start.sample(randomness)
    return Path(x_T, model.prior.sample(model.degradation.T, randomness, temperature), randomness.take())


@torch.no_grad()
def encode(
    model: Variational,
    x0: Float[Tensor, "n c h w"],
    randomness: PerImage,
    temperature: float = 0.0,
    level: int | None = None,
) -> tuple[Path, Float[Tensor, "T n"]]:
    """The paths of given images, and KL(q(z_t | x_t, x_s) || N(0, I)) of every step in nats.

    z_t comes from the encoder at the state that decoding reaches, so that later steps mend what earlier ones missed.
    temperature: 0 takes the posterior's mean, 1 a sample of it. level: where the paths begin; None: T.
    """
    D, T = model.degradation, model.degradation.T
    end = torch.full((len(x0),), level or T, device=x0.device)
    eps = eps_of(D, x0, randomness)
    x_T, spread = D(x0, end, eps), temperature * randomness.normal(T, model.prior.latent)
    path = Path(x_T, torch.zeros_like(spread).transpose(0, 1).contiguous(), randomness.take())
    kl = torch.zeros(T, len(x0), device=x0.device)

    def look(v: Tensor, t: Tensor, s: Tensor) -> Tensor:
        asked, i = model.sampler.ask(t, s), int(t[0]) - 1
        q = model.encode(v, D(x0, asked, eps), t, asked)
        path.z[i], kl[i] = q.mean + q.stddev * spread[:, i], model.prior.kl(q)
        return path.z[i]

    model.sampler(model, x_T, look, path.noise.take(), level, most=2)
    return path, kl


@torch.no_grad()
def decode(
    model: Variational, path: Path, most: int | None = None, level: int | None = None, batch: int = 256
) -> Trajectory:
    """The images of the paths, and the states on the way (see `Trajectory`), `batch` images at a time.

    level: where the paths begin; None: T.
    """
    parts = []
    for first in range(0, len(path), batch):
        part = path.take(range(first, min(first + batch, len(path))))
        parts.append(model.sampler(model, part.x_T, part.z, part.noise, level, most))
    return Trajectory(parts[0].levels, torch.cat([p.states for p in parts], 1))


def exchange(target: Path, source: Path, levels: Sequence[int]) -> Path:
    """The target's paths with the source's latents at `levels`; level T brings the source's x_T along."""
    z, T = target.z.clone(), len(target.z)
    index = [t - 1 for t in levels]
    z[index] = source.z[index]
    return replace(target, z=z, x_T=source.x_T if T in levels else target.x_T)


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
