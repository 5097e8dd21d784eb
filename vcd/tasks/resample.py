"""The fan of variations: an image, and what it becomes when the latent of a step (or of `levels`) is drawn anew."""

from collections.abc import Mapping
from pathlib import Path

import torch

from vcd import figures, steering
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.request import Request, columns, steerable, title


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    blocks = []
    for name, model in steerable(models).items():
        path = request.paths(model, "images", 1).take([0])
        steps = request.steps(model)
        fans = []
        for levels in steps:
            others = [PerImage(request.seed + 1, [i], model.device) for i in range(request.variations)]
            fans.append(columns(model, [path, *(steering.resample(model, path, levels, other) for other in others)]))
        blocks.append((name, torch.cat(fans), None, [title(levels) for levels in steps]))
    return [figures.sheet(out / "resample.png", blocks, ["image", *(str(i + 1) for i in range(request.variations))])]
