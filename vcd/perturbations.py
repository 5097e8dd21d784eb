"""What the network is shown instead of the true x_t, so that the states of sampling are seen in training.

sigma is the std of Gaussian noise in training, in units of images in [-1, 1] (twice the papers' [0, 1] units). The noise
of sampling is `sampler.delta`.
"""

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Geometric

from vcd.batch import Degraded
from vcd.errors import UserError
from vcd.exact_steps import Exact
from vcd.levels import Levels
from vcd.restorer import Encoding
from vcd.samplers import Move, Sampler


@runtime_checkable
class Teacher(Encoding, Protocol):
    """Who walks a rollout."""

    @property
    def sampler(self) -> Sampler: ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Without dropout, meanwhile."""
        ...


@runtime_checkable
class Student(Protocol):
    """Who is trained on perturbed states."""

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        ...

    def teacher(self, live: bool) -> Teacher:
        """The live weights or the averaged ones."""
        ...


@dataclass(frozen=True)
class Shown:
    """network: what the network reads; base: what the encoder reads and the increment is added to."""

    network: Float[Tensor, "b c h w"]
    base: Float[Tensor, "b c h w"]


class Perturbation(ABC):
    """A rule for the state that stands in for x_t."""

    def __init__(self, *, sigma: float = 0.0):
        if not sigma >= 0:
            raise UserError(f"perturbation.sigma={sigma} is a standard deviation and cannot be negative")
        self.sigma = sigma

    def noisy(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """x + sigma eps."""
        return x + self.sigma * torch.randn_like(x) if self.sigma else x

    @abstractmethod
    def __call__(self, batch: Degraded, model: Student) -> Shown:
        """The states shown to the network for this batch of training."""

    def on_true_path(self, batch: Degraded) -> Shown:
        """The states of validation: the true path, with the noise that sampling has too."""
        v = self.noisy(batch.x_t)
        return Shown(v, v)


@final
class Unperturbed(Perturbation):
    """The true x_t."""

    def __init__(self) -> None:
        super().__init__()

    def __call__(self, batch: Degraded, model: Student) -> Shown:
        return Shown(batch.x_t, batch.x_t)


@final
class Gaussian(Perturbation):
    """Warm diffusion: x_t + sigma eps.

    coherent: before the encoder and inside the increment's base (Rissanen et al. 2022, eq. 8), so that sampling can
    repeat it. Otherwise on the network's input only, as published for VWD.
    """

    def __init__(self, *, sigma: float = 0.1, coherent: bool = True):
        super().__init__(sigma=sigma)
        self.coherent = coherent

    def __call__(self, batch: Degraded, model: Student) -> Shown:
        v = self.noisy(batch.x_t)
        return Shown(v, v if self.coherent else batch.x_t)

    def on_true_path(self, batch: Degraded) -> Shown:
        v = self.noisy(batch.x_t) if self.coherent else batch.x_t
        return Shown(v, v)


@final
class Rollout(Perturbation):
    """The model's own bias: xhat_t, which the teacher reaches from x_T with posterior latents, without gradient.

    At every level the rollout returns to the true path with probability p, for each image on its own. What came
    before the last return leaves no trace, so the rollout starts there: at level t + J with J geometric, cut at T.

    p: probability of return; p_warmup holds for the first `warmup` steps (live weights), then p is reached linearly
    over `anneal` steps (averaged weights; 0: at once, as published). true_share: images kept on the true path.
    longest: the longest rollout, in levels; None: up to T.
    """

    def __init__(
        self, *, p: float = 0.3, p_warmup: float = 0.3, warmup: int = 500, anneal: int = 0, true_share: float = 0.5,
        sigma: float = 0.1, longest: int | None = 2,
    ):  # fmt: skip
        super().__init__(sigma=sigma)
        for key, value in (("p", p), ("p_warmup", p_warmup), ("true_share", true_share)):
            if not 0.0 <= value <= 1.0:
                raise UserError(f"perturbation.{key}={value} is a probability: it must lie between 0 and 1")
        self.p, self.p_warmup, self.warmup, self.anneal = p, p_warmup, warmup, anneal
        self.true_share, self.longest = true_share, longest

    def probability(self, step: int) -> float:
        """Probability of return at training step `step`."""
        if step < self.warmup:
            return self.p_warmup
        progress = min(1.0, (step - self.warmup) / self.anneal) if self.anneal else 1.0
        return self.p_warmup + (self.p - self.p_warmup) * progress

    def starts(self, t: Levels, T: int, p: float) -> Levels:
        """The level of the last return to the true path, between t and T."""
        longest = self.longest or T
        if p > 0:
            J = Geometric(torch.full(t.shape, p, device=t.device), validate_args=False).sample().clamp(max=longest)
        else:  # no return: from x_T every time
            J = torch.full(t.shape, float(longest), device=t.device)
        kept = torch.rand(t.shape, device=t.device) < self.true_share
        return torch.where(kept, t, (t + J.long()).clamp(max=T))

    def __call__(self, batch: Degraded, model: Student) -> Shown:
        teacher = model.teacher(live=model.step < self.warmup)
        if isinstance(teacher.sampler, Exact):
            raise UserError(
                "perturbation=rollout brings its own noise: train with sampler=sequential, and sample with sampler=exact"
            )
        starts = self.starts(batch.t, teacher.degradation.T, self.probability(model.step))
        with teacher.evaluating():
            v = self.noisy(self.reached(batch, teacher, starts))
        return Shown(v, v)

    @torch.no_grad()
    def reached(self, batch: Degraded, teacher: Teacher, starts: Levels) -> Float[Tensor, "b c h w"]:
        """xhat_t from the true x at `starts`; x_t itself where that is t."""
        D = teacher.degradation
        order = (starts - batch.t).argsort(descending=True)  # the longest first: the batch shrinks from its end
        walkers, k = batch.take(order), starts[order]
        x = D(walkers.x0, k, walkers.eps)
        part = max(
            2, len(x) // 4
        )  # few sizes of batch: kernels are made ready for each anew. One image may be too few for a norm
        for n in _active(k - walkers.t):
            m = min(len(x), math.ceil(n / part) * part)
            arrived = self._walk(teacher, walkers.take(slice(m)), x[:m], k[:m])
            x = torch.cat([arrived[:n], x[n:]])
            k = torch.cat([k[:n] - 1, k[n:]])
        reached = torch.empty_like(x)
        reached[order] = x
        return reached

    def _walk(self, teacher: Teacher, walkers: Degraded, x: Tensor, k: Levels) -> Tensor:
        """One step of the teacher's sampler from level k, with a latent of the encoder, which looks at the true x_s."""
        s = teacher.sampler.ask(k, k - 1)
        v = self.noisy(x)
        q = teacher.encode(v, teacher.degradation(walkers.x0, s, walkers.eps), k, s)
        condition = walkers.condition if q is None else walkers.condition.given(q.sample())
        return teacher.sampler.step(teacher, Move(v, k, k - 1, condition, lambda: torch.randn_like(v))).x


def _active(steps: Levels) -> list[int]:
    """How many images still walk in each round, for step counts in descending order."""
    counts = steps.cpu()
    return [int((counts > j).sum()) for j in range(int(counts.max()))]
