"""Where x_T comes from: black, a Gaussian mixture over channel means, degraded training images, or a standard normal."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vcd.degradations.base import Degradation
from vcd.degradations.compose import Compose
from vcd.degradations.gaussian import GaussianDegradation, Noisy
from vcd.degradations.linear_noise import LinearNoise
from vcd.errors import UserError
from vcd.randomness import PerImage
from vcd.schedules import Number
from vcd.spaces import BLACK

KEPT = 1000  # degraded training images that `natural` keeps
FLAT = 0.01  # of the waves of an image: with no more than that left it is flat


class Start(nn.Module, ABC):
    """The distribution of x_T. What is fitted is a buffer, so that a checkpoint samples without data.

    noise: std of Gaussian noise on x_T, which breaks the symmetry of a flat image (Bansal et al. 2022, 5.2).
    """

    def __init__(self, *, channels: int, size: int, noise: Number = 0.0):
        super().__init__()
        if noise < 0:
            raise UserError(f"start.noise={noise} is a standard deviation and cannot be negative")
        self.shape, self.noise = (channels, size, size), noise

    def fit(self, x0: Iterable[Float[Tensor, "b c h w"]], D: Degradation) -> None:
        """Fit to the training images, given once in batches, and to what D makes of them."""

    def sample(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        """x_T for every image of `randomness`."""
        x_T = self.draw(randomness)
        return x_T + self.noise * randomness.normal(*self.shape) if self.noise else x_T

    def nats(self, x_T: Float[Tensor, "n c h w"], sigma: float, delta: float) -> Float[Tensor, " n"] | None:
        """KL(N(x_T, sigma^2) || p) at most, p the start with noise of std delta on it; None where it is not known."""
        return None

    @abstractmethod
    def draw(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        """x_T before the noise."""


@final
class Black(Start):
    """The fixed point of every fading degradation: `zero` everywhere."""

    def __init__(self, *, channels: int, size: int, noise: Number = 0.0, zero: Number = BLACK):
        super().__init__(channels=channels, size=size, noise=noise)
        self.zero = zero

    def draw(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        return torch.full((len(randomness), *self.shape), self.zero, device=randomness.device)

    def nats(self, x_T: Float[Tensor, "n c h w"], sigma: float, delta: float) -> Float[Tensor, " n"] | None:
        p = Normal(torch.full_like(x_T, self.zero), math.hypot(delta, self.noise))
        return kl_divergence(Normal(x_T, sigma), p).flatten(1).sum(1)


@final
class NormalStart(Start):
    """Normal with mean 0: the end of noise diffusion. std: 1, or the largest sigma where the noise is added to the image."""

    def __init__(self, *, channels: int, size: int, noise: Number = 0.0, std: Number = 1.0):
        super().__init__(channels=channels, size=size, noise=noise)
        self.std = std

    def draw(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        return self.std * randomness.normal(*self.shape)


@final
class GMM(Start):
    """Flat images whose channel means follow a Gaussian mixture fitted on the training set (Bansal et al. 2022, 5.2)."""

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, *, channels: int, size: int, components: int = 1, noise: Number = 0.0):
        super().__init__(channels=channels, size=size, noise=noise)
        self.components = components
        self.register_buffer("weights", torch.full((components,), 1.0 / components))
        self.register_buffer("means", torch.zeros(components, channels))
        self.register_buffer("factors", torch.zeros(components, channels, channels))  # Cholesky

    def fit(self, x0: Iterable[Float[Tensor, "b c h w"]], D: Degradation) -> None:
        from sklearn.mixture import GaussianMixture

        ends = (D(x, torch.full((len(x),), D.T), D.draw(x)) for x in x0)  # some degradations change the mean on the way
        means = torch.cat([x_T.mean((2, 3)) for x_T in ends]).double().cpu().numpy()
        mixture = GaussianMixture(self.components, random_state=0).fit(means)
        self.weights.copy_(torch.as_tensor(mixture.weights_))
        self.means.copy_(torch.as_tensor(mixture.means_))
        self.factors.copy_(torch.linalg.cholesky(torch.as_tensor(mixture.covariances_)))

    def draw(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        edges = self.weights.cumsum(0)[:-1]
        k = torch.bucketize(randomness.uniform(), edges)
        mean = self.means[k] + (self.factors[k] @ randomness.normal(self.shape[0])[..., None])[..., 0]
        return mean[:, :, None, None].expand(-1, *self.shape).contiguous()


@final
class TrainSet(Start):
    """Training images degraded to level T, as Rissanen et al. 2022 (arXiv:2206.13397) start: a fixed number is kept."""

    x_T: Tensor

    def __init__(self, *, channels: int, size: int, images: int, noise: Number = 0.0):
        super().__init__(channels=channels, size=size, noise=noise)
        if images < 1:
            raise UserError(f"start.images={images} must be at least 1: they are what sampling starts from")
        self.register_buffer("x_T", torch.zeros(images, *self.shape))

    def fit(self, x0: Iterable[Float[Tensor, "b c h w"]], D: Degradation) -> None:
        n, filled = len(self.x_T), 0
        for x in x0:
            some = x[: n - filled]
            some = D(some, torch.full((len(some),), D.T), D.draw(some))
            self.x_T[filled : filled + len(some)] = some
            filled += len(some)
            if filled == n:
                return
        self.x_T.copy_(self.x_T[torch.arange(n) % filled])  # fewer training images than asked for: in turns

    def draw(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        return self.x_T[(randomness.uniform() * len(self.x_T)).long()]

    def nats(self, x_T: Float[Tensor, "n c h w"], sigma: float, delta: float) -> Float[Tensor, " n"] | None:
        p = Normal(self.x_T, math.hypot(delta, self.noise))  # a mixture of these, all alike
        each = [kl_divergence(Normal(x, sigma), p).flatten(1).sum(1) for x in x_T]
        return math.log(len(self.x_T)) - torch.stack([(-kl).logsumexp(0) for kl in each])


def natural(degradation: Degradation, *, channels: int, size: int, noise: Number = 0.0, zero: float = BLACK) -> Start:
    """The start that D(., T) asks for: normal where it is noise, black where it makes everything black, channel means
    where it leaves flat images, under its noise if it has some, and degraded training images where it leaves more.

    Examples:
        >>> from vcd.degradations.fade import Fade
        >>> from vcd.schedules import Linear
        >>> type(natural(Fade(T=4, size=8, schedule=Linear()), channels=1, size=8)).__name__
        'Black'
    """
    shape: dict[str, Any] = dict(channels=channels, size=size, noise=noise)
    last = degradation.random if isinstance(degradation, Compose) and degradation.stochastic else degradation
    if degradation.stochastic and not isinstance(last, Noisy):  # of a law that is not known
        return TrainSet(**shape, images=KEPT)
    probe = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    end = degradation(probe, torch.full((2,), degradation.T), degradation.draw(probe, PerImage(0, range(2))))
    if torch.all((end - zero).abs() < 1e-6):
        return Black(**shape, zero=zero)
    if isinstance(degradation, GaussianDegradation) and not degradation.fades:
        if degradation.signal.ndim > 1:  # a blur that keeps the mean, with noise; and perhaps more
            if degradation.signal[-1].flatten()[1:].max() < FLAT:
                return GMM(**shape | {"noise": math.hypot(noise, float(degradation.noise[-1]))})
            return TrainSet(**shape, images=KEPT)
        return NormalStart(**shape, std=float(degradation.noise[-1]))
    if isinstance(degradation, LinearNoise) and degradation.signal[-1] > 0.05 * degradation.noise[-1]:
        return TrainSet(**shape, images=KEPT)
    if degradation.stochastic:
        return NormalStart(**shape)
    left = (end - probe.mean((2, 3), keepdim=True)).square().mean()
    return GMM(**shape) if left < 1e-3 * probe.var() else TrainSet(**shape, images=KEPT)
