"""Where z_t comes from when nothing is encoded."""

import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vcd.levels import Levels
from vcd.monitoring import ActiveUnits
from vcd.randomness import PerImage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of images along the model's own path; step t stands at index t - 1.

    z are the latents that the path was walked with, mean those of their posteriors, kl the KL to the prior in nats;
    noise is what the walk added to its states. Levels that the sampler does not visit hold zeros.
    """

    x_T: Float[Tensor, "n c h w"]
    z: Float[Tensor, "T n d"]
    mean: Float[Tensor, "T n d"]
    kl: Float[Tensor, "T n"]
    noise: PerImage


class Prior(nn.Module, ABC):
    """A distribution over the latents of all T steps of an image."""

    def __init__(self, *, latent: int):
        super().__init__()
        self.latent = latent

    @abstractmethod
    def sample(self, T: int, randomness: PerImage, temperature: float = 1.0) -> Float[Tensor, "T n d"]:
        """Latents of T steps for every image of `randomness`; z_t stands at index t - 1. temperature scales the spread."""

    def resample(
        self, z: Float[Tensor, "T n d"], levels: Sequence[int], randomness: PerImage
    ) -> Float[Tensor, "T n d"]:
        """z with the latents of `levels` drawn anew, given those of the others."""
        index, new = [t - 1 for t in levels], z.clone()
        new[index] = self.sample(len(z), randomness)[index]
        return new

    def fit(self, encoded: Iterable[Encoded]) -> None:
        """Fit, after training, to the latents of training images: an endless iterator of batches."""

    def kl(self, q: Normal, x_t: Float[Tensor, "b c h w"], t: Levels) -> Float[Tensor, " b"]:
        """KL(q || N(0, I)) in nats, summed over latent dimensions. A prior may look at the state x_t that q was asked at."""
        p = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean), validate_args=False)
        return kl_divergence(q, p).sum(1)


@final
class Independent(Prior):
    """A z of its own for every step, as in training."""

    def sample(self, T: int, randomness: PerImage, temperature: float = 1.0) -> Float[Tensor, "T n d"]:
        return temperature * randomness.normal(T, self.latent).transpose(0, 1)


@final
class Shared(Prior):
    """One z for all steps, as published for VCD and VWD; what is resampled gets a z of its own."""

    def sample(self, T: int, randomness: PerImage, temperature: float = 1.0) -> Float[Tensor, "T n d"]:
        return temperature * randomness.normal(self.latent).expand(T, -1, -1)


@final
class Mixture(Prior):
    """A Gaussian mixture on the latents of all steps together, fitted after training; N(0, I) until then.

    The posteriors of the training images, taken together, are not N(0, I), and the steps of one image belong together:
    an ex-post density closes both holes without retraining (Ghosh et al. 2019, arXiv:1903.12436). Only units in use,
    Var E[z] > 0.01, enter the mixture; the others stay standard normal. images: how many posteriors are fitted to,
    small data sets being gone through more than once.
    """

    units: Tensor
    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, *, latent: int, components: int, images: int):
        super().__init__(latent=latent)
        self.components, self.images = components, images
        self.register_buffer("units", torch.zeros(0, dtype=torch.int64))  # indices into T * latent
        self.register_buffer("weights", torch.zeros(0))
        self.register_buffer("means", torch.zeros(0, 0))
        self.register_buffer("factors", torch.zeros(0, 0, 0))  # Cholesky

    def fit(self, encoded: Iterable[Encoded]) -> None:
        z, means = [], []
        for e in encoded:
            z.append(e.z.transpose(0, 1).flatten(1).cpu())
            means.append(e.mean.transpose(0, 1).flatten(1).cpu())
            if sum(map(len, z)) >= self.images:
                break
        units = torch.nonzero(torch.cat(means).var(0) > ActiveUnits.threshold).flatten()
        if len(units) == 0:
            log.warning("no latent unit is in use: the prior stays standard normal")
            return
        mixture = self._best(torch.cat(z)[:, units].double().numpy())
        device = self.weights.device
        self.units = units.to(device)
        self.weights = torch.as_tensor(mixture.weights_, dtype=torch.float32, device=device)
        self.means = torch.as_tensor(mixture.means_, dtype=torch.float32, device=device)
        self.factors = torch.linalg.cholesky(torch.as_tensor(mixture.covariances_)).float().to(device)

    def _best(self, z: Any) -> Any:
        """The mixture of at most `components`, halved as often as that helps on a tenth of the latents, held out."""
        from sklearn.mixture import GaussianMixture

        held_out, fitted = z[: len(z) // 10], z[len(z) // 10 :]
        best, score, count = None, -math.inf, min(self.components, max(1, len(fitted)))
        while count >= 1:
            mixture = GaussianMixture(count, reg_covar=1e-2, random_state=0, init_params="k-means++")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # 100 iterations are enough, converged or not
                mixture.fit(fitted)
            found = mixture.score(held_out) if len(held_out) else math.inf
            if found <= score:
                break
            best, score, count = mixture, found, count // 2
        return best

    def sample(self, T: int, randomness: PerImage, temperature: float = 1.0) -> Float[Tensor, "T n d"]:
        z = temperature * randomness.normal(T * self.latent)
        if len(self.weights):
            k = torch.bucketize(randomness.uniform(), self.weights.cumsum(0)[:-1])
            z[:, self.units] = self.means[k] + (self.factors[k] @ z[:, self.units, None])[..., 0]
        return z.unflatten(1, (T, self.latent)).transpose(0, 1)

    def resample(
        self, z: Float[Tensor, "T n d"], levels: Sequence[int], randomness: PerImage
    ) -> Float[Tensor, "T n d"]:
        """The mixture of conditionals: component k by its weight times N(kept; k), then the rest given what is kept."""
        new = super().resample(z, levels, randomness)
        drawn = torch.isin(self.units // self.latent + 1, torch.tensor(list(levels), device=z.device))
        if not drawn.any() or drawn.all():
            return new  # nothing fitted is drawn, or nothing fitted is kept
        cov, units = (self.factors @ self.factors.mT).double(), z.transpose(0, 1).flatten(1)[:, self.units]
        kept = units[:, None, ~drawn].double() - self.means[:, ~drawn]  # (n, K, kept)
        root = torch.linalg.cholesky(cov[:, ~drawn][:, :, ~drawn])
        white = torch.linalg.solve_triangular(root, kept.permute(1, 2, 0), upper=False)  # (K, kept, n)
        density = self.weights.log() - white.square().sum(1).T / 2 - root.diagonal(dim1=1, dim2=2).log().sum(1)
        edges = density.softmax(1).cumsum(1)[:, :-1]
        k = (randomness.uniform()[:, None] > edges).sum(1)
        across = torch.linalg.solve_triangular(root, cov[:, ~drawn][:, :, drawn], upper=False)  # (K, kept, drawn)
        mean = self.means[:, drawn] + (across.mT @ white).permute(2, 0, 1)  # (n, K, drawn)
        spread = torch.linalg.cholesky(cov[:, drawn][:, :, drawn] - across.mT @ across)
        noise = randomness.normal(int(drawn.sum())).double()
        flat = new.transpose(0, 1).flatten(1)
        rows = torch.arange(len(k), device=k.device)
        flat[:, self.units[drawn]] = (mean[rows, k] + (spread[k] @ noise[..., None])[..., 0]).to(flat.dtype)
        return flat.unflatten(1, (len(z), self.latent)).transpose(0, 1)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """What was fitted decides the shapes."""
        for name, buffer in self.named_buffers(recurse=False):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
