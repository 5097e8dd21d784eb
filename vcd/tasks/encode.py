"""The latents of images, as .npz: z (T,n,d), x_T, and the KL of every step in bits (T,n)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from vcd import steering
from vcd.models.base import Diffusion
from vcd.request import Request, steerable


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    written = []
    for name, model in steerable(models).items():
        x0 = request.given(model)
        path, kl = steering.encode(model, x0, request.randomness(model, len(x0)), request.posterior)
        written.append(out / f"latents-{name.lower().replace(' ', '-')}.npz")
        np.savez(written[-1], z=path.z.cpu(), x_T=path.x_T.cpu(), kl_bits=kl.cpu() / torch.log(torch.tensor(2.0)))
    return written
