"""Variational warm diffusion."""

from typing import Any, final

from vcd.errors import UserError
from vcd.models.variational import Variational
from vcd.perturbations import Gaussian, Perturbation


@final
class VWD(Variational):
    """Variational warm diffusion: the network is trained on states with a little Gaussian noise.

    Training                                          Sampling
      t ~ U{1..T}, s < t;  x_t, x_s = D(x0, t), D(x0, s)  x_T ~ start
      v = x_t + sigma eps                                 for t = T..1:
      z ~ q(z | v, x_s)                                     z_t ~ prior;  v = xhat_t + delta eps
      xhat_s = v + f(v, t, s, z)                            xhat_{t-1} = v + f(v, t, t-1, z_t)
      descend ||x_s - xhat_s||^2 + beta KL(q || prior)    return xhat_0

    The noise is `vcd.perturbations.Gaussian`, the objective `Variational.losses`; delta is the sampler's.
    """

    def __init__(self, *, perturbation: Perturbation | None = None, **parts: Any):
        perturbation = Gaussian() if perturbation is None else perturbation
        if not isinstance(perturbation, Gaussian):
            raise UserError(
                "model=vwd is trained on noisy states: perturbation=gaussian; rollouts make it model=vcd, no "
                "perturbation model=plain"
            )
        super().__init__(perturbation=perturbation, **parts)
