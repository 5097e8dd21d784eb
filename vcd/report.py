"""python -m vcd.report run=...: one self-contained HTML file with everything there is to see of one or several runs."""

import base64
import io
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vcd.cli import entry, listed
from vcd.errors import UserError
from vcd.files import check_writable
from vcd.identity import incidental

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL.Image import Image

    from vcd.curves import Panel
    from vcd.models.variational import Variational
    from vcd.steering import Path as LatentPath

log = logging.getLogger("vcd")
TEMPLATE = Path(__file__).with_name("report.html.jinja")
STEPS = 12  # of the exchange matrix at most
STATES = 13  # of a sequence at most


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
        runs.append(look(folder, n=cfg.n, pairs=cfg.pairs, seed=cfg.seed, device=device, trust=listed(cfg.trust)))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, render(runs))
    log.info("%-10s %s", "report", out.resolve())


@dataclass
class Exchange:
    """Matrices of images, one target per row and one source per column, one matrix for every step of `levels`."""

    levels: list[int]
    pictures: list[str]  # data URIs


@dataclass
class Look:
    """One run, as the page shows it; pictures are data URIs."""

    name: str  # of its folder
    model: str
    facts: dict[str, str]
    config: str
    flat: dict[str, Any]  # the config, key by key
    metrics: list[dict[str, str]]  # rows of metrics.csv
    evaluation: dict[str, Any]  # metrics.json, where there is one
    samples: str
    sequences: str
    animation: str
    contributions: list[str] = field(default_factory=list)
    exchange: Exchange | None = None
    called: str = ""  # how the page calls it; empty: by its model, or where several have the same, by its folder


def look(
    folder: Path, *, n: int, pairs: int, seed: int, device: str, called: str = "", trust: Sequence[str] = ()
) -> Look:
    """Everything to be seen of the run in `folder`. UserError when it is no run folder."""
    import torch

    from vcd import checkpoints, curves, steering, style
    from vcd.callbacks.pictures import FRAMES
    from vcd.images import grid
    from vcd.metrics import results
    from vcd.randomness import PerImage

    if not (folder / "last.ckpt").is_file():
        raise UserError(f"run={folder} holds no last.ckpt: give a run folder, such as one below runs/")
    evaluation = results.read(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    checkpoint = checkpoints.Checkpoint(folder / "last.ckpt", trust)
    model, cfg = checkpoint.model(device)
    trajectory = model.sample(PerImage(seed, range(n), model.device), keep=FRAMES)
    states = torch.stack([model.space.decode(x).cpu() for x in trajectory.states])
    rows = states[style.some(len(states), STATES)[::-1], :8].transpose(0, 1)  # x_T first
    status = json.loads((folder / "status.json").read_text()) if (folder / "status.json").exists() else {}
    seen = Look(
        name=folder.resolve().name,
        model=type(model).__name__,
        facts={
            "data": cfg.dataset.name,
            "levels T": str(cfg["T"]),
            "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
            "steps": f"{checkpoint.step:,} of {cfg.trainer.max_steps:,}",
            "images seen": f"{checkpoint.step * cfg.batch_size:,}",
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
        called=called,
    )
    if model.has_latents:
        steered = steering.variational(model)
        path = steering.draw(steered, PerImage(seed, range(pairs), model.device))
        seen.exchange = exchange_matrices(steered, path)
        seen.contributions = contributions(steered, path)
    return seen


def exchange_matrices(model: "Variational", path: "LatentPath") -> Exchange:
    """Every image with the latent of every other at each step: targets are rows, sources columns."""
    from dataclasses import replace

    import torch

    from vcd import steering
    from vcd.images import grid

    n, levels = len(path), steering.levels_of(model, STEPS)
    target = path.take([i for i in range(n) for _ in range(n)])
    source = replace(path.take(list(range(n)) * n), noise=target.noise)
    images = model.space.decode(steering.decode(model, path, keep=2).x0).cpu()
    head = torch.cat([torch.full_like(images[:1], 128), images])  # grey corner, then the sources
    pictures = []
    for t in levels:
        x0 = steering.decode(model, steering.exchange(target, source, [t]), keep=2).x0
        changed = model.space.decode(x0).cpu().unflatten(0, (n, n))
        body = torch.cat([images[:, None], changed], 1).flatten(0, 1)
        pictures.append(_png(grid(torch.cat([head, body]), columns=n + 1)))
    return Exchange(levels, pictures)


def contributions(model: "Variational", path: "LatentPath") -> list[str]:
    """The plots of `task=bands`: each image exchanges with the next one."""
    from dataclasses import replace

    from vcd import figures, spectra

    n = len(path)
    source = replace(path.take([(i + 1) % n for i in range(n)]), noise=path.noise)
    return [_uri(picture, "image/png") for picture in figures.contributions(spectra.measure(model, path, source))]


def render(runs: list[Look], table: list[list[str]] | None = None, metrics: "Sequence[Panel]" = ()) -> str:
    """The page; table, metrics: header and rows of a comparison, and its metrics over training, where there are any."""
    import jinja2

    from vcd import curves

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    names = call(runs)
    drawn = [*metrics, *curves.panels({names[i]: (run.model, run.metrics) for i, run in enumerate(runs)})]
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(
        runs=runs, names=names, differences=differences(runs), table=list(zip(*table, strict=True)) if table else None,
        panels=[(p.title, _uri(p.picture, "image/png"), p.by_level) for p in drawn],
    )  # fmt: skip


def call(runs: list[Look]) -> list[str]:
    """A short name for each: as it is called, its model, or where several have the same, what sets its folder apart."""
    models = [run.model for run in runs]
    parts = [run.name.split("-") for run in runs]
    common = {part for part in parts[0] if all(part in other for other in parts)}
    names = [
        run.called
        or (run.model if models.count(run.model) == 1 else " ".join([run.model, *(p for p in own if p not in common)]))
        for run, own in zip(runs, parts, strict=True)
    ]
    return names if len(set(names)) == len(names) else [run.name for run in runs]


def _breakable(text: str) -> "Markup":
    """A name that a narrow column may break after its underscores and dots, but for those of numbers."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(_|\.(?!\d))", r"\1<wbr>", str(escape(text))))


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


def _png(image: "Image") -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue(), "image/png")


def _gif(frames: "list[Image]") -> str:
    buffer = io.BytesIO()
    durations = [max(80, 2400 // len(frames))] * (len(frames) - 1) + [2000]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return _uri(buffer.getvalue(), "image/gif")


if __name__ == "__main__":
    main()
