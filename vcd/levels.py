"""Levels t = 0 (clean) .. T (fully degraded), and how training draws them."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Real
from torch import Tensor

Levels = Real[Tensor, " b"]  # an index, or a real number in [0, T] where the degradation is continuous


@runtime_checkable
class Graded(Protocol):
    """What has levels: a degradation."""

    T: int
    continuous: bool


class LevelSampler(ABC):
    """The distribution of t in training. A continuous degradation gets reals in (0, T], all others 1..T."""

    @abstractmethod
    def draw(self, n: int, D: Graded, device: torch.device | str = "cpu") -> Levels:
        """n levels, from torch's global random state."""

    def weights(self, t: Levels, D: Graded) -> Float[Tensor, " b"] | None:
        """1 / (T P(t)), with which the mean of the loss is that over uniform levels; None where they are uniform, or where
        the distribution is part of the objective."""
        return None

    def learn(self, t: Levels, losses: Float[Tensor, " b"], D: Graded) -> None:
        """Take note of what these levels cost: called after every batch, with those of all devices."""

    def state_dict(self) -> dict[str, Any]:
        """What was learned, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


class Even(LevelSampler, ABC):
    """All levels alike."""

    def draw(self, n: int, D: Graded, device: torch.device | str = "cpu") -> Levels:
        x = self.positions(n, D.T, device)
        if D.continuous:
            return (D.T - x).clamp(min=D.T * torch.finfo(x.dtype).eps)  # above 0, whatever float32 rounds
        return 1 + x.long().clamp(max=D.T - 1)

    @abstractmethod
    def positions(self, n: int, T: int, device: torch.device | str) -> Float[Tensor, " n"]:
        """n real numbers in [0, T)."""


@final
class Stratified(Even):
    """Uniform on 1..T and spread evenly over the batch: every level comes n/T times, rounded up or down.

    t = 1 + floor(T (i + u) / n) with one u for all and i in random order (Kingma et al. 2021, arXiv:2107.00630, I.1).
    """

    def positions(self, n: int, T: int, device: torch.device | str) -> Float[Tensor, " n"]:
        i = torch.randperm(n, device=device)
        u = torch.rand((), device=device)
        return T * (i + u) / n


@final
class Uniform(Even):
    """Uniform on 1..T, each image on its own, as most papers draw it."""

    def positions(self, n: int, T: int, device: torch.device | str) -> Float[Tensor, " n"]:
        return T * torch.rand(n, device=device)


def per_image(values: Tensor) -> Tensor:
    """(b, ...) -> (b, 1, ..., 1) of four dimensions, to multiply a batch of images with; (b, h, w) -> (b, 1, h, w)."""
    return values[:, None, None, None] if values.ndim == 1 else values[:, None]
