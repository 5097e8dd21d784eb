"""What the network is shown instead of the true x_t, so that the states of sampling are seen in training.

sigma is the std of Gaussian noise in training, delta that of the noise which joins every state in sampling, both in
units of images in [-1, 1] (twice the papers' [0, 1] units).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vcd.batch import Degraded
from vcd.errors import UserError

if TYPE_CHECKING:
    from vcd.models.base import Diffusion


@dataclass
class Shown:
    """network: what the network reads; base: what the encoder reads and the increment is added to."""

    network: Float[Tensor, "b c h w"]
    base: Float[Tensor, "b c h w"]


class Perturbation(ABC):
    """A rule for the state that stands in for x_t."""

    def __init__(self, *, sigma: float = 0.0, delta: float = 0.0):
        for key, value in (("sigma", sigma), ("delta", delta)):
            if value < 0:
                raise UserError(f"perturbation.{key}={value} is a standard deviation and cannot be negative")
        self.sigma, self.delta = sigma, delta

    def noisy(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """x + sigma eps."""
        return x + self.sigma * torch.randn_like(x) if self.sigma else x

    @abstractmethod
    def __call__(self, batch: Degraded, model: "Diffusion") -> Shown:
        """The states shown to the network for this batch of training."""

    def on_true_path(self, batch: Degraded) -> Shown:
        """The states of validation: the true path, with the noise that sampling will have too."""
        v = self.noisy(batch.x_t)
        return Shown(v, v)


class Unperturbed(Perturbation):
    """The true x_t."""

    def __init__(self) -> None:
        super().__init__()

    def __call__(self, batch, model):
        return Shown(batch.x_t, batch.x_t)


class Gaussian(Perturbation):
    """Warm diffusion: x_t + sigma eps.

    coherent: before the encoder and inside the increment's base (Rissanen et al. 2022, eq. 8), so that sampling can
    repeat it. Otherwise on the network's input only, as published for VWD.
    """

    def __init__(self, *, sigma: float, delta: float, coherent: bool):
        super().__init__(sigma=sigma, delta=delta)
        self.coherent = coherent

    def __call__(self, batch, model):
        v = self.noisy(batch.x_t)
        return Shown(v, v if self.coherent else batch.x_t)

    def on_true_path(self, batch):
        v = self.noisy(batch.x_t) if self.coherent else batch.x_t
        return Shown(v, v)


class Rollout(Perturbation):
    """The model's own bias: xhat_t, which the teacher reaches from x_T with posterior latents, without gradient.

    At every level the rollout returns to the true path with probability p, for each image on its own. What came
    before the last return leaves no trace, so the rollout starts there: at level t + J with J geometric, cut at T.

    p: probability of return; p_warmup holds for the first `warmup` steps (live weights), then p is reached linearly
    over `anneal` steps (averaged weights; 0: at once, as published). true_share: images kept on the true path.
    most: the longest rollout, in levels; None: up to T.
    """

    def __init__(
        self, *, p: float, p_warmup: float, warmup: int, anneal: int, true_share: float, sigma: float, delta: float,
        most: int | None = None,
    ):  # fmt: skip
        super().__init__(sigma=sigma, delta=delta)
        for key, value in (("p", p), ("p_warmup", p_warmup), ("true_share", true_share)):
            if not 0.0 <= value <= 1.0:
                raise UserError(f"perturbation.{key}={value} is a probability: between 0 and 1")
        self.p, self.p_warmup, self.warmup, self.anneal = p, p_warmup, warmup, anneal
        self.true_share, self.most = true_share, most

    def probability(self, step: int) -> float:
        """Probability of return at training step `step`."""
        if step < self.warmup:
            return self.p_warmup
        progress = min(1.0, (step - self.warmup) / self.anneal) if self.anneal else 1.0
        return self.p_warmup + (self.p - self.p_warmup) * progress

    def starts(self, t: Int[Tensor, " b"], T: int, p: float) -> Int[Tensor, " b"]:
        """The level of the last return to the true path, between t and T."""
        u = torch.rand(t.shape, device=t.device)
        never = torch.full_like(u, float(T))  # p = 0: from x_T every time
        J = torch.floor(torch.log1p(-u) / torch.log1p(torch.tensor(-p))) if 0 < p < 1 else (never if p == 0 else 0 * u)
        kept = torch.rand(t.shape, device=t.device) < self.true_share
        return torch.where(kept, t, (t + J.clamp(max=self.most or T).long()).clamp(max=T))

    def __call__(self, batch, model):
        v = self.noisy(self.reached(batch, model))
        return Shown(v, v)

    @torch.no_grad()
    def reached(self, batch: Degraded, model: "Diffusion") -> Float[Tensor, "b c h w"]:
        """xhat_t, or x_t where the last return to the true path was at t."""
        teacher = model.teacher(warm=model.step < self.warmup)
        D, sampler = teacher.degradation, teacher.sampler
        k = self.starts(batch.t, D.T, self.probability(model.step))
        order = (k - batch.t).argsort(descending=True)  # the longest first: the batch shrinks from its end
        x0, t, k = batch.x0[order], batch.t[order], k[order]
        eps = None if batch.eps is None else batch.eps[order]
        x = D(x0, k, eps)
        part = max(
            2, len(x) // 4
        )  # few sizes of batch: kernels are made ready for each anew. One image may be too few for a norm
        for n in _active(k - t):
            m = min(len(x), math.ceil(n / part) * part)
            level, e = k[:m], None if eps is None else eps[:m]
            s = sampler.ask(level, level - 1)
            v = self.noisy(x[:m])
            q = teacher.encode(v, D(x0[:m], s, e), level, s)
            z = None if q is None else q.sample()
            noise = torch.randn_like(v) if sampler.stochastic else None
            x = torch.cat([sampler.step(teacher, v, level, level - 1, z, noise)[0][:n], x[n:]])
            k = torch.cat([k[:n] - 1, k[n:]])
        reached = torch.empty_like(x)
        reached[order] = x
        return reached


def _active(steps: Int[Tensor, " b"]) -> list[int]:
    """How many images still walk in each round, for step counts in descending order."""
    counts = steps.cpu()
    return [int((counts > j).sum()) for j in range(int(counts.max()))]
