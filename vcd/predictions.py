"""What the network is asked for: x0, xt, vxt, eps, v or the difference x0 - x_t.

x0, xt and vxt are one idea, an estimate of a less degraded level s: `level` says which, `target` what the network's
output regresses to, `read` what the output says about x_s. The difference is x0 in other words, and so are eps and v,
where there is noise.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vcd.batch import Degraded
from vcd.degradations.base import Degradation
from vcd.degradations.gaussian import GaussianDegradation, Noisy
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.schedules import Number

Pixels = Float[Tensor, "b c h w"]
Gain = Float[Tensor, "b 1 h2 w2"]  # (b, 1, 1, 1), or (b, 1, h, w) where the signal depends on the frequency
ERASED = 1e-12  # of the signal: below it nothing can be divided by it


class Prediction(ABC):
    """A rule for s and the two ways between the network's output and xhat_s."""

    gives: str  # in words, the levels that `answers` says
    outputs = 1  # of the network, for each value of the image
    option: str | None = None  # of the group `prediction`; None: the name of the class

    @abstractmethod
    def level(self, t: Levels) -> Levels:
        """The level s < t that is asked for in training."""

    @abstractmethod
    def answers(self, t: Levels, s: Levels) -> Bool[Tensor, " b"]:
        """Whether the trained network can be asked at level t for level s."""

    @abstractmethod
    def target(self, batch: Degraded, x_t: Pixels, D: Degradation) -> Pixels:
        """What the output should be, given the state x_t that the step starts from."""

    @abstractmethod
    def read(self, out: Pixels, x_t: Pixels, t: Levels, s: Levels, D: Degradation) -> Pixels:
        """xhat_s from the output."""

    def check(self, D: Degradation) -> None:
        """UserError where this degradation cannot serve this prediction."""


class Clean(Prediction, ABC):
    """What is asked for is level 0."""

    @abstractmethod
    def gain(self, t: Levels, D: Degradation) -> Gain:
        """The squared error of the output, in units of that of xhat_0: one number per image, or one per coefficient."""

    gives = "the clean image only, take sampler=cold, naive or one_shot (ddim and ancestral for noise)"

    def level(self, t: Levels) -> Levels:
        return torch.zeros_like(t)

    def answers(self, t: Levels, s: Levels) -> Bool[Tensor, " b"]:
        return s == 0


@final
class X0(Clean):
    """The clean image, directly: s = 0 (Bansal et al. 2022, arXiv:2208.09392)."""

    def target(self, batch: Degraded, x_t: Pixels, D: Degradation) -> Pixels:
        return batch.x0

    def read(self, out: Pixels, x_t: Pixels, t: Levels, s: Levels, D: Degradation) -> Pixels:
        return out

    def gain(self, t: Levels, D: Degradation) -> Gain:
        return torch.ones(len(t), 1, 1, 1, device=t.device)


@final
class Difference(Clean):
    """x_0 - x_t: what is missing (Daras et al. 2022, arXiv:2209.05442)."""

    def target(self, batch: Degraded, x_t: Pixels, D: Degradation) -> Pixels:
        return batch.x0 - x_t

    def read(self, out: Pixels, x_t: Pixels, t: Levels, s: Levels, D: Degradation) -> Pixels:
        return x_t + out

    def gain(self, t: Levels, D: Degradation) -> Gain:
        return torch.ones(len(t), 1, 1, 1, device=t.device)


class Increment(Prediction, ABC):
    """The output is an increment: xhat_s = x_t + f(x_t, t, s, z) (Rissanen et al. 2022, arXiv:2206.13397, eq. 8)."""

    def target(self, batch: Degraded, x_t: Pixels, D: Degradation) -> Pixels:
        return batch.x_s - x_t

    def read(self, out: Pixels, x_t: Pixels, t: Levels, s: Levels, D: Degradation) -> Pixels:
        return x_t + out


@final
class Xt(Increment):
    """The next less degraded level: s = t - 1."""

    gives = "the next level only, take sampler=sequential with sampler.steps=null"

    def level(self, t: Levels) -> Levels:
        return t - 1

    def answers(self, t: Levels, s: Levels) -> Bool[Tensor, " b"]:
        return s == t - 1

    def check(self, D: Degradation) -> None:
        if D.continuous:
            raise UserError(
                "prediction=xt needs a next level, and this degradation has levels in between; take prediction=vxt or x0"
            )


@final
class VXt(Increment):
    """Any less degraded level: s uniform on {0, ..., t-1}, or on [0, t), drawn for every image anew."""

    gives = "every less degraded level"

    def level(self, t: Levels) -> Levels:
        s = torch.rand(t.shape, device=t.device) * t
        return s if t.is_floating_point() else s.long().clamp(max=t - 1)

    def answers(self, t: Levels, s: Levels) -> Bool[Tensor, " b"]:
        return s < t


class OfNoise(Clean, ABC):
    """Predictions that need a Gaussian degradation."""

    def check(self, D: Degradation) -> None:
        gaussian(D, f"prediction={type(self).__name__.lower()}", "take prediction=x0, xt or vxt")


@final
class Eps(OfNoise):
    """The noise eps of x_t = signal_t x_0 + noise_t eps (Ho et al. 2020, arXiv:2006.11239); reads xhat_0."""

    def check(self, D: Degradation) -> None:
        super().check(D)
        if gaussian(D).signal[1:].min() < ERASED:
            raise UserError(
                f"prediction=eps divides by the signal, and {type(D).__name__} erases the highest frequencies; take "
                "prediction=difference, x0 or v"
            )

    def target(self, batch: Degraded, x_t: Pixels, D: Degradation) -> Pixels:
        assert batch.eps is not None
        return batch.eps

    def read(self, out: Pixels, x_t: Pixels, t: Levels, s: Levels, D: Degradation) -> Pixels:
        D = gaussian(D)
        signal, noise = D.at(t)
        return D.basis.inverse(D.basis(x_t - noise * out) / signal)

    def gain(self, t: Levels, D: Degradation) -> Gain:
        signal, noise = gaussian(D).at(t)
        return (signal / noise) ** 2


