"""From x_T back to x_0. Samplers are stateless; all randomness belongs to the images."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vcd.batch import UNCONDITIONAL, Condition
from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.predictions import Prediction, gaussian, noisy
from vcd.randomness import PerImage
from vcd.restorer import Restorer, Spreading
from vcd.schedules import Number

Pixels = Float[Tensor, "b c h w"]
Draw = Callable[[], Tensor]  # standard normal like the states, new at every call
# z from the state v that the network sees, t, s and the xhat_0 of the step before
LatentRule = Callable[[Tensor, Levels, Levels, Tensor | None], Tensor]
Latents = Float[Tensor, "T n *d"] | LatentRule | None


@dataclass(frozen=True)
class Step:
    """What a sampler makes of x_t: x_s, the estimate of the clean image on the way (None where there is none), and t."""

    x: Pixels
    x0hat: Pixels | None
    t: Levels


@dataclass(frozen=True)
class Move:
    """A step that is to be taken: from x at level t to level s.

    condition: what the network is told besides; draw: as much noise as the step needs; before: the step that led to x,
    for multistep methods.
    """

    x: Pixels
    t: Levels
    s: Levels
    condition: Condition
    draw: Draw
    before: Step | None = None


@dataclass(frozen=True)
class Trajectory:
    """states[i] is x at level levels[i], from levels[0] = 0 up to the level it started from.

    x0hat[i], where the sampler makes one, is the clean image as seen from level levels[i + 1].
    """

    levels: Int[Tensor, " k"]
    states: Float[Tensor, "k n c h w"]
    x0hat: Float[Tensor, "j n c h w"] | None = None

    @property
    def x0(self) -> Float[Tensor, "n c h w"]:
        return self.states[0]


class Sampler(ABC):
    """One loop over levels T = t_0 > t_1 > ... > 0; the concrete classes say how to step from t to s.

    steps: how many levels are visited; None: all T. power: how they are spread, 1 evenly, 2 quadratically, closer where
    x is nearly clean. delta: std of the noise that joins every state before it is restored, in units of images in [-1, 1]
    (twice the papers' [0, 1] units).

    Examples:
        >>> Cold(steps=3).grid(T=10)
        [10, 7, 3, 0]
    """

    reads = False  # does it ask the degradation which eps led to a state?
    option: str | None = None  # of the group `sampler`; None: the name of the class

    def __init__(self, *, steps: int | None = None, power: Number = 1.0, delta: Number = 0.0):
        if not power >= 1:
            raise UserError(f"sampler.power={power} must be at least 1: 1 spreads the steps evenly, 2 quadratically")
        if steps is not None and steps < 1:
            raise UserError(f"sampler.steps={steps} must be at least 1, or null for every level")
        if not delta >= 0:
            raise UserError(f"sampler.delta={delta} is a standard deviation and cannot be negative")
        self.steps, self.power, self.delta = steps, power, delta

    @abstractmethod
    def ask(self, t: Levels, s: Levels) -> Levels:
        """The level that is asked of the network on the way from t to s."""

    @abstractmethod
    def step(self, model: Restorer, move: Move) -> Step:
        """From x_t to x_s."""

    def check(self, D: Degradation, prediction: Prediction) -> None:
        """UserError where this sampler cannot go with that degradation or prediction."""
        grid, name = self.grid(D.T), f"sampler={self.option or type(self).__name__.lower()}"
        t, s = torch.tensor(grid[:-1]), torch.tensor(grid[1:])
        if self.reads and not D.readable and len(t) > 1:
            raise UserError(
                f"{name} degrades anew on the way, and what was drawn for this degradation "
                "cannot be read from an image: take sampler=one_shot, or restore with vcd.restore, which remembers it"
            )
        if not torch.all(prediction.answers(t, self.ask(t, s))):
            raise UserError(
                f"{name} in {len(t)} step{'s' * (len(t) > 1)} asks for levels that "
                f"prediction={prediction.option or type(prediction).__name__.lower()} does not give: {prediction.gives}"
            )

    def grid(self, T: int) -> list[int]:
        """The levels visited, T first and 0 last. UserError when there are fewer levels than steps."""
        steps = T if self.steps is None else self.steps
        if steps > T:
            raise UserError(f"sampler.steps={steps} is more than the T={T} levels there are")
        if self.power == 1:
            return torch.linspace(T, 0, steps + 1, dtype=torch.float64).round().long().tolist()
        wanted = (T * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** self.power).round().long()
        least = torch.arange(steps + 1)  # distinct levels, each at least its number of steps from 0
        return torch.maximum(wanted, least).flip(0).tolist()

    def noisy(self, x: Pixels, draw: Draw, before: Step | None) -> Pixels:
        """The state that the network sees: x with the noise of delta."""
        return x + self.delta * draw() if self.delta else x

    def below(self, t: Levels, T: int) -> Levels:
        """The level visited after t."""
        grid = torch.tensor(self.grid(T)[::-1], device=t.device)
        return grid[torch.searchsorted(grid, t) - 1]

    @torch.no_grad()
    def __call__(
        self, model: Restorer, x_T: Float[Tensor, "n c h w"], randomness: PerImage, *, latents: Latents = None,
        condition: Condition = UNCONDITIONAL, level: int | None = None, keep: int | None = None,
    ) -> Trajectory:  # fmt: skip
        """Walk from x_T, or from x at `level`, to x_0.

        latents: z_t at index t - 1, or a function of the state that the network sees, t, s and the xhat_0 of the step
        before, such as an encoder.
        keep: about how many states to keep, evenly spread, first and last among them; None: all.
        """
        T = model.degradation.T
        level = T if level is None else level
        grid = [level, *(t for t in self.grid(T) if t < level)]
        kept = set(_evenly(len(grid), keep))

        def draw() -> Tensor:
            return randomness.normal(*x_T.shape[1:])

        x, before = x_T, None
        states, estimates = [x_T], []
        for i, (high, low) in enumerate(itertools.pairwise(grid)):
            t, s = (torch.full((len(x),), at, device=x.device) for at in (high, low))
            v = self.noisy(x, draw, before)
            told = condition if before is None else condition.seen(before.x0hat)
            z = latents(v, t, s, told.x0hat) if callable(latents) else None if latents is None else latents[high - 1]
            told = told if latents is None else told.given(z)
            before = self.step(model, Move(v, t, s, told, draw, before))
            x = before.x
            if i in kept and before.x0hat is not None:
                estimates.append(before.x0hat)
            if i + 1 in kept:
                states.append(x)
        levels = torch.tensor([grid[i] for i in sorted(kept, reverse=True)])
        return Trajectory(levels, torch.stack(states[::-1]), torch.stack(estimates[::-1]) if estimates else None)


def _evenly(n: int, keep: int | None) -> list[int]:
    """About `keep` of the indices 0..n-1, first and last among them; None: all."""
    return list(range(n)) if keep is None else torch.linspace(0, n - 1, min(keep, n)).round().long().tolist()


@final
class Sequential(Sampler):
    """x_s = xhat_s, what the network makes of x_t: for prediction=xt, and with jumps (steps < T) for vxt."""

    def ask(self, t: Levels, s: Levels) -> Levels:
        return s

    def step(self, model: Restorer, move: Move) -> Step:
        return Step(model.restore(move.x, move.t, move.s, move.condition), None, move.t)


class Restoring(Sampler, ABC):
    """Samplers that ask for the clean image at every level."""

    reads = True

    def ask(self, t: Levels, s: Levels) -> Levels:
        return torch.zeros_like(t)

    def step(self, model: Restorer, move: Move) -> Step:
        x, t = move.x, move.t
        x0hat = self.clean(model, model.restore(x, t, torch.zeros_like(t), move.condition))
        return Step(self.degrade(model.degradation, x, x0hat, t, move.s, move.draw), x0hat, t)

    def clean(self, model: Restorer, x0hat: Pixels) -> Pixels:
        """The estimate of x_0 that the step goes on with."""
        return x0hat

    @abstractmethod
    def degrade(self, D: Degradation, x: Pixels, x0hat: Pixels, t: Levels, s: Levels, draw: Draw) -> Pixels:
        """x_s from x_t and the estimate of x_0."""


@final
class Naive(Restoring):
    """x_s = D(xhat_0, s) (Bansal et al. 2022, arXiv:2208.09392, algorithm 1); in one step, xhat_0 from x_T at once."""

    def degrade(self, D: Degradation, x: Pixels, x0hat: Pixels, t: Levels, s: Levels, draw: Draw) -> Pixels:
        return D(x0hat, s, D.infer(x, x0hat, t)) if s.any() else x0hat


@final
class Cold(Restoring):
    """x_s = x_t - D(xhat_0, t) + D(xhat_0, s) (Bansal et al. 2022, arXiv:2208.09392, algorithm 2).

    For noise, with the eps that leads from xhat_0 to x_t, this is DDIM's deterministic step.
    """

    def degrade(self, D: Degradation, x: Pixels, x0hat: Pixels, t: Levels, s: Levels, draw: Draw) -> Pixels:
        eps = D.infer(x, x0hat, t)
        return x - D(x0hat, t, eps) + D(x0hat, s, eps)


@final
class DDIM(Restoring):
    """x_s ~ the degradation's `posterior` with xhat_0 in the place of x_0 (Song et al. 2020, arXiv:2010.02502).

    eta = 0 is deterministic; eta = 1 is ancestral sampling, the exact posterior (Ho et al. 2020, arXiv:2006.11239,
    eq. 7). clip: xhat_0 is brought back to where images can be, and epshat leads from that to x_t.
    """

    def __init__(
        self, *, eta: Number, clip: bool = True, steps: int | None = None, power: Number = 1.0, delta: Number = 0.0
    ):
        super().__init__(steps=steps, power=power, delta=delta)
        if not 0.0 <= eta <= 1.0:
            raise UserError(f"sampler.eta={eta} must lie between 0 (deterministic) and 1 (ancestral)")
        self.eta, self.clip = eta, clip

    def check(self, D: Degradation, prediction: Prediction) -> None:
        noisy(D, "sampler=ddim or ancestral", "take sampler=cold, naive or sequential")
        super().check(D, prediction)

    def clean(self, model: Restorer, x0hat: Pixels) -> Pixels:
        return model.space.clip(x0hat) if self.clip else x0hat

    def degrade(self, D: Degradation, x: Pixels, x0hat: Pixels, t: Levels, s: Levels, draw: Draw) -> Pixels:
        posterior = noisy(D).posterior(x, x0hat, t, s, self.eta)
        return posterior.sample(draw()) if self.eta > 0 else posterior.mean


@final
class Ancestral(Sampler):
    """x_s ~ N(the posterior's mean, sigma^2 I), ln sigma^2 between that of the posterior and that of the forward step.

    v: 0 is the posterior's, sampler=ancestral; 1 that of the forward step (both: Ho et al. 2020, arXiv:2006.11239,
    section 3.2); None: what the network says (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15). clip: see DDIM.
    """

    def __init__(
        self, *, v: Number | None, clip: bool = True, steps: int | None = None, power: Number = 1.0, delta: Number = 0.0
    ):  # fmt: skip
        super().__init__(steps=steps, power=power, delta=delta)
        self.v, self.clip = v, clip

    def ask(self, t: Levels, s: Levels) -> Levels:
        return torch.zeros_like(t)

    def check(self, D: Degradation, prediction: Prediction) -> None:
        gaussian(D, "sampler=large or learned", "take sampler=cold, naive or sequential")
        super().check(D, prediction)
        if self.v is None and prediction.outputs < 2:
            raise UserError("sampler=learned takes the variance that prediction=eps_variance learns: sampler=ancestral and "
                            "large have theirs without")  # fmt: skip

    def step(self, model: Restorer, move: Move) -> Step:
        D, x, t, s = gaussian(model.degradation), move.x, move.t, move.s
        if self.v is not None:
            x0hat, v = model.restore(x, t, torch.zeros_like(t), move.condition), torch.full_like(x, self.v)
        elif isinstance(model, Spreading):
            x0hat, v = model.spread(x, t, move.condition)
        else:
            raise UserError(
                "sampler=learned asks the network for a variance, which is lost on the way: take sampler=large"
            )
        x0hat = model.space.clip(x0hat) if self.clip else x0hat
        posterior = D.posterior(x, x0hat, t, s)
        if not s.any():
            return Step(posterior.mean, x0hat, t)
        std = posterior.std * (D.at(t)[1] / D.at(s)[1]) ** v  # the forward step's is noise_t / noise_s times as wide
        return Step(posterior.mean + D.basis.inverse(std * move.draw()), x0hat, t)
