"""The tasks of `python -m vcd.control`: paths from images or seeds, steered, drawn and measured."""

import csv
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vcd import figures, spectra, steering
from vcd.data import own
from vcd.errors import UserError
from vcd.metrics.restoration import fidelity
from vcd.models.base import Diffusion
from vcd.randomness import PerImage

log = logging.getLogger("vcd")
Models = Mapping[str, Diffusion]
MOST = 12  # columns of steps in a figure


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, apart from the task: the keys of conf/control.yaml."""

    n: int
    seed: int
    images: str | list[str] | None
    sources: str | list[str] | None
    levels: int | list[int] | None
    posterior: float
    temperatures: list[float]
    variations: int
    weights: int


def encode(models: Models, ask: Request, out: Path) -> list[Path]:
    """The latents of images, as .npz: z (T,n,d), x_T, and the KL of every step in bits (T,n)."""
    import numpy as np

    written = []
    for name, model in models.items():
        x0 = _given(model, ask)
        path, kl = steering.encode(steering.variational(model), x0, _randomness(model, ask, len(x0)), ask.posterior)
        written.append(out / f"latents-{name.lower().replace(' ', '-')}.npz")
        np.savez(written[-1], z=path.z.cpu(), x_T=path.x_T.cpu(), kl_bits=kl.cpu() / torch.log(torch.tensor(2.0)))
    return written


def reconstruct(models: Models, ask: Request, out: Path) -> list[Path]:
    """Images, and what decoding makes of their latents: PSNR and SSIM."""
    rows, blocks = [], []
    for name, model in models.items():
        x0 = _given(model, ask)
        path, _ = steering.encode(steering.variational(model), x0, _randomness(model, ask, len(x0)), ask.posterior)
        again = steering.decode(model, path, keep=2).x0
        quality = fidelity(again, x0)
        rows += [(name, i, *(f"{q[i]:.6g}" for q in quality.values())) for i in range(len(x0))]
        log.info("%s: PSNR %.2f dB, SSIM %.4f, means over %d images", name, quality["psnr"].mean(), quality["ssim"].mean(),
                 len(x0))  # fmt: skip
        blocks.append((name, torch.stack([x0, again])))
    table = _table(out / "reconstruct.csv", ("model", "image", "psnr_db", "ssim", "mse"), rows)
    columns = blocks[0][1].shape[1]
    return [figures.sheet(out / "reconstruct.png", blocks, [str(i) for i in range(columns)]), table]


def exchange(models: Models, ask: Request, out: Path) -> list[Path]:
    """Source, target, and the target with the source's latents at each step, or at `levels` together."""
    blocks = []
    for name, model in models.items():
        target, source = _pair(model, ask)
        steps = _steps(model, ask)
        paths = [source, target, *(steering.exchange(target, source, levels) for levels in steps)]
        titles = ["source", "target", *(_title(levels) for levels in steps)]
        blocks.append((name, _columns(model, paths), titles))
    return [figures.sheet(out / "exchange.png", blocks)]


def interpolate(models: Models, ask: Request, out: Path) -> list[Path]:
    """From image to source, spherically in the latents of all steps or of `levels`."""
    weights, blocks = torch.linspace(0, 1, ask.weights).tolist(), []
    for name, model in models.items():
        a, b = _pair(model, ask)
        levels = _levels(model, ask) or steering.levels_of(model)
        blocks.append((name, _columns(model, [steering.interpolate(a, b, w, levels) for w in weights])))
    return [figures.sheet(out / "interpolate.png", blocks, [f"{w:.2g}" for w in weights])]


def resample(models: Models, ask: Request, out: Path) -> list[Path]:
    """The fan of variations: an image, and what it becomes when the latent of a step (or of `levels`) is drawn anew."""
    blocks = []
    for name, model in models.items():
        path = _paths(model, ask, "images", 1).take([0])
        steps = _steps(model, ask)
        fans = []
        for levels in steps:
            others = [PerImage(ask.seed + 1, [i], model.device) for i in range(ask.variations)]
            paths = [path, *(steering.resample(model, path, levels, other) for other in others)]
            fans.append(_columns(model, paths))
        blocks.append((name, torch.cat(fans), None, [_title(levels) for levels in steps]))
    return [figures.sheet(out / "resample.png", blocks, ["image", *(str(i + 1) for i in range(ask.variations))])]