@final
class V(OfNoise):
    """v = signal_t eps - noise_t x_0 (Salimans and Ho 2022, arXiv:2202.00512); reads xhat_0.

    signal_t x_t - noise_t v is (signal_t^2 + noise_t^2) x_0, per coefficient of the degradation's basis.
    """

    def target(self, batch: Degraded, x_t: Pixels, D: Degradation) -> Pixels:
        assert batch.eps is not None
        D = gaussian(D)
        signal, noise = D.at(batch.t)
        return D.basis.scale(batch.eps, signal) - noise * batch.x0

    def read(self, out: Pixels, x_t: Pixels, t: Levels, s: Levels, D: Degradation) -> Pixels:
        D = gaussian(D)
        signal, noise = D.at(t)
        return D.basis.inverse((signal * D.basis(x_t) - noise * D.basis(out)) / (signal**2 + noise**2))

    def gain(self, t: Levels, D: Degradation) -> Gain:
        signal, noise = gaussian(D).at(t)
        return ((signal**2 + noise**2) / noise) ** 2


@final
class EDM(OfNoise):
    """F of xhat_0 = c_skip x_t + c_out F, preconditioned for data of std sd (Karras et al. 2022, arXiv:2206.00364, table 1).

    With a, s the signal and noise: c_skip = a sd^2 / v, c_out = s sd / sqrt(v), v = a^2 sd^2 + s^2, so that the mean
    squared error of F is EDM's weighted loss. sd = 1 is v-prediction with the sign turned.
    """

    def __init__(self, *, sd: Number = 0.5):
        if not sd > 0:
            raise UserError(f"prediction.sd={sd} is the standard deviation of the data: it must be above 0")
        self.sd = sd

    def check(self, D: Degradation) -> None:
        super().check(D)
        if gaussian(D).signal.ndim > 1:
            raise UserError(
                "prediction=edm needs one signal per level, and this one depends on the frequency; take prediction=eps or v"
            )

    def target(self, batch: Degraded, x_t: Pixels, D: Degradation) -> Pixels:
        skip, out = self._coefficients(batch.t, gaussian(D))
        return (batch.x0 - skip * x_t) / out

    def read(self, out: Pixels, x_t: Pixels, t: Levels, s: Levels, D: Degradation) -> Pixels:
        c_skip, c_out = self._coefficients(t, gaussian(D))
        return c_skip * x_t + c_out * out

    def gain(self, t: Levels, D: Degradation) -> Gain:
        return self._coefficients(t, gaussian(D))[1] ** -2

    def _coefficients(self, t: Levels, D: GaussianDegradation) -> tuple[Tensor, Tensor]:
        signal, noise = D.at(t)
        v = signal**2 * self.sd**2 + noise**2
        return signal * self.sd**2 / v, noise * self.sd / v.sqrt()


@final
class WithVariance(OfNoise):
    """Two outputs: what `mean` asks for, and the share v that says how wide a step is (Nichol and Dhariwal 2021,
    arXiv:2102.09672, eq. 15): ln of its variance lies between that of the posterior (v = 0) and that of the forward step.

    weight: of the bound, from which v alone learns, in the loss (lambda of eq. 16).
    """

    outputs, option = 2, "eps_variance"

    def __init__(self, *, mean: Clean, weight: Number = 0.001):
        if not weight > 0:
            raise UserError(f"prediction.weight={weight} must be above 0: v learns from the bound alone")
        self.mean, self.weight = mean, weight

    def check(self, D: Degradation) -> None:
        self.mean.check(D)
        if gaussian(D).signal.ndim > 1 or D.continuous or D.T < 2:
            raise UserError(
                "prediction=eps_variance learns the variance of steps between whole levels with one signal each, two at the "
                "least; take degradation=noise degradation.continuous=false, or prediction=eps"
            )

    def target(self, batch: Degraded, x_t: Pixels, D: Degradation) -> Pixels:
        return self.mean.target(batch, x_t, D)

    def read(self, out: Float[Tensor, "b c2 h w"], x_t: Pixels, t: Levels, s: Levels, D: Degradation) -> Pixels:
        return self.mean.read(self.split(out)[0], x_t, t, s, D)

    def gain(self, t: Levels, D: Degradation) -> Gain:
        return self.mean.gain(t, D)

    def split(self, out: Float[Tensor, "b c2 h w"]) -> tuple[Pixels, Pixels]:
        """The mean's output, and v, which may leave [0, 1]."""
        mean, v = out.chunk(2, 1)
        return mean, (v + 1) / 2


def noisy(D: Degradation, who: str = "this", instead: str = "take another part") -> Noisy:
    """The degradation, if Gaussian noise is added last; else UserError."""
    if not isinstance(D, Noisy):
        raise UserError(
            f"{who} needs Gaussian noise (degradation=noise, blur_noise, soft or downsample_noise); for "
            f"{type(D).__name__} {instead}"
        )
    return D


def gaussian(D: Degradation, who: str = "this", instead: str = "take another part") -> GaussianDegradation:
    """The degradation, if it is Gaussian; else UserError."""
    if not isinstance(D, GaussianDegradation):
        raise UserError(
            f"{who} needs Gaussian noise (degradation=noise, blur_noise or soft); for {type(D).__name__} {instead}"
        )
    return D
