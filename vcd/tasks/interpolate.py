"""From image to source, spherically in the latents of all steps or of `levels`."""

from collections.abc import Mapping
from pathlib import Path

import torch

from vcd import figures, steering
from vcd.models.base import Diffusion
from vcd.request import Request, columns, steerable


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    weights, blocks = torch.linspace(0, 1, request.weights).tolist(), []
    for name, model in steerable(models).items():
        a, b = request.pair(model)
        levels = request.chosen(model) or steering.levels_of(model)
        blocks.append((name, columns(model, [steering.interpolate(a, b, w, levels) for w in weights])))
    return [figures.sheet(out / "interpolate.png", blocks, [f"{w:.2g}" for w in weights])]
