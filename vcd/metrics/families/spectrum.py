"""How far the radial power spectrum of samples is from that of the data, in decibels."""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vcd import spectra
from vcd.data.base import Split
from vcd.metrics.cached import Tensors
from vcd.metrics.evaluation import Evaluation, some
from vcd.metrics.results import Number, Result
from vcd.spaces import to_float

IMAGES = 20_000  # of a split at most: its spectrum is known by then


def measure(e: Evaluation) -> Result:
    """The root mean square over bands of the difference in decibels, from either split."""
    own, numbers = power(e.images), {}
    for c in e.comparisons:
        rows = some(len(e.of(c.split)), IMAGES, seed=1)
        real = _of_split(e, c.split, rows)
        floor = distance(_of_split(e, c.other, c.stand_ins), real)
        protocol = e.protocol(c, reference_n=len(rows))
        numbers[f"log_spectral_distance_{e.n}{c.ending}"] = Number(distance(own, real), "lower", floor, "dB", protocol)
    data = _of_split(e, e.split, some(len(e.reference), IMAGES, seed=1))
    curve = {"cycles_per_image": list(range(len(own))), "samples": own.tolist(), "data": data.tolist()}
    return Result(numbers, {"spectrum": curve})


def power(images: UInt8[Tensor, "n c h h"]) -> Float[Tensor, " bands"]:
    """The mean power spectrum of the images."""
    return torch.stack([spectra.power(to_float(part)).sum(0) for part in images.split(1024)]).sum(0) / len(images)


def distance(a: Float[Tensor, " bands"], b: Float[Tensor, " bands"]) -> float:
    """Of two power spectra, in decibels."""
    return (10 * (a / b).log10()).square().mean().sqrt().item()


def _of_split(e: Evaluation, split: Split, rows: Int64[Tensor, " k"]) -> Float[Tensor, " bands"]:
    """The spectrum of these images of a split, kept."""

    def make() -> Tensors:
        return {"power": power(e.of(split).batch(rows))}

    return e.keep("spectrum", split, make, rows=rows.tolist())["power"]
