"""Steps back that keep the moments of q(x_s | x_0): for states with constant noise, and for noise that grows with t."""

import itertools
from typing import final

from vcd.degradations.base import Degradation
from vcd.degradations.transition import transition
from vcd.levels import Levels
from vcd.predictions import Prediction, noisy
from vcd.restorer import Restorer
from vcd.samplers import Draw, Move, Pixels, Restoring, Sampler, Step


@final
class Exact(Sampler):
    """x_s ~ q(x_s | x_t, xhat_s) where every state has noise of one std delta: x_t = D(x_0, t) + delta eps.

    With M what leads from D(x_0, s) to D(x_0, t), the mean is xhat_s + M^T (x_t - M xhat_s) and the covariance
    delta^2 (1 - M^T M): the noise stays where the signal does, and is renewed where the step lost signal. Where delta
    joins every state anew, all of it is forgotten at every step. For linear separable degradations and what predicts
    x_s (prediction=xt or vxt); delta should be the noise of training, perturbation.sigma. x_0 is without noise.
    """

    def ask(self, t: Levels, s: Levels) -> Levels:
        return s

    def check(self, D: Degradation, prediction: Prediction) -> None:
        super().check(D, prediction)
        grid = self.grid(D.T)
        for high, low in itertools.pairwise(grid[:-1]):
            transition(D, high, low)

    def noisy(self, x: Pixels, draw: Draw, before: Step | None) -> Pixels:
        """The noise of the first state; later ones have theirs."""
        return x if before is not None else super().noisy(x, draw, before)

    def step(self, model: Restorer, move: Move) -> Step:
        """All images at one level t."""
        x, t, s = move.x, move.t, move.s
        x_s = model.restore(x, t, s, move.condition)
        if not s.any():
            return Step(x_s, None, t)
        M = transition(model.degradation, int(t[0]), int(s[0])).to(x.device)
        return Step(x_s + M.back(x - M(x_s)) + self.delta * M.lost(move.draw()), None, t)


@final
class Momentum(Restoring):
    """Soft diffusion (Daras et al. 2022, arXiv:2209.05442): x_s = C_s xhat_0 + (noise_s / noise_t)^2 (x_t - C_t xhat_0) + new noise.

    Algorithm 2 of cold diffusion and the reverse step of a variance that explodes, in one; C_t is the degradation without its noise.
    The new noise has std noise_s sqrt(1 - noise_s^2 / noise_t^2), which keeps the moments of q(x_s | x_0); `published`:
    sqrt(noise_t^2 - noise_s^2), which overshoots them. Without new noise it would be sampler=cold.
    """

    def __init__(self, *, published: bool = False, steps: int | None = None, delta: float = 0.0):
        super().__init__(steps=steps, delta=delta)
        self.published = published

    def check(self, D: Degradation, prediction: Prediction) -> None:
        noisy(D, "sampler=momentum", "take sampler=cold, naive or sequential")
        super().check(D, prediction)

    def degrade(self, D: Degradation, x: Pixels, x0hat: Pixels, t: Levels, s: Levels, draw: Draw) -> Pixels:
        D = noisy(D)
        noise_t, noise_s = D.noise_at(t), D.noise_at(s)
        old = noise_s / noise_t
        new = (noise_t if self.published else noise_s) * (1 - old**2).clamp(min=0).sqrt() * (noise_s > 0)
        return D(x0hat, s, old * D.infer(x, x0hat, t)) + new * draw()