def temperature(models: Models, ask: Request, out: Path) -> list[Path]:
    """The same images from latents that are drawn more and more boldly."""
    blocks = []
    for name, model in models.items():
        steering.variational(model)
        paths = [steering.draw(model, _randomness(model, ask, ask.n), float(t)) for t in ask.temperatures]
        blocks.append((name, _columns(model, paths)))
    return [figures.sheet(out / "temperature.png", blocks, [f"{t:g}" for t in ask.temperatures])]


def bands(models: Models, ask: Request, out: Path) -> list[Path]:
    """What each step contributes: spectra, KL in bits, and in which frequencies exchanging it changes the image."""
    blocks, rows = [], []
    for name, model in models.items():
        b = spectra.measure(model, *_pair(model, ask))
        blocks.append((name, b))
        for i, t in enumerate(b.levels):
            log.info("%s t=%d: %.2f bits; exchanging it changes %.3g per image, mean frequency %.2f cycles an image",
                     name, t, b.kl_bits[i], b.energy[i].sum(), b.centroid[i])  # fmt: skip
            values = zip(b.power[i].tolist(), b.share[i].tolist(), strict=True)
            rows += [(name, t, f"{b.kl_bits[i]:.4f}", f"{b.energy[i].sum():.6g}", f"{b.centroid[i]:.4f}", f, f"{p:.6g}", f"{s:.6g}")
                     for f, (p, s) in enumerate(values)]  # fmt: skip
    header = (
        "model",
        "t",
        "kl_bits",
        "changed_energy",
        "mean_frequency",
        "cycles_an_image",
        "power",
        "share_of_change",
    )
    figures.bands(out / "bands.png", blocks)
    return [out / "bands.png", _table(out / "bands.csv", header, rows)]


TASKS: dict[str, Callable[[Models, Request, Path], list[Path]]] = {
    task.__name__: task for task in (encode, reconstruct, exchange, interpolate, resample, temperature, bands)
}


def _randomness(model: Diffusion, ask: Request, n: int, first: int = 0) -> PerImage:
    return PerImage(ask.seed, range(first, first + n), model.device)


def _given(model: Diffusion, ask: Request, key: str = "images") -> Float[Tensor, "n c h w"]:
    """The user's images, or generated ones."""
    places = getattr(ask, key)
    if places is None:
        return steering.decode(
            model, steering.draw(steering.variational(model), _randomness(model, ask, ask.n)), keep=2
        ).x0
    channels, size, _ = model.start.shape
    return own.read(places, size=size, channels=channels, key=key).to(model.device)


def _paths(model: Diffusion, ask: Request, key: str, n: int) -> steering.Path:
    """Of the user's images, or of n generated ones; those of `sources` are others than those of `images`."""
    first = 0 if key == "images" else 100_000
    steering.variational(model)
    if getattr(ask, key) is None:
        return steering.draw(model, _randomness(model, ask, n, first))
    x0 = _given(model, ask, key)
    return steering.encode(model, x0, _randomness(model, ask, len(x0), first), ask.posterior)[0]


def _pair(model: Diffusion, ask: Request) -> tuple[steering.Path, steering.Path]:
    """Target and source, row by row under the same noise, so that latents alone tell them apart."""
    target = _paths(model, ask, "images", ask.n)
    source = _paths(model, ask, "sources", len(target))
    if len(source) != len(target):
        raise UserError(
            f"images has {len(target)} and sources {len(source)}: they are taken in pairs, give as many of each"
        )
    return target, replace(source, noise=target.noise)


def _levels(model: Diffusion, ask: Request) -> list[int]:
    """The levels asked for, T first; none for `levels=null`."""
    if ask.levels is None:
        return []
    ends = ask.levels if isinstance(ask.levels, list) else [ask.levels] * 2
    T = model.degradation.T
    if len(ends) != 2 or not all(isinstance(t, int) and 1 <= t <= T for t in ends):
        raise UserError(f"levels={ask.levels}: give one step, or [from,to], between 1 and T={T}")
    return list(range(max(ends), min(ends) - 1, -1))


def _steps(model: Diffusion, ask: Request) -> list[list[int]]:
    """The levels asked for, together; or each on its own."""
    together = _levels(model, ask)
    return [together] if together else [[t] for t in steering.levels_of(model, MOST)]


def _title(levels: Sequence[int]) -> str:
    return f"t={levels[0]}" if len(levels) == 1 else f"t={levels[0]}..{levels[-1]}"


def _columns(model: Diffusion, paths: Iterable[steering.Path]) -> Float[Tensor, "rows columns c h w"]:
    """The decoded images, a path a column."""
    return torch.stack([steering.decode(model, path, keep=2).x0.cpu() for path in paths], 1)


def _table(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
