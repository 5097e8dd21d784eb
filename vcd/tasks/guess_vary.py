"""What the guess decides, and what the refinement: one z under many x_T and noises, and many z under one of both."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from vcd import figures, refining
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.request import Request, shown


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    blocks, k = [], request.variations
    for name, model in models.items():
        draft = refining.draw(model, PerImage(request.seed, range(request.n), model.device))
        others = [
            refining.draw(model, PerImage(request.seed + 1 + i, range(request.n), model.device)) for i in range(k)
        ]
        own = [refining.guesses(model, draft), refining.refine(model, draft)]
        for title, fan in (
            ("z fixed", [replace(draft, noise=other.noise) for other in others]),
            ("noise fixed", [replace(draft, z=other.z) for other in others]),
        ):
            columns = [*own, *(refining.refine(model, one) for one in fan)]
            blocks.append((f"{name}, {title}", torch.stack([shown(model, x) for x in columns], 1)))
    return [figures.sheet(out / "guess_vary.png", blocks, ["guess", "image", *(str(i + 1) for i in range(k))])]
