"""Attribute edits: z + lambda (mean z of `images`, which have the attribute, - mean z of `sources`, which have not)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from vcd import figures, refining
from vcd.errors import UserError
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.request import Request, shown


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    if request.images is None or request.sources is None:
        raise UserError(
            "task=guess_edit: give images with the attribute, images=FOLDER, and others without it, sources=FOLDER"
        )
    weights, blocks = torch.linspace(-2, 2, request.weights).tolist(), []
    for name, model in models.items():
        draft = refining.draw(model, PerImage(request.seed, range(request.n), model.device))
        means = []
        for key in ("images", "sources"):
            x0 = request.given(model, key)
            means.append(refining.encode(model, x0, PerImage(request.seed, range(len(x0)), model.device)).z.mean(0))
        columns = [refining.refine(model, replace(draft, z=draft.z + w * (means[0] - means[1]))) for w in weights]
        blocks.append((name, torch.stack([shown(model, x) for x in columns], 1)))
    return [figures.sheet(out / "guess_edit.png", blocks, [f"{w:g}" for w in weights])]
