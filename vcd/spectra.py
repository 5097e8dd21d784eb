"""The energy of images, and of differences of images, by frequency."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vcd.models.variational import Variational
from vcd.spaces import to_float
from vcd.steering import Path, decode, encode, exchange, levels_of


def bands(size: int) -> Int[Tensor, "h w"]:
    """The radial band of every coefficient of fft2: the frequency's length in cycles per image, rounded; the corners,
    beyond size / 2, count to the last band."""
    f = torch.fft.fftfreq(size) * size
    return torch.hypot(f[:, None], f[None, :]).round().long().clamp(max=size // 2)


def energy(x: Float[Tensor, "*n c h h"]) -> Float[Tensor, "*n bands"]:
    """The energy of every band, summed over its coefficients and the channels: their total is the sum of x^2 (Parseval)."""
    size = x.shape[-1]
    power = torch.fft.fft2(x.double(), norm="ortho").abs().square().sum(-3).flatten(-2)
    index = bands(size).to(x.device).flatten()
    return power.new_zeros(*power.shape[:-1], size // 2 + 1).index_add_(-1, index, power)


def power(x: Float[Tensor, "*n c h h"]) -> Float[Tensor, "*n bands"]:
    """The power spectrum: the mean energy of a coefficient of every band."""
    count = bands(x.shape[-1]).flatten().bincount().to(x.device)
    return energy(x) / count / x.shape[-3]


def centroid(energy: Float[Tensor, "*n bands"]) -> Float[Tensor, "*n"]:
    """The mean frequency, in cycles per image, of energies by band."""
    f = torch.arange(energy.shape[-1], device=energy.device, dtype=energy.dtype)
    return (energy * f).sum(-1) / energy.sum(-1).clamp(min=torch.finfo(energy.dtype).tiny)


@dataclass(frozen=True)
class Bands:
    """What each step of a model contributes; rows belong to `levels`, T first.

    power: the spectrum of x_{t-1} - x_t; kl_bits: KL(q(z_t | x_t, x_{t-1}) || N(0, I)); energy: of the change in x_0
    by exchanging z_t between images, by band, a mean over images; share: the same as parts of 1.
    """

    levels: list[int]
    power: Float[Tensor, "k bands"]
    kl_bits: Float[Tensor, " k"]
    energy: Float[Tensor, "k bands"]

    @property
    def share(self) -> Float[Tensor, "k bands"]:
        return self.energy / self.energy.sum(1, keepdim=True).clamp(min=torch.finfo(self.energy.dtype).tiny)

    @property
    def centroid(self) -> Float[Tensor, " k"]:
        """Mean frequency of the change, in cycles per image."""
        return centroid(self.energy)


def seen(model: Variational, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
    """x; or, where x is no image, the image that it decodes to, in [-1, 1]: frequencies are those of images."""
    return x if model.image_shape == tuple(x.shape[1:]) else to_float(model.space.decode(x))


def measure(model: Variational, target: Path, source: Path) -> Bands:
    """Of the images of `target`, exchanging with those of `source`."""
    levels = levels_of(model)
    trajectory = decode(model, target)
    states = torch.stack([seen(model, x) for x in trajectory.states])
    steps = (states[:-1] - states[1:]).flip(0)  # T first
    _, kl = encode(model, trajectory.x0, target.noise.take())
    exchanged = [decode(model, exchange(target, source, [t]), keep=2).x0 for t in levels]
    changes = [seen(model, x0) - states[0] for x0 in exchanged]
    return Bands(
        levels=levels,
        power=power(steps).mean(1).cpu(),
        kl_bits=kl.mean(1)[[t - 1 for t in levels]].cpu() / math.log(2),
        energy=torch.stack([energy(change).mean(0) for change in changes]).cpu(),
    )
