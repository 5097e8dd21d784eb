"""From x_T back to x_0. Samplers are stateless; all randomness belongs to the images."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.randomness import PerImage

if TYPE_CHECKING:
    from vcd.models.base import Diffusion


@dataclass
class Trajectory:
    """states[t] is x_t, t = 0..T; x0hat[t-1], where the sampler makes one, the clean image as seen from level t."""

    states: Float[Tensor, "levels n c h w"]
    x0hat: Float[Tensor, "T n c h w"] | None = None

    @property
    def x0(self) -> Float[Tensor, "n c h w"]:
        return self.states[0]


class Sampler(ABC):
    """One loop over the levels; the concrete classes say how to step from t to t - 1."""

    @abstractmethod
    def level(self, t: Tensor) -> Tensor:
        """The level s that is asked of the network at level t."""

    @abstractmethod
    def step(self, model: "Diffusion", x: Tensor, t: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(x_{t-1}, xhat_0 or None) from x_t."""

    @torch.no_grad()
    def __call__(
        self,
        model: "Diffusion",
        x_T: Float[Tensor, "n c h w"],
        latents: Float[Tensor, "T n d"] | None,
        randomness: PerImage,
        level: int | None = None,
    ) -> Trajectory:
        """Sample from x at `level` (default: T) down to x_0; noise of std delta joins every state the network sees."""
        level = model.degradation.T if level is None else level
        delta = model.perturbation.delta
        x, states, estimates = x_T, [x_T], []
        for k in range(level, 0, -1):
            t = torch.full((len(x),), k, device=x.device)
            v = x + delta * randomness.normal(*x.shape[1:]) if delta else x
            x, x0hat = self.step(model, v, t, None if latents is None else latents[k - 1])
            states.append(x)
            estimates.append(x0hat)
        x0hat = None if None in estimates[:1] else torch.stack(estimates[::-1])
        return Trajectory(torch.stack(states[::-1]), x0hat)


class Sequential(Sampler):
    """x_{t-1} = xhat_{t-1}, what the network makes of x_t: for predictions of the next level (xt, vxt)."""

    def level(self, t):
        return t - 1

    def step(self, model, x, t, z):
        return model.restore(x, t, t - 1, z), None


class Restoring(Sampler, ABC):
    """Samplers that ask for the clean image at every level."""

    def level(self, t):
        return torch.zeros_like(t)


class Naive(Restoring):
    """x_{t-1} = D(xhat_0, t-1) (Bansal et al. 2022, algorithm 1)."""

    def step(self, model, x, t, z):
        D, x0hat = model.degradation, model.restore(x, t, self.level(t), z)
        return D(x0hat, t - 1, D.infer(x, x0hat, t)), x0hat


class Cold(Restoring):
    """x_{t-1} = x_t - D(xhat_0, t) + D(xhat_0, t-1) (Bansal et al. 2022, algorithm 2).

    For noise, with the eps that leads from xhat_0 to x_t, this is DDIM's deterministic step (Song et al. 2020, eq. 12).
    """

    def step(self, model, x, t, z):
        D, x0hat = model.degradation, model.restore(x, t, self.level(t), z)
        eps = D.infer(x, x0hat, t)
        return x - D(x0hat, t, eps) + D(x0hat, t - 1, eps), x0hat
