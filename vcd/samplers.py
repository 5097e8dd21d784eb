"""From x_T back to x_0. Samplers are stateless; all randomness belongs to the images."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vcd.degradations.base import Degradation
from vcd.errors import UserError
from vcd.predictions import Prediction
from vcd.randomness import PerImage

if TYPE_CHECKING:
    from vcd.models.base import Diffusion

Levels = Int[Tensor, " b"]


@dataclass
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

    steps: how many levels are visited, evenly spread; None: all T.
    """

    stochastic = False  # does a step need noise of its own?

    def __init__(self, *, steps: int | None = None):
        if steps is not None and steps < 1:
            raise UserError(f"sampler.steps={steps} must be at least 1, or null for every level")
        self.steps = steps

    @abstractmethod
    def ask(self, t: Levels, s: Levels) -> Levels:
        """The level that is asked of the network on the way from t to s."""

    @abstractmethod
    def step(
        self, model: "Diffusion", x: Float[Tensor, "b c h w"], t: Levels, s: Levels, z: Tensor | None,
        eps: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """(x_s, xhat_0 or None) from x_t; eps: standard normal, where the sampler is stochastic."""

    def bind(self, degradation: Degradation, prediction: Prediction) -> None:
        """UserError when this sampler cannot go with that degradation or prediction."""
        grid = self.grid(degradation.T)
        t, s = torch.tensor(grid[:-1]), torch.tensor(grid[1:])
        if not torch.all(prediction.answers(t, self.ask(t, s))):
            raise UserError(f"sampler={type(self).__name__.lower()} in {len(t)} steps asks for levels that "
                            f"prediction={type(prediction).__name__.lower()} does not give: {prediction.gives}")  # fmt: skip

    def grid(self, T: int) -> list[int]:
        """The levels visited, T first and 0 last. UserError when there are fewer levels than steps."""
        steps = T if self.steps is None else self.steps
        if steps > T:
            raise UserError(f"sampler.steps={steps} is more than the T={T} levels there are")
        return torch.linspace(T, 0, steps + 1, dtype=torch.float64).round().long().tolist()

    def below(self, t: Levels, T: int) -> Levels:
        """The level visited after t."""
        grid = torch.tensor(self.grid(T)[::-1], device=t.device)
        return grid[torch.searchsorted(grid, t) - 1]

    @torch.no_grad()
    def __call__(
        self,
        model: "Diffusion",
        x_T: Float[Tensor, "n c h w"],
        latents: Float[Tensor, "T n d"] | Callable[[Tensor, Levels, Levels], Tensor] | None,
        randomness: PerImage,
        level: int | None = None,
        most: int | None = None,
    ) -> Trajectory:
        """Sample from x at `level` (default: T) down to x_0; noise of std delta joins every state the network sees.

        latents: z_t at index t - 1; or a function of the state that the network sees, t and s, such as an encoder.
        most: keep no more than about so many states, evenly spread, first and last among them; None: all.
        """
        T = model.degradation.T
        level = T if level is None else level
        grid = [level, *(t for t in self.grid(T) if t < level)]
        last = len(grid) - 1
        kept = range(last + 1) if most is None else torch.linspace(0, last, min(most, last + 1)).round().long().tolist()
        delta, x = model.perturbation.delta, x_T
        states, estimates = [x_T], []
        for i in range(last):
            t, s = (torch.full((len(x),), grid[i + j], device=x.device) for j in (0, 1))
            v = x + delta * randomness.normal(*x.shape[1:]) if delta else x
            eps = randomness.normal(*x.shape[1:]) if self.stochastic else None
            z = latents(v, t, s) if callable(latents) else None if latents is None else latents[grid[i] - 1]
            x, x0hat = self.step(model, v, t, s, z, eps)
            if i in kept:
                estimates.append(x0hat)
            if i + 1 in kept:
                states.append(x)
        x0hat = None if None in estimates[:1] else torch.stack(estimates[::-1])
        return Trajectory(torch.tensor([grid[i] for i in kept][::-1]), torch.stack(states[::-1]), x0hat)


@final
class Sequential(Sampler):
    """x_s = xhat_s, what the network makes of x_t: for prediction=xt, and with jumps (steps < T) for vxt."""

    def ask(self, t, s):
        return s

    def step(self, model, x, t, s, z, eps=None):
        return model.restore(x, t, s, z), None


class Restoring(Sampler, ABC):
    """Samplers that ask for the clean image at every level."""

    def ask(self, t, s):
        return torch.zeros_like(t)

    def step(self, model, x, t, s, z, eps=None):
        x0hat = model.restore(x, t, torch.zeros_like(t), z)
        return self.degrade(model.degradation, x, x0hat, t, s, eps)

    @abstractmethod
    def degrade(self, D: Degradation, x: Tensor, x0hat: Tensor, t: Levels, s: Levels, eps: Tensor | None):
        """(x_s, xhat_0) from x_t and the estimate of x_0."""


@final
class Naive(Restoring):
    """x_s = D(xhat_0, s) (Bansal et al. 2022, arXiv:2208.09392, algorithm 1); in one step, xhat_0 from x_T at once."""

    def degrade(self, D, x, x0hat, t, s, eps):
        return D(x0hat, s, D.infer(x, x0hat, t)), x0hat


@final
class Cold(Restoring):
    """x_s = x_t - D(xhat_0, t) + D(xhat_0, s) (Bansal et al. 2022, arXiv:2208.09392, algorithm 2).

    For noise, with the eps that leads from xhat_0 to x_t, this is DDIM's deterministic step.
    """

    def degrade(self, D, x, x0hat, t, s, eps):
        path = D.infer(x, x0hat, t)
        return x - D(x0hat, t, path) + D(x0hat, s, path), x0hat


@final
class DDIM(Restoring):
    """x_s = sqrt(abar_s) xhat_0 + sqrt(1 - abar_s - sigma^2) epshat + sigma eps (Song et al. 2020, arXiv:2010.02502, eq. 12).

    sigma = eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s), eq. 16. eta = 0 is deterministic; eta = 1
    is ancestral sampling, x_s ~ q(x_s | x_t, xhat_0), the exact posterior (Ho et al. 2020, arXiv:2006.11239, eq. 7).
    clip: xhat_0 is cut to [-1, 1], and epshat leads from that to x_t.

    With r the ratio of signal to noise at t by that at s, sigma^2 = eta^2 (1 - r) (1 - abar_s): of the noise at s, the
    share eta^2 (1 - r) is new. In this form float32 does not cancel where abar is near 1.
    """

    def __init__(self, *, eta: float, clip: bool = True, steps: int | None = None):
        super().__init__(steps=steps)
        if not 0.0 <= eta <= 1.0:
            raise UserError(f"sampler.eta={eta} lies between 0 (deterministic) and 1 (ancestral)")
        self.eta, self.clip, self.stochastic = eta, clip, eta > 0

    def bind(self, degradation, prediction):
        if not hasattr(degradation, "alpha_bar"):
            raise UserError("sampler=ddim and sampler=ancestral undo Gaussian noise (degradation=noise); "
                            "other degradations are undone by sampler=cold, naive or sequential")  # fmt: skip
        super().bind(degradation, prediction)

    def degrade(self, D, x, x0hat, t, s, eps):
        x0hat = x0hat.clamp(-1, 1) if self.clip else x0hat
        signal_t, signal_s = (D.sqrt_alpha_bar[level].view(-1, 1, 1, 1) for level in (t, s))
        noise_t, noise_s = (D.sqrt_one_minus_alpha_bar[level].view(-1, 1, 1, 1) for level in (t, s))
        new = self.eta**2 * (1 - (signal_t * noise_s / (signal_s * noise_t)) ** 2)
        x_s = signal_s * x0hat + noise_s * (1 - new).sqrt() * D.infer(x, x0hat, t)
        return x_s + noise_s * new.sqrt() * eps if self.stochastic else x_s, x0hat
