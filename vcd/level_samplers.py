"""Levels of training that are drawn by how noisy they are, or by how much they cost."""

from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.levels import Graded, Levels, LevelSampler
from vcd.predictions import gaussian
from vcd.schedules import Number


@final
class LogNormal(LevelSampler):
    """ln(noise / signal) normal with this mean and std (Karras et al. 2022, arXiv:2206.00364, table 1: -1.2, 1.2)."""

    def __init__(self, *, mean: Number = -1.2, std: Number = 1.2):
        if not std > 0:
            raise UserError(f"level_sampler.std={std} must be above 0")
        self.mean, self.std = mean, std

    def draw(self, n: int, D: Graded, device: torch.device | str = "cpu") -> Levels:
        noise = gaussian(cast(Degradation, D), "level_sampler=log_normal", "take level_sampler=stratified")
        t = noise.level_of(self.mean + self.std * torch.randn(n, device=device))
        return t if D.continuous else t.round().long()


@final
class Importance(LevelSampler):
    """P(t) in proportion to sqrt(E[L_t^2]), by the last losses of every level (Nichol and Dhariwal 2021, arXiv:2102.09672,
    eq. 18).

    history: losses that are kept of each level; until all of them are there, t is uniform. uniform: the share that stays
    so. The batch carries the weights 1 / (T P(t)), so that the objective is the same. What was learned is in the checkpoint.
    """

    def __init__(self, *, history: int = 10, uniform: Number = 0.001):
        if history < 1 or not 0 < uniform <= 1:
            raise UserError(
                f"level_sampler.history={history} must be at least 1, and level_sampler.uniform={uniform} above 0 and at "
                "most 1"
            )
        self.history, self.uniform = history, uniform
        self.losses, self.seen = torch.zeros(0, history), torch.zeros(0, dtype=torch.int64)

    def draw(self, n: int, D: Graded, device: torch.device | str = "cpu") -> Levels:
        if D.continuous:
            raise UserError(
                "level_sampler=importance keeps the losses of whole levels: take degradation.continuous=false, or "
                "level_sampler=stratified"
            )
        return 1 + torch.multinomial(self.shares(D.T).to(device), n, replacement=True)

    def weights(self, t: Levels, D: Graded) -> Float[Tensor, " b"] | None:
        return 1 / (D.T * self.shares(D.T).to(t.device)[t - 1])

    def shares(self, T: int) -> Float[Tensor, " T"]:
        """P(t) of t = 1..T."""
        if len(self.seen) < T or bool((self.seen < self.history).any()):
            return torch.full((T,), 1 / T)
        size = self.losses.square().mean(1).sqrt()
        return (1 - self.uniform) * size / size.sum() + self.uniform / T

    def learn(self, t: Levels, losses: Float[Tensor, " b"], D: Graded) -> None:
        if len(self.seen) < D.T:
            self.losses, self.seen = torch.zeros(D.T, self.history), torch.zeros(D.T, dtype=torch.int64)
        for level, loss in zip(t.tolist(), losses.tolist(), strict=True):  # a level may come twice
            self.losses[level - 1, self.seen[level - 1] % self.history] = loss
            self.seen[level - 1] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.seen = state["losses"].cpu(), state["seen"].cpu()
