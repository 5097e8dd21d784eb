"""Control of a model that refines first guesses: what the guess decides, and what the refinement."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.errors import UserError
from vcd.guess import Code, Guess
from vcd.models.base import Diffusion
from vcd.randomness import PerImage


@dataclass(frozen=True)
class Draft:
    """All that decides n images: the code z of the guess; and x_T and all noise after it, which replays.

    x_T: in the place of the one that `noise` draws. temperature: scales x_T.
    """

    z: Code
    noise: PerImage
    x_T: Float[Tensor, "n c h w"] | None = None
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.z)

    def take(self, rows: Sequence[int]) -> "Draft":
        """These images' drafts; rows may repeat."""
        rows = list(rows)
        x_T = None if self.x_T is None else self.x_T[rows]
        return replace(self, z=self.z[rows], noise=self.noise.take(rows), x_T=x_T)


def guess_of(model: Diffusion) -> Guess:
    """The guess that the model refines; else UserError."""
    if model.guess is None:
        raise UserError(f"this {type(model).__name__} refines no first guess: take a checkpoint of model=diffusevae, or of any "
                        "other with guess=vae")  # fmt: skip
    return model.guess


@torch.no_grad()
def draw(model: Diffusion, randomness: PerImage, temperature: float = 1.0) -> Draft:
    """The drafts of `model.sample`; temperature: of the code."""
    return Draft(guess_of(model).draw(randomness.apart(), temperature), randomness.take())


@torch.no_grad()
def encode(model: Diffusion, x0: Float[Tensor, "n c h w"], randomness: PerImage) -> Draft:
    """Drafts of given images: a code of each."""
    return Draft(guess_of(model).encode(x0, model.space, randomness.apart()), randomness.take())


@torch.no_grad()
def guesses(model: Diffusion, draft: Draft) -> Float[Tensor, "n c h w"]:
    """xhat."""
    return guess_of(model).decode(draft.z, model.space)


@torch.no_grad()
def refine(model: Diffusion, draft: Draft, corruption: float = 0.0, batch: int = 256) -> Float[Tensor, "n c h w"]:
    """x_0 of the drafts; corruption: standard deviation of noise on the guess, which nobody was trained for."""
    parts = []
    for first in range(0, len(draft), batch):
        part = draft.take(range(first, min(first + batch, len(draft))))
        told = guess_of(model).condition(part.z, model.space)
        if corruption and told.image is not None:
            told = replace(told, image=told.image + corruption * part.noise.apart().normal(*told.image.shape[1:]))
        noise = part.noise.take()
        x, level = model.begin(told, noise)
        x = part.temperature * (x if part.x_T is None else part.x_T)
        parts.append(model.walk(x, noise, latents=model.latents(noise), condition=told, level=level, keep=2).x0)
    return torch.cat(parts)


@torch.no_grad()
def starts(model: Diffusion, draft: Draft) -> Float[Tensor, "n c h w"]:
    """x_T of the drafts. UserError where it depends on the guess."""
    if guess_of(model).level is not None:
        raise UserError(
            "this model begins at the degraded guess (guess.level): there is no x_T of its own to interpolate"
        )
    return model.start.sample(draft.noise.take())
