"""python -m vcd.report run=...: one self-contained HTML file with everything there is to see of one or several runs."""

import base64
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vcd.cli import entry, listed
from vcd.errors import UserError
from vcd.files import check_writable, read_metrics
from vcd.identity import incidental

if TYPE_CHECKING:
    from vcd.models.base import Diffusion
    from vcd.steering import Path as LatentPath

log = logging.getLogger("vcd")
TEMPLATE = Path(__file__).with_name("report.html.jinja")
STEPS = 12  # of the exchange matrix at most


@entry("report")
def main(cfg: DictConfig) -> None:
    """Draw what the runs' checkpoints and metrics have to show; print the path of the HTML file."""
    from vcd import checkpoints
    from vcd.files import write_text
    from vcd.quiet import quiet

    quiet()
    if not cfg.run:
        raise UserError("say which run to report on: run=runs/..., or several: run=[A,B]")
    folders = [Path(str(f)).expanduser() for f in listed(cfg.run)]
    out = check_writable(Path(str(cfg.out)) if cfg.out else folders[0] / "report.html", "out")
    device = checkpoints.device_of(cfg.device)
    runs = []
    for folder in folders:
        log.info("drawing %s", folder)
        runs.append(look(folder, n=cfg.n, pairs=cfg.pairs, seed=cfg.seed, device=device))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, render(runs))
    log.info("%-10s %s", "report", out.resolve())


@dataclass
class Exchange:
    """Matrices of images, a target a row and a source a column, one for every step of `levels`."""

    levels: list[int]
    pictures: list[str]  # data URIs


@dataclass
class Look:
    """One run, as the page shows it; pictures are data URIs."""

    name: str
    model: str
    facts: dict[str, str]
    config: str
    flat: dict[str, Any]  # the config, key by key
    metrics: list[dict[str, str]]  # rows of metrics.csv
    evaluation: dict[str, Any]  # metrics.json, where there is one
    samples: str
    sequences: str
    animation: str
    bands: str | None = None
    exchange: Exchange | None = None


def look(folder: Path, *, n: int, pairs: int, seed: int, device: str) -> Look:
    """Everything to be seen of the run in `folder`. UserError when it is no run folder."""
    from vcd import checkpoints, curves, steering
    from vcd.callbacks.pictures import FRAMES
    from vcd.images import grid, to_uint8
    from vcd.randomness import PerImage

    if not (folder / "last.ckpt").is_file():
        raise UserError(f"run={folder} holds no last.ckpt: give a run folder, such as one below runs/")
    evaluation = read_metrics(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    model, cfg = checkpoints.load(folder / "last.ckpt", device)
    trajectory = model.sample(PerImage(seed, range(n), model.device), keep=FRAMES)
    states = to_uint8(trajectory.states).cpu()
    rows = states[:, :8].flip(0).transpose(0, 1)[:, :: max(1, len(states) // 12)]
    steps = checkpoints.read(folder / "last.ckpt")["global_step"]
    status = json.loads((folder / "status.json").read_text()) if (folder / "status.json").exists() else {}
    seen = Look(
        name=folder.resolve().name,
        model=type(model).__name__,
        facts={
            "data": cfg.dataset.name,
            "levels T": str(cfg["T"]),
            "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
            "steps": f"{steps:,} of {cfg.trainer.max_steps:,}",
            "images seen": f"{steps * cfg.batch_size:,}",
            "state": status.get("state", "unknown"),
            "seed": str(cfg.seed),
        },
        config=OmegaConf.to_yaml(cfg, resolve=True),
        flat=_flat(OmegaConf.to_container(cfg, resolve=True)),
        metrics=curves.read(folder / "metrics.csv") if (folder / "metrics.csv").exists() else [],
        evaluation=evaluation,
        samples=_png(grid(states[0])),
        sequences=_png(grid(rows.flatten(0, 1), columns=rows.shape[1])),
        animation=_gif([grid(frame) for frame in states.flip(0)]),
    )
    if model.latents(PerImage(seed, [0], model.device)) is not None:
        path = steering.draw(model, PerImage(seed, range(pairs), model.device))
        seen.exchange = exchange_matrices(model, path)
        seen.bands = contributions(seen.model, model, path)
    return seen


def exchange_matrices(model: "Diffusion", path: "LatentPath") -> Exchange:
    """Every image with the latent of every other at each step: targets are rows, sources columns."""
    from dataclasses import replace

    import torch

    from vcd import steering
    from vcd.images import grid, to_uint8

    n, levels = len(path), steering.levels_of(model, STEPS)
    target = path.take([i for i in range(n) for _ in range(n)])
    source = replace(path.take(list(range(n)) * n), noise=target.noise)
    x0 = steering.decode(model, path, keep=2).x0
    pictures = []
    for t in levels:
        changed = steering.decode(model, steering.exchange(target, source, [t]), keep=2).x0.unflatten(0, (n, n))
        head = torch.cat([torch.zeros_like(x0[:1]), x0])  # grey corner, then the sources
        body = torch.cat([x0[:, None], changed], 1).flatten(0, 1)
        pictures.append(_png(grid(to_uint8(torch.cat([head, body])).cpu(), columns=n + 1)))
    return Exchange(levels, pictures)


def contributions(name: str, model: "Diffusion", path: "LatentPath") -> str:
    """The figure of `task=bands`: each image exchanges with the next one."""
    from dataclasses import replace

    from vcd import figures, spectra

    n = len(path)
    source = replace(path.take([(i + 1) % n for i in range(n)]), noise=path.noise)
    buffer = io.BytesIO()
    figures.bands(buffer, [(name, spectra.measure(model, path, source))])
    return _uri(buffer.getvalue(), "image/png")


def render(runs: list[Look], table: list[list[str]] | None = None) -> str:
    """The page; table: header and rows of a comparison, where there is one."""
    import jinja2

    from vcd import curves

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    panels = [(title, _figure(f)) for title, f in curves.panels({run.name: (run.model, run.metrics) for run in runs})]
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(runs=runs, panels=panels, differences=differences(runs), table=table)


def differences(runs: list[Look]) -> list[tuple[str, list[str]]]:
    """The keys of the configurations that differ, each with its values in the order of the runs."""
    keys = dict.fromkeys(key for run in runs for key in run.flat if not incidental(key))
    values = {key: [str(run.flat.get(key, "–")) for run in runs] for key in keys}
    parts = {
        key for key in values if values.get(key.removeprefix("model.")) == values[key] and key.startswith("model.")
    }
    return [(key, row) for key, row in values.items() if key not in parts and len(set(row)) > 1]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _png(image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue(), "image/png")


def _gif(frames: list) -> str:
    buffer = io.BytesIO()
    durations = [max(80, 2400 // len(frames))] * (len(frames) - 1) + [2000]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return _uri(buffer.getvalue(), "image/gif")


def _figure(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return _uri(buffer.getvalue(), "image/png")


if __name__ == "__main__":
    main()
