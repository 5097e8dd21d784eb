"""Samples for metrics: drawn once, by one process or several, and kept under what they depend on."""

import math
import time
from typing import Any

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from tqdm import tqdm

from vcd.checkpoints import Checkpoint
from vcd.metrics.cached import Tensors, cached, key
from vcd.models.base import Diffusion
from vcd.randomness import PerImage

DRAWS = "philox-1"  # of PerImage: another generator draws other samples


def draw(
    model: Diffusion, seed: int, indices: range, batch_size: int, show: bool = True
) -> tuple[UInt8[Tensor, "n c h w"], Bool[Tensor, " n"]]:
    """The images of `indices` as 8 bits, and which of them were finite; one batch of states at a time."""
    images, finite = [], []
    parts = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    for part in tqdm(parts, desc="sampling", unit="batch", disable=not show):
        x0 = model.sample(PerImage(seed, part, model.device), keep=2).x0
        finite.append(x0.isfinite().flatten(1).all(1).cpu())
        images.append(model.space.decode(x0.nan_to_num()).cpu())
    return torch.cat(images), torch.cat(finite)


def _share(job: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What one of several processes draws."""
    torch.set_num_threads(job["threads"])
    model, _ = Checkpoint(job["ckpt"], job["trust"]).model(job["device"], raw=job["raw"], parts=job["parts"])
    return draw(model, job["seed"], job["indices"], job["batch_size"], show=job["rank"] == 0)


def generate(
    model: Diffusion,
    checkpoint: Checkpoint,
    *,
    n: int,
    seed: int,
    batch_size: int,
    processes: int,
    raw: bool,
    parts: dict[str, Any],
) -> Tensors:
    """`images` (n, c, h, w), whether they are `finite` (n,), and the `seconds` that drawing took; kept beside the
    checkpoint under its hash, sampler, prior, noise, seed, n and the generator of random numbers."""
    facts = dict(
        ckpt=checkpoint.sha256, parts=parts, delta=model.sampler.delta, seed=seed, n=n, raw=raw,
        draws=DRAWS,
    )  # fmt: skip

    def make() -> Tensors:
        began = time.monotonic()
        if processes == 1:
            images, finite = draw(model, seed, range(n), batch_size)
        else:
            count, each = torch.cuda.device_count(), math.ceil(n / processes)
            jobs: list[dict[str, Any]] = [
                dict(ckpt=checkpoint.path, raw=raw, parts=parts, trust=checkpoint.trust, seed=seed, batch_size=batch_size, rank=rank,
                     indices=range(rank * each, min(n, (rank + 1) * each)),
                     threads=max(1, torch.get_num_threads() // processes),
                     device=f"cuda:{rank % count}" if model.device.type == "cuda" else str(model.device))
                for rank in range(min(processes, n))
            ]  # fmt: skip
            with torch.multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
                shares = pool.map(_share, [job for job in jobs if len(job["indices"])])
                pool.close()
                pool.join()
            images, finite = (torch.cat(side) for side in zip(*shares, strict=True))
        return {"images": images, "finite": finite, "seconds": torch.tensor(time.monotonic() - began)}

    return cached(checkpoint.home / "samples" / f"{key(**facts)}.pt", make)
