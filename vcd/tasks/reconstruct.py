"""Images, and what decoding makes of their latents: PSNR and SSIM."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from vcd import figures, steering
from vcd.metrics.fidelity import fidelity
from vcd.models.base import Diffusion
from vcd.request import Request, shown, steerable, table

log = logging.getLogger("vcd")


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    rows, blocks = [], []
    for name, model in steerable(models).items():
        x0 = request.given(model)
        path, _ = steering.encode(model, x0, request.randomness(model, len(x0)), request.posterior)
        again = steering.decode(model, path, keep=2).x0
        quality = fidelity(model.space.decode(again), model.space.decode(x0))
        rows += [(name, i, *(f"{q[i]:.6g}" for q in quality.values())) for i in range(len(x0))]
        log.info("%s: PSNR %.2f dB, SSIM %.4f, means over %d images", name, quality["psnr"].mean(), quality["ssim"].mean(),
                 len(x0))  # fmt: skip
        blocks.append((name, torch.stack([shown(model, x0), shown(model, again)])))
    written = table(out / "reconstruct.csv", ("model", "image", "psnr_db", "ssim", "mse"), rows)
    columns = blocks[0][1].shape[1]
    return [figures.sheet(out / "reconstruct.png", blocks, [str(i) for i in range(columns)]), written]
