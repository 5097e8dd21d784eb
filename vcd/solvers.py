"""Samplers of score-based models, for degradations with one signal and one noise per level.

All use y = x / signal and sigma = noise / signal, in which the probability-flow ODE is dy/dsigma = (y - xhat_0) / sigma
(Karras et al. 2022, arXiv:2206.00364). The score at level t is (signal xhat_0 - x) / noise^2. Norms and step sizes are
each image's own.
"""

import math
from abc import ABC
from typing import final

import torch
from torch import Tensor

from vcd.batch import Condition
from vcd.degradations.base import Degradation
from vcd.degradations.gaussian import GaussianDegradation
from vcd.errors import UserError
from vcd.levels import Levels, per_image
from vcd.predictions import Prediction, gaussian
from vcd.restorer import Restorer
from vcd.samplers import Move, Pixels, Sampler, Step
from vcd.schedules import Number


class Solver(Sampler, ABC):
    """clip: estimates of x_0 are brought back to where images can be. power: see `Sampler`."""

    def __init__(self, *, clip: bool = False, steps: int | None = None, power: Number = 1.0, delta: Number = 0.0):
        super().__init__(steps=steps, power=power, delta=delta)
        self.clip = clip

    def check(self, D: Degradation, prediction: Prediction) -> None:
        name = f"sampler={self.option or type(self).__name__.lower()}"
        if gaussian(D, name, "take sampler=cold, naive or sequential").signal.ndim > 1:
            raise UserError(
                f"{name} needs one signal per level, and this degradation keeps it per frequency: take sampler=ddim"
            )
        super().check(D, prediction)

    def ask(self, t: Levels, s: Levels) -> Levels:
        return torch.zeros_like(t)

    def clean(self, model: Restorer, x: Pixels, t: Levels, condition: Condition) -> Pixels:
        """xhat_0 from x_t."""
        x0hat = model.restore(x, t, torch.zeros_like(t), condition)
        return model.space.clip(x0hat) if self.clip else x0hat


@final
class Euler(Solver):
    """The probability-flow ODE by Euler's method: DDIM in other coordinates."""

    def step(self, model: Restorer, move: Move) -> Step:
        D, x, t, s = gaussian(model.degradation), move.x, move.t, move.s
        (a_t, n_t), (a_s, n_s) = D.at(t), D.at(s)
        x0hat = self.clean(model, x, t, move.condition)
        y, low = x / a_t, (n_s / a_s) / (n_t / a_t)
        return Step(a_s * (x0hat + low * (y - x0hat)), x0hat, t)


@final
class Heun(Solver):
    """The probability-flow ODE by Heun's method, two evaluations a step but for the last (EDM's algorithm 2).

    churn: noise that is added and taken away again over all steps (S_churn), between sigma_min and sigma_max, with
    `inflation` times its std (S_noise). It needs levels between the whole numbers, which the degradation interpolates.
    """

    def __init__(
        self, *, churn: Number = 0.0, sigma_min: Number = 0.0, sigma_max: Number | None = None, inflation: Number = 1.0,
        clip: bool = False, steps: int | None = None, power: Number = 1.0, delta: Number = 0.0,
    ):  # fmt: skip
        super().__init__(clip=clip, steps=steps, power=power, delta=delta)
        self.churn, self.sigma_min, self.inflation = churn, sigma_min, inflation
        self.sigma_max = math.inf if sigma_max is None else sigma_max

    def step(self, model: Restorer, move: Move) -> Step:
        D, x, t, s = gaussian(model.degradation), move.x, move.t, move.s
        x, t = self._churned(D, move) if self.churn else (x, t)
        (a_t, n_t), (a_s, n_s) = D.at(t), D.at(s)
        y, high, low = x / a_t, n_t / a_t, n_s / a_s
        x0hat = self.clean(model, x, t, move.condition)
        slope = (y - x0hat) / high
        y_s = y + (low - high) * slope
        if bool((s == 0).all()):
            return Step(a_s * y_s, x0hat, t)
        again = self.clean(model, a_s * y_s, s, move.condition)
        slope_s = torch.where(low > 0, (y_s - again) / low.clamp(min=torch.finfo(low.dtype).tiny), slope)
        return Step(a_s * (y + (low - high) * (slope + slope_s) / 2), x0hat, t)

    def _churned(self, D: GaussianDegradation, move: Move) -> tuple[Pixels, Levels]:
        """x at a slightly higher level, with the noise that belongs there."""
        x, t = move.x, move.t
        a_t, n_t = D.at(t)
        sigma = n_t / a_t
        gamma = min(self.churn / len(self.grid(D.T)[:-1]), math.sqrt(2) - 1)
        more = torch.where((self.sigma_min <= sigma) & (sigma <= self.sigma_max), 1 + gamma, 1.0)
        higher = D.level_of((sigma * more).log().flatten())
        a_h, n_h = D.at(higher)
        extra = ((n_h / a_h) ** 2 - sigma**2).clamp(min=0).sqrt()
        return a_h * (x / a_t + extra * self.inflation * move.draw()), higher


