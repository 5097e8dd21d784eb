"""Noisy conditioning, and reconstruction: images, their guesses, and refinements of guesses that are corrupted more and
more, by noise of standard deviations `temperatures`; PSNR and SSIM of each, as pictures, curves and a CSV."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from vcd import figures, refining, style
from vcd.metrics.fidelity import fidelity
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.request import Request, shown, table

log = logging.getLogger("vcd")


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    curves: dict[str, list[tuple[float, float]]] = {}
    rows, blocks, sigmas = [], [], sorted(float(t) for t in request.temperatures)
    for name, model in models.items():
        randomness = PerImage(request.seed, range(request.n), model.device)
        if request.images is None:
            x0 = refining.refine(model, refining.draw(model, randomness))
        else:
            x0 = request.given(model)
            randomness = PerImage(request.seed, range(len(x0)), model.device)
        draft = refining.encode(model, x0, randomness)
        columns = [("image", x0), ("guess", refining.guesses(model, draft))]
        columns += [(f"{sigma:g}", refining.refine(model, draft, sigma)) for sigma in sigmas]
        curves[name] = []
        for title, x in columns[1:]:
            found = {key: values.mean().item() for key, values in fidelity(shown(model, x), shown(model, x0)).items()}
            curves[name].append((found["psnr"], found["ssim"]))
            rows.append((name, title, *(f"{found[key]:.6g}" for key in ("psnr", "ssim"))))
            log.info(
                "%s, %s: PSNR %.2f dB, SSIM %.4f, means over %d images",
                name,
                title,
                found["psnr"],
                found["ssim"],
                len(x0),
            )
        blocks.append((name, torch.stack([shown(model, x) for _, x in columns], 1), [title for title, _ in columns]))
    written = table(out / "guess_corrupt.csv", ("model", "corruption", "psnr_db", "ssim"), rows)
    drawn = _draw(out / "guess_corrupt_curve.png", sigmas, curves)
    return [figures.sheet(out / "guess_corrupt.png", blocks), drawn, written]


@style.styled()
def _draw(path: Path, sigmas: Sequence[float], curves: Mapping[str, Sequence[tuple[float, float]]]) -> Path:
    """Quality against corruption: a line for every model, and a level one for its guess, which comes first in `curves`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(style.PAGE, 2.9))
    axes = figure.subplots(1, 2)
    for axis, unit, values in zip(axes, ("PSNR in dB", "SSIM"), (0, 1), strict=True):
        for i, (name, found) in enumerate(curves.items()):
            guess, *refined = (both[values] for both in found)
            axis.plot(sigmas, refined, color=style.COLOURS[i % len(style.COLOURS)], ls="-", marker="o", label=name)
            axis.axhline(guess, color=style.COLOURS[i % len(style.COLOURS)], ls=":", label=f"{name}, the guess alone")
        axis.set(xlabel="std of the noise on the guess")
        style.title(axis, unit)
    style.legend(figure, axes)
    style.save(figure, path)
    return path
