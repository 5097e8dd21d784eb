"""The same images from latents that are drawn more and more boldly."""

from collections.abc import Mapping
from pathlib import Path

from vcd import figures, steering
from vcd.models.base import Diffusion
from vcd.request import Request, columns, steerable


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    blocks = []
    for name, model in steerable(models).items():
        temperatures = [float(t) for t in request.temperatures]
        paths = [steering.draw(model, request.randomness(model, request.n), t) for t in temperatures]
        blocks.append((name, columns(model, paths)))
    return [figures.sheet(out / "temperature.png", blocks, [f"{t:g}" for t in request.temperatures])]
