"""The same images with more and more spread: in z, and in x_T."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from vcd import figures, refining
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.request import Request, shown


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    temperatures, blocks = [float(t) for t in request.temperatures], []
    for name, model in models.items():
        randomness = PerImage(request.seed, range(request.n), model.device)
        plain = refining.draw(model, randomness.take())
        for title, drafts in (
            ("z", [refining.draw(model, randomness.take(), t) for t in temperatures]),
            ("x_T", [replace(plain, temperature=t) for t in temperatures]),
        ):
            columns = [refining.refine(model, draft) for draft in drafts]
            blocks.append((f"{name}, {title}", torch.stack([shown(model, x) for x in columns], 1)))
    return [figures.sheet(out / "guess_temperature.png", blocks, [f"{t:g}" for t in temperatures])]
