"""Where x_T comes from: black, a Gaussian mixture over channel means, degraded training images, or a standard normal."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.images import BLACK
from vcd.randomness import PerImage


class Start(nn.Module, ABC):
    """The distribution of x_T. What is fitted is a buffer, so that a checkpoint samples without data.

    noise: std of Gaussian noise on x_T, which breaks the symmetry of a flat image (Bansal et al. 2022, 5.2).
    """

    def __init__(self, *, channels: int, size: int, noise: float = 0.0):
        super().__init__()
        if noise < 0:
            raise UserError(f"start.noise={noise} is a standard deviation and cannot be negative")
        self.shape, self.noise = (channels, size, size), noise

    def bind(self, degradation: Degradation) -> "Start":
        """The start to use with this degradation."""
        return self

    def fit(self, x0: Iterable[Float[Tensor, "b c h w"]]) -> None:
        """Fit to the training images, given once in batches."""

    def sample(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        """x_T for every image of `randomness`."""
        x_T = self.draw(randomness)
        return x_T + self.noise * randomness.normal(*self.shape) if self.noise else x_T

    @abstractmethod
    def draw(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        """x_T before the noise."""


class Black(Start):
    """The fixed point of every fading degradation."""

    def draw(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        return torch.full((len(randomness), *self.shape), BLACK, device=randomness.device)


class NormalStart(Start):
    """Standard normal: the end of noise diffusion."""

    def draw(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        return randomness.normal(*self.shape)


class GMM(Start):
    """Flat images whose channel means follow a Gaussian mixture fitted on the training set (Bansal et al. 2022, 5.2)."""

    def __init__(self, *, channels: int, size: int, components: int = 1, noise: float = 0.0):
        super().__init__(channels=channels, size=size, noise=noise)
        self.components = components
        self.register_buffer("weights", torch.full((components,), 1.0 / components))
        self.register_buffer("means", torch.zeros(components, channels))
        self.register_buffer("factors", torch.zeros(components, channels, channels))  # Cholesky

    def fit(self, x0: Iterable[Float[Tensor, "b c h w"]]) -> None:
        from sklearn.mixture import GaussianMixture

        means = torch.cat([x.mean((2, 3)) for x in x0]).double().cpu().numpy()
        mixture = GaussianMixture(self.components, random_state=0).fit(means)
        self.weights.copy_(torch.as_tensor(mixture.weights_))
        self.means.copy_(torch.as_tensor(mixture.means_))
        self.factors.copy_(torch.linalg.cholesky(torch.as_tensor(mixture.covariances_)))

    def draw(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        edges = self.weights.cumsum(0)[:-1]
        k = torch.bucketize(randomness.uniform(), edges)
        mean = self.means[k] + (self.factors[k] @ randomness.normal(self.shape[0])[..., None])[..., 0]
        return mean[:, :, None, None].expand(-1, *self.shape).contiguous()


class TrainSet(Start):
    """Training images degraded to level T, as Rissanen et al. 2022 (arXiv:2206.13397) start: a fixed number is kept."""

    def __init__(self, *, channels: int, size: int, images: int, noise: float = 0.0):
        super().__init__(channels=channels, size=size, noise=noise)
        if images < 1:
            raise UserError(f"start.images={images} must be at least 1: they are what sampling starts from")
        self.register_buffer("x_T", torch.zeros(images, *self.shape))

    def bind(self, degradation: Degradation) -> Start:
        self.end = lambda x0: degradation(x0, torch.full((len(x0),), degradation.T), degradation.draw(x0))
        return self

    def fit(self, x0: Iterable[Float[Tensor, "b c h w"]]) -> None:
        n, filled = len(self.x_T), 0
        for x in x0:
            some = self.end(x[: n - filled])
            self.x_T[filled : filled + len(some)] = some
            filled += len(some)
            if filled == n:
                return
        self.x_T.copy_(self.x_T[torch.arange(n) % filled])  # fewer training images than asked for: in turns

    def draw(self, randomness: PerImage) -> Float[Tensor, "n c h w"]:
        return self.x_T[(randomness.uniform() * len(self.x_T)).long()]


class Natural:
    """The start that D(., T) asks for: black when it makes everything black, normal when it is noise, else channel means."""

    def __init__(self, *, channels: int, size: int, noise: float = 0.0):
        self.channels, self.size, self.noise = channels, size, noise

    def bind(self, degradation: Degradation) -> Start:
        probe = torch.rand(2, self.channels, self.size, self.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        end = degradation(probe, torch.full((2,), degradation.T), degradation.draw(probe))
        kind = NormalStart if degradation.stochastic else GMM
        if torch.all((end - BLACK).abs() < 1e-6):
            kind = Black
        return kind(channels=self.channels, size=self.size, noise=self.noise)
