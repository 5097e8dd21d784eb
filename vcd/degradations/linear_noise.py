"""Noise on any separable linear degradation."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from vcd.degradations.base import Degradation, Images, exactly
from vcd.degradations.gaussian import Noisy, Posterior, Sides
from vcd.degradations.separable import SeparableLinear
from vcd.degradations.transition import between
from vcd.errors import UserError
from vcd.levels import Levels, per_image
from vcd.schedules import Schedule


@final
class LinearNoise(Noisy):
    """x_t = signal_t D(x0, t) + noise_t eps, with signal and noise from the schedule and D any separable linear degradation.

    As in scale space diffusion, of which lower resolution under noise is the main case. UserError where `of` is not
    separable and linear.
    """

    signal: Tensor
    of: SeparableLinear

    def __init__(self, *, of: Degradation, schedule: Schedule):
        if not isinstance(of, SeparableLinear):
            raise UserError(
                f"degradation.of: noise is added to a separable linear degradation such as downsample or pixelate, not "
                f"{type(of).__name__}"
            )
        super().__init__(T=of.T)
        self.of = of
        signal, noise = schedule.signal_and_noise(of.T)
        self.register_buffer("signal", signal.float())
        self.register_buffer("noise", noise.float())

    def mean(self, x0: Images, t: Levels) -> Images:
        return per_image(self.signal[t]) * self.of(x0, t)

    def noise_at(self, t: Levels) -> Float[Tensor, "b 1 1 1"]:
        return per_image(self.noise[t])

    def posterior(self, x_t: Images, x0: Images, t: Levels, s: Levels, eta: float = 1.0) -> Posterior:
        """Mean m_s + (noise_s^2 / noise_t^2) M^T (x_t - m_t), covariance noise_s^2 - (noise_s^4 / noise_t^2) M^T M, eta = 1.

        M leads from m_s = mean_s(x0) to m_t. Where no such M is, or one that would amplify more than the noise grows, its
        nearest stands in: then q(x_s | x0) is exact all the same, but the steps are no chain. eta < 1: as DDIM, in the
        waves of M. All images at one level; ValueError otherwise.
        """
        if (t != t[0]).any() or (s != s[0]).any():
            raise ValueError("the posterior of noise on a linear degradation needs one level for all images")
        A_t, A_s = (self.of.table[level[0]] * self.signal[level[0]].sqrt() for level in (t, s))
        _, U, kept, V = (part.to(x_t) for part in between(A_t, A_s))
        noise_t, noise_s = self.noise_at(t[:1]), self.noise_at(s[:1])
        share = (kept[:, None] * kept * noise_s / noise_t).clamp(max=1)  # of the noise at s that x_t still holds
        new = eta**2 * (1 - share**2)
        with exactly(x_t.device):
            eps = U.mT @ self.infer(x_t, x0, t) @ U
            mean = self.mean(x0, s) + noise_s * (V @ ((1 - new).sqrt() * eps) @ V.mT)
        return Posterior(mean, (noise_s * new.sqrt()).expand(len(t), -1, -1, -1), _Waves(V.mT))


@final
class _Waves(Sides):
    """The right singular vectors of M."""
