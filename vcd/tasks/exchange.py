"""Source, target, and the target with the source's latents at each step, or at `levels` together."""

from collections.abc import Mapping
from pathlib import Path

from vcd import figures, steering
from vcd.models.base import Diffusion
from vcd.request import Request, columns, steerable, title


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    blocks = []
    for name, model in steerable(models).items():
        target, source = request.pair(model)
        steps = request.steps(model)
        units = None if request.place is None else steering.at_place(model, request.place)
        paths = [source, target, *(steering.exchange(target, source, levels, units) for levels in steps)]
        blocks.append((name, columns(model, paths), ["source", "target", *map(title, steps)]))
    return [figures.sheet(out / "exchange.png", blocks)]
