"""From image to source, spherically: in z under one x_T and noise, the guesses above; and in x_T under one z."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from vcd import figures, refining
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.request import SOURCES, Request, shown
from vcd.steering import slerp


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    weights, blocks = torch.linspace(0, 1, request.weights).tolist(), []
    for name, model in models.items():
        a, b = (
            refining.draw(model, PerImage(request.seed, range(first, first + request.n), model.device))
            for first in (0, SOURCES)
        )
        between = [replace(a, z=slerp(a.z, b.z, w)) for w in weights]
        for title, columns in (
            ("guesses", [refining.guesses(model, draft) for draft in between]),
            ("z", [refining.refine(model, draft) for draft in between]),
        ):
            blocks.append((f"{name}, {title}", torch.stack([shown(model, x) for x in columns], 1)))
        if model.guess is not None and model.guess.level is None:
            ends = [refining.starts(model, draft) for draft in (a, b)]
            x_a, x_b = (x.flatten(1) for x in ends)
            columns = [
                refining.refine(model, replace(a, x_T=slerp(x_a, x_b, w).reshape(ends[0].shape))) for w in weights
            ]
            blocks.append((f"{name}, x_T", torch.stack([shown(model, x) for x in columns], 1)))
    return [figures.sheet(out / "guess_interpolate.png", blocks, [f"{w:.2g}" for w in weights])]
