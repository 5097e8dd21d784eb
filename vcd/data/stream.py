"""The order in which images are trained on and validated with: pure functions of the position."""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from vcd.data.base import Images
from vcd.errors import UserError

VALIDATION_SEED = 0  # never the run's seed: the validations of all runs are comparable


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Int64[np.ndarray, " n"]:
    """The order of n images in an epoch."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(n)


def share(index: Int64[np.ndarray, " b"], rank: int, world_size: int) -> Int64[np.ndarray, " share"]:
    """The contiguous equal part of a batch that one of `world_size` processes works on."""
    return index.reshape(world_size, -1)[rank]


def check_share(batch_size: int, world_size: int) -> None:
    """Raises UserError where a batch cannot be shared out equally."""
    if batch_size < 1 or batch_size % world_size:
        raise UserError(f"batch_size={batch_size} is the total over all processes: make it a multiple of {world_size}")


class TrainStream:
    """One endless stream of whole batches, of which the loader yields the next `steps`; not a loop over epochs.

    Every epoch is a fresh permutation of all images; batches run across epochs, so none is partial or dropped.
    Batch k depends on (seed, k) alone. The state is the position: the number of batches handed out so far.
    Yields dicts: images uint8 (b,C,H,W), label int64 (b,), with b = batch_size / world_size.
    """

    def __init__(
        self, images: Images, *, batch_size: int, steps: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        check_share(batch_size, world_size)
        if steps < 1:
            raise UserError(f"the number of training steps is {steps}: it must be at least 1")
        self.images, self.batch_size, self.steps, self.seed = images, batch_size, steps, seed
        self.rank, self.world_size = rank, world_size
        self.position = 0

    def index(self, k: int) -> Int64[np.ndarray, " batch_size"]:
        """Which images are in batch k, over all processes."""
        n, start, end = len(self.images), k * self.batch_size, (k + 1) * self.batch_size
        parts = []
        while start < end:
            epoch, first = divmod(start, n)
            parts.append(permutation(self.seed, epoch, n)[first : first + end - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        end = (self.position // self.steps + 1) * self.steps
        while self.position < end:
            index = share(self.index(self.position), self.rank, self.world_size)
            self.position += 1
            yield {"images": self.images.batch(index), "label": self.images.labels[index]}

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises UserError if the order would change."""
        for key, value in self._identity().items():
            if state[key] != value:
                raise UserError(f"cannot resume: the checkpoint was trained with {key}={state[key]}, now it is {value}")
        self.position = state["position"]

    def _identity(self) -> dict[str, int]:
        return {"images": len(self.images), "batch_size": self.batch_size, "seed": self.seed}


class ValidationPairs:
    """The same (image, level) pairs in every validation of every run; each level 1..T has an equal share.

    Pair j is image j mod N, in one fixed random order, at level 1 + (j + j // lcm(N,T)) mod T: no pair comes twice
    before all N*T have come once. `pairs` is rounded up to whole shares, and is at most about N*T.
    Yields dicts: images uint8 (b,C,H,W), label int64 (b,), t int64 (b,), seed int (a different one for each batch).
    """

    def __init__(
        self, images: Images, *, T: int, batch_size: int, pairs: int, rank: int = 0, world_size: int = 1
    ) -> None:
        check_share(batch_size, world_size)
        if pairs < 1:
            raise UserError(f"val_images={pairs} must be at least 1")
        n = len(images)
        equal = math.lcm(T, world_size)
        j = np.arange(math.ceil(min(pairs, n * T) / equal) * equal)
        self.images, self.batch_size, self.rank, self.world_size = images, batch_size, rank, world_size
        self.index = permutation(VALIDATION_SEED, 0, n)[j % n]
        self.t = torch.from_numpy(1 + (j + j // math.lcm(n, T)) % T)

    def __len__(self) -> int:
        return math.ceil(len(self.index) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor | int]]:
        for k in range(len(self)):
            whole = np.arange(len(self.index))[k * self.batch_size : (k + 1) * self.batch_size]
            rows = share(whole, self.rank, self.world_size)
            index = self.index[rows]
            images, label = self.images.batch(index), self.images.labels[index]
            yield {"images": images, "label": label, "t": self.t[rows], "seed": k * self.world_size + self.rank}