@final
class DPMSolver(Solver):
    """DPM-Solver++(2M), one evaluation per step and second order (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    The first step and the last, to level 0, are first order, which is DDIM.
    """

    option = "dpm"

    def step(self, model: Restorer, move: Move) -> Step:
        D, x, t, s = gaussian(model.degradation), move.x, move.t, move.s
        (a_t, n_t), (a_s, n_s) = D.at(t), D.at(s)
        x0hat = self.clean(model, x, t, move.condition)
        ratio = (n_s * a_t) / (a_s * n_t)  # exp(-h)
        estimate = x0hat
        before = move.before
        if before is not None and before.x0hat is not None and not bool((s == 0).any()):
            a_b, n_b = D.at(before.t)
            h, last = -ratio.log(), ((n_b * a_t) / (a_b * n_t)).log()
            estimate = x0hat + (x0hat - before.x0hat) * h / (2 * last)
        return Step((n_s / n_t) * x + a_s * (1 - ratio) * estimate, x0hat, t)


@final
class ReverseSDE(Solver):
    """The reverse SDE, discretised as the forward chain is (Song et al. 2021, arXiv:2011.13456, eq. 46), with a corrector.

    corrections: Langevin steps at every level after its predictor; snr: the size of the correction relative to the
    noise (r of algorithms 4 and 5). The last step adds no noise.
    """

    option = "reverse_sde"

    def __init__(
        self, *, corrections: int = 0, snr: Number = 0.16, clip: bool = False, steps: int | None = None, power: Number = 1.0,
        delta: Number = 0.0,
    ):  # fmt: skip
        super().__init__(clip=clip, steps=steps, power=power, delta=delta)
        if corrections < 0 or not snr > 0:
            raise UserError(
                f"sampler.corrections={corrections} must not be negative and sampler.snr={snr} must be above 0"
            )
        self.corrections, self.snr = corrections, snr

    def step(self, model: Restorer, move: Move) -> Step:
        D, x, t, s = gaussian(model.degradation), move.x, move.t, move.s
        (a_t, n_t), (a_s, n_s) = D.at(t), D.at(s)
        x0hat = self.clean(model, x, t, move.condition)
        kept = a_t / a_s
        variance = (n_t**2 - kept**2 * n_s**2).clamp(min=0)
        x_s = (2 - kept) * x + variance * (a_t * x0hat - x) / n_t**2
        if bool((s == 0).all()):
            return Step(x_s, x0hat, t)
        x_s = x_s + variance.sqrt() * move.draw()
        scale = kept**2  # 1 where the signal is kept, 1 - beta otherwise
        for _ in range(self.corrections):
            score = (a_s * self.clean(model, x_s, s, move.condition) - x_s) / n_s**2
            z = move.draw()
            length = _norm(score)  # 0 where an untrained network sees no noise: nothing to correct then
            size = torch.where(length > 0, 2 * scale * (self.snr * _norm(z) / length) ** 2, 0)
            x_s = x_s + size * score + (2 * size).sqrt() * z
        return Step(x_s, x0hat, t)


@final
class Langevin(Solver):
    """Annealed Langevin dynamics: `repeats` steps at every level (Song and Ermon 2019, arXiv:1907.05600, algorithm 1).

    In y: y += a score + sqrt(2a) z with a = rate sigma_t^2 / sigma_1^2 (NCSNv2, arXiv:2006.09011; NCSN's own rate is
    twice this one's). The last level ends with a denoising step.
    """

    def __init__(
        self,
        *,
        repeats: int,
        rate: Number,
        clip: bool = False,
        steps: int | None = None,
        power: Number = 1.0,
        delta: Number = 0.0,
    ):
        super().__init__(clip=clip, steps=steps, power=power, delta=delta)
        if repeats < 1 or not rate > 0:
            raise UserError(f"sampler.repeats={repeats} must be at least 1 and sampler.rate={rate} above 0")
        self.repeats, self.rate = repeats, rate

    def step(self, model: Restorer, move: Move) -> Step:
        D, x, t, s = gaussian(model.degradation), move.x, move.t, move.s
        (a_t, n_t), (a_s, _), (a_1, n_1) = D.at(t), D.at(s), D.at(torch.ones_like(t))
        sigma = n_t / a_t
        size = self.rate * (sigma / (n_1 / a_1)) ** 2
        y = x / a_t
        for _ in range(self.repeats):
            score = (self.clean(model, a_t * y, t, move.condition) - y) / sigma**2
            y = y + size * score + (2 * size).sqrt() * move.draw()
        x0hat = self.clean(model, a_t * y, t, move.condition) if bool((s == 0).all()) else None
        return Step(a_s * y if x0hat is None else a_s * x0hat, x0hat, t)


def _norm(x: Tensor) -> Tensor:
    """The length of each image of the batch."""
    return per_image(x.flatten(1).norm(dim=1))
