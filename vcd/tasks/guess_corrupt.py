"""Noisy conditioning, and reconstruction: images, their guesses, and refinements of guesses that are corrupted more and
more, by noise of standard deviations `temperatures`; PSNR and SSIM of each, as a picture and a CSV."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from vcd import figures, refining
from vcd.metrics.fidelity import fidelity
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.request import Request, shown, table

log = logging.getLogger("vcd")


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    rows, blocks, sigmas = [], [], [float(t) for t in request.temperatures]
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
        for title, x in columns[1:]:
            found = {key: values.mean().item() for key, values in fidelity(shown(model, x), shown(model, x0)).items()}
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
    return [figures.sheet(out / "guess_corrupt.png", blocks), written]
