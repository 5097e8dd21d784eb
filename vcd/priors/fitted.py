"""What priors that are fitted after training share: the latents they are fitted to, and the directions that matter."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vcd.errors import UserError
from vcd.monitoring import ActiveUnits
from vcd.priors.base import Encoded, Prior
from vcd.spaces import finite

log = logging.getLogger(__name__)
SIGNAL = 0.1  # the share of a direction's variance that must come from the images; the rest is the posteriors' width


@final
@dataclass(frozen=True)
class Latents:
    """A row per latent: z and the mean of its posterior, all steps side by side, and the number of its image."""

    z: Float[Tensor, "n D"]
    mean: Float[Tensor, "n D"]
    image: Int64[Tensor, " n"]

    @property
    def held_out(self) -> Bool[Tensor, " n"]:
        """All rows of a tenth of the images, so that no held-out image is seen in fitting; of one image alone, its rows."""
        found, row = self.image.unique(return_inverse=True)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
        held = torch.zeros(len(found), dtype=torch.bool)
        held[order[: max(1, len(found) // 10)]] = True
        return held[row]


def gather(encoded: Iterable[Encoded], most: int, passes: int) -> Latents:
    """At most about `most` latents, and about `passes` of an image, of an endless iterator. NotFinite where one is."""
    z: list[Tensor] = []
    mean: list[Tensor] = []
    image: list[Tensor] = []
    rows = 0
    for e in encoded:
        z.append(e.z.transpose(0, 1).flatten(1).cpu())
        mean.append(e.mean.transpose(0, 1).flatten(1).cpu())
        image.append(torch.arange(rows, rows + len(z[-1])) if e.image is None else e.image.cpu())
        rows += len(z[-1])
        if rows >= most or rows > passes * len(torch.cat(image).unique()):
            break
    return Latents(finite(torch.cat(z), "latents"), torch.cat(mean), torch.cat(image))


@final
class Directions:
    """Coordinates w of latents z = centre + basis w that have covariance I, ordered by what they tell of the images.

    share: how much of the variance of a coordinate is that of posterior means, from most to least; the rest is the
    posteriors' own width. So the first coordinates hold what can be anything but Gaussian, and the last are noise.
    """

    def __init__(self, z: Float[Tensor, "n D"], mean: Float[Tensor, "n D"]):
        from sklearn.covariance import ledoit_wolf

        z, mean = z.double(), mean.double()
        self.centre = z.mean(0)
        noise = (z - mean).T @ (z - mean) / len(z)
        total = torch.from_numpy(ledoit_wolf(z.numpy())[0])
        root = torch.linalg.cholesky(total)
        inner = torch.linalg.solve_triangular(root, noise, upper=False)
        share, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, inner.mT, upper=False))
        self.share: Float[Tensor, " D"] = 1 - share
        self.basis: Float[Tensor, "D D"] = root @ vectors
        self.inverse: Float[Tensor, "D D"] = torch.linalg.inv(self.basis)

    def __call__(self, z: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """The coordinates of these latents."""
        return (z.double() - self.centre) @ self.inverse.mT

    @property
    def rank(self) -> int:
        """How many coordinates tell something of the images; at least one."""
        return max(1, int((self.share > SIGNAL).sum()))


class Fitted(Prior, ABC):
    """Fitted after training to the latents of training images, all steps together; N(0, I) until then.

    The posteriors of the training images, taken together, are not N(0, I), and the steps of one image belong together:
    an ex-post density closes both holes without retraining (Ghosh et al. 2019, arXiv:1903.12436). Only units in use,
    Var E[z] > 0.01, enter it; the others stay standard normal. What is chosen in the fit is chosen on the latents of
    held-out images.

    images: how many latents are fitted to. passes: how many of one image at most, for data sets that have fewer.
    Subclasses keep what they learn in buffers: checkpoints store these, and what was stored decides their shapes.
    """

    units: Tensor  # of those in use, the index into T * latent

    def __init__(self, *, latent: int, images: int, passes: int):
        super().__init__(latent=latent)
        if images < 1 or passes < 1:
            raise UserError(f"prior: images={images} and passes={passes} must be at least 1")
        self.images, self.passes = images, passes
        self.register_buffer("units", torch.zeros(0, dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_take_shapes)

    @abstractmethod
    def learn(self, directions: Directions, fitted: Float[Tensor, "n D"], held_out: Float[Tensor, "m D"]) -> str:
        """Learn from the coordinates of latents, on the device of `units`; say what was found."""

    def fit(self, encoded: Iterable[Encoded]) -> None:
        began = time.monotonic()
        latents = gather(encoded, self.images, self.passes)
        gathered = time.monotonic()
        units = torch.nonzero(latents.mean.var(0) > ActiveUnits.threshold).flatten()
        if len(units) == 0 or len(latents.z) < 2:
            log.warning("no latent unit is in use: the prior stays standard normal")
            return
        z, held = latents.z[:, units], latents.held_out
        some = ~held if not held.all() else held
        directions = Directions(z[some], latents.mean[some][:, units])
        self.units = units.to(self.units.device)
        found = self.learn(directions, directions(z[some]), directions(z[held]))
        log.info("prior: %d latents of %d images in %.0f s; %s, in %.0f s", len(z), len(latents.image.unique()),
                 gathered - began, found, time.monotonic() - gathered)  # fmt: skip


def _take_shapes(prior: Fitted, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Buffers take the shapes of what was fitted, before it is loaded into them."""
    for name, buffer in prior.named_buffers(recurse=False):
        if prefix + name in state:
            setattr(prior, name, torch.empty_like(state[prefix + name], device=buffer.device))
