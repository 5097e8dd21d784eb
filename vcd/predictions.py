"""What the network is asked for: x0, xt, vxt or the residual.

x0, xt and vxt are one idea, an estimate of a less degraded level s: `level` says which, `target` what the network's
output regresses to, `read` what the output says about x_s.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vcd.batch import Degraded
from vcd.degradations.base import Degradation
from vcd.errors import UserError

Pixels = Float[Tensor, "b c h w"]
Levels = Int[Tensor, " b"]


class Prediction(ABC):
    """A rule for s and the two ways between the network's output and xhat_s."""

    gives: str  # in words, the levels that `answers` says

    @abstractmethod
    def level(self, t: Levels) -> Levels:
        """The level s < t that is asked for in training."""

    @abstractmethod
    def answers(self, t: Levels, s: Levels) -> Bool[Tensor, " b"]:
        """Whether the trained network can be asked at level t for level s."""

    @abstractmethod
    def target(self, batch: Degraded, x_t: Pixels) -> Pixels:
        """What the output should be, given the state x_t that the step starts from."""

    @abstractmethod
    def read(self, out: Pixels, x_t: Pixels, t: Levels, s: Levels) -> Pixels:
        """xhat_s from the output."""

    def bind(self, degradation: Degradation) -> None:
        """Called once with the degradation of the run; UserError when it cannot serve this prediction."""


class Clean(Prediction, ABC):
    """What is asked for is level 0."""

    gives = "the clean image only, take sampler=cold, naive or one_shot (ddim and ancestral for noise)"

    def level(self, t: Levels) -> Levels:
        return torch.zeros_like(t)

    def answers(self, t, s):
        return s == 0


class X0(Clean):
    """The clean image, directly: s = 0 (Bansal et al. 2022, arXiv:2208.09392)."""

    def target(self, batch, x_t):
        return batch.x0

    def read(self, out, x_t, t, s):
        return out


class Increment(Prediction, ABC):
    """The output is an increment: xhat_s = x_t + f(x_t, t, s, z) (Rissanen et al. 2022, arXiv:2206.13397, eq. 8)."""

    def target(self, batch, x_t):
        return batch.x_s - x_t

    def read(self, out, x_t, t, s):
        return x_t + out


class Xt(Increment):
    """The next less degraded level: s = t - 1."""

    gives = "the next level only, take sampler=sequential with sampler.steps=null"

    def level(self, t: Levels) -> Levels:
        return t - 1

    def answers(self, t, s):
        return s == t - 1


class VXt(Increment):
    """Any less degraded level: s uniform on {0, ..., t-1}, drawn for every image anew."""

    gives = "every less degraded level"

    def level(self, t: Levels) -> Levels:
        return (torch.rand(t.shape, device=t.device) * t).long().clamp(max=t - 1)

    def answers(self, t, s):
        return s < t


class Residual(Clean):
    """The noise eps of x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al. 2020, arXiv:2006.11239); reads xhat_0."""

    def __init__(self) -> None:
        self.degradation: Degradation | None = None

    def bind(self, degradation: Degradation) -> None:
        if not hasattr(degradation, "alpha_bar"):
            raise UserError("prediction=residual needs the noise of degradation=noise; take prediction=x0, xt or vxt")
        self.degradation = degradation

    def target(self, batch, x_t):
        return batch.eps

    def read(self, out, x_t, t, s):
        signal = self.degradation.sqrt_alpha_bar[t].view(-1, 1, 1, 1)
        noise = self.degradation.sqrt_one_minus_alpha_bar[t].view(-1, 1, 1, 1)
        return (x_t - noise * out) / signal
