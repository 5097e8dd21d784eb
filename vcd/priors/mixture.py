"""A Gaussian mixture over the latents of all steps."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vcd.errors import UserError
from vcd.priors.fitted import Directions, Fitted
from vcd.randomness import PerImage

RANKS = (8, 16, 32)  # dimensions of the mixture that are tried
ROWS = 200  # latents for each component, at least
WHOLE = 30  # latents that N(0, I) counts as in the average covariance: it is definite also of fewer latents than units


@final
class Mixture(Fitted):
    """A Gaussian mixture: its components are found in the few directions that tell the images apart, and have a mean and a
    covariance in all of them.

    The number of components is `components`, halved until they are better than one Gaussian on the latents of held-out
    images, which also decide in how many directions they are found. The covariance of a component is averaged with that of
    all components, which counts as `shrinkage` latents.
    Held-out latents would prefer fewer components and more shrinkage, but what is drawn is then farther from the data
    (RESULTS.md): a component that is too wide mixes kinds of images, and loses little likelihood.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, *, latent: int, components: int, images: int, passes: int = 4, shrinkage: int = 30):
        super().__init__(latent=latent, images=images, passes=passes)
        if components < 1:
            raise UserError(f"prior.components={components} must be at least 1")
        if shrinkage < 1:
            raise UserError(
                f"prior.shrinkage={shrinkage} must be at least 1: as many latents as the average covariance counts for"
            )
        self.components, self.shrinkage = components, shrinkage
        self.register_buffer("weights", torch.zeros(0))
        self.register_buffer("means", torch.zeros(0, 0))
        self.register_buffer("factors", torch.zeros(0, 0, 0))  # Cholesky
        self.register_state_dict_post_hook(_pack)
        self.register_load_state_dict_pre_hook(_unpack)

    def learn(self, directions: Directions, fitted: Float[Tensor, "n D"], held_out: Float[Tensor, "m D"]) -> str:
        found = components(fitted, held_out, directions.rank, self.components, self.shrinkage)
        device, basis = self.units.device, directions.basis
        self.weights = found.weights.float().to(device)
        self.means = (directions.centre + found.means @ basis.mT).float().to(device)
        self.factors = torch.linalg.cholesky(basis @ found.covariances @ basis.mT).float().to(device)
        return found.said

    def sample(self, T: int, randomness: PerImage, temperature: float = 1.0) -> Float[Tensor, "T n d"]:
        z = temperature * randomness.normal(T * self.latent)
        if len(self.weights):
            k = torch.bucketize(randomness.uniform(), self.weights.cumsum(0)[:-1])
            for j in k.unique().tolist():  # not all at once: a matrix an image is hundreds of megabytes
                rows = torch.nonzero(k == j)
                z[rows, self.units] = self.means[j] + z[rows, self.units] @ self.factors[j].mT
        return z.unflatten(1, (T, self.latent)).transpose(0, 1)

    def resample(
        self, z: Float[Tensor, "T n d"], levels: Sequence[int], randomness: PerImage
    ) -> Float[Tensor, "T n d"]:
        """The mixture of conditionals: component k by its weight times N(kept; k), then the rest given what is kept."""
        new = super().resample(z, levels, randomness)
        drawn = torch.isin(self.units // self.latent + 1, torch.tensor(list(levels), device=z.device))
        if not drawn.any() or drawn.all():
            return new  # nothing fitted is drawn, or nothing fitted is kept
        factors, units = self.factors.double(), z.transpose(0, 1).flatten(1)[:, self.units]
        cov = factors @ factors.mT
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


def _pack(prior: Mixture, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Of the factors, most of a checkpoint, what is not above the diagonal is stored."""
    factors = state[prefix + "factors"]
    row, column = torch.tril_indices(*factors.shape[1:], device=factors.device)
    state[prefix + "factors"] = factors[:, row, column]


def _unpack(prior: Mixture, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """What was stored like that; until 0.2 they were stored whole."""
    stored = state.get(prefix + "factors")
    if stored is None or stored.ndim == 3:
        return
    D = state[prefix + "means"].shape[1]
    row, column = torch.tril_indices(D, D, device=stored.device)
    state[prefix + "factors"] = whole = stored.new_zeros(len(stored), D, D)
    whole[:, row, column] = stored
    prior.factors = torch.empty_like(whole, device=prior.factors.device)


@final
@dataclass(frozen=True)
class Components:
    """Of a mixture, in the coordinates of `Directions`; said: what was found, in words."""

    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K D"]
    covariances: Float[Tensor, "K D D"]
    said: str


def components(
    fitted: Float[Tensor, "n D"], held_out: Float[Tensor, "m D"], most: int, count: int, shrinkage: int
) -> Components:
    """At most `count` of them, found in at most `most` leading coordinates; of one alone, N(0, I)."""
    found, gain = choose(fitted, held_out, most, count)
    K, rank = found.means_.shape
    one = torch.eye(fitted.shape[1], dtype=torch.float64)
    if K == 1:
        return Components(torch.ones(1), torch.zeros_like(one[:1]), one[None], "one Gaussian")
    share = torch.from_numpy(found.predict_proba(fitted[:, :rank].numpy()))
    own = share.sum(0).clamp(min=1e-6)
    means = share.T @ fitted / own[:, None]
    spread = torch.stack([(p * (w := fitted - mean).T) @ w for p, mean in zip(share.T, means, strict=True)])
    average = (spread.sum(0) + WHOLE * one) / (len(fitted) + WHOLE)
    covariances = (spread + shrinkage * average) / (own + shrinkage)[:, None, None]
    said = (f"a mixture of {K}, found in {rank} of {fitted.shape[1]} directions, where it is {gain:.2f} nats per image "
            "better than one Gaussian on held-out images")  # fmt: skip
    return Components(own / len(fitted), means, covariances, said)


def choose(
    fitted: Float[Tensor, "n D"], held_out: Float[Tensor, "m D"], most: int, components: int
) -> tuple[Any, float]:
    """The mixture in at most `most` leading coordinates, as scikit-learn has it, of as many components as are still better
    than N(0, I) on held-out latents, and by how many nats a row."""
    count, one = max(1, min(components, len(fitted) // ROWS)), _gaussian(held_out)
    while True:
        ranks = sorted({min(rank, most) for rank in RANKS})
        bar = tqdm(ranks, desc=f"fitting mixtures of {count}", unit=" ranks", disable=None, leave=False)
        tried = [_mixture(fitted[:, :rank], count) for rank in bar]
        scores = [
            found.score(held_out[:, : (r := found.means_.shape[1])].numpy()) + _gaussian(held_out[:, r:])
            for found in tried
        ]
        gain, best = max(zip(scores, tried, strict=True), key=lambda pair: pair[0])
        if gain > one or count == 1:
            return best, gain - one
        count //= 2


def _mixture(w: Float[Tensor, "n r"], count: int) -> Any:
    """scikit-learn's mixture, fitted; 50 iterations are enough, converged or not."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(count, reg_covar=1e-2, random_state=0, init_params="k-means++", max_iter=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mixture.fit(w.numpy())


def _gaussian(w: Float[Tensor, "n r"]) -> float:
    """The mean log density of N(0, I)."""
    return (-0.5 * w.square().sum(1).mean() - 0.5 * w.shape[1] * math.log(2 * math.pi)).item()
