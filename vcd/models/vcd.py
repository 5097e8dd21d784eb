"""Variational cold diffusion."""

from typing import Any, final

from vcd.errors import UserError
from vcd.models.variational import Variational
from vcd.perturbations import Perturbation, Rollout


@final
class VCD(Variational):
    """Variational cold diffusion: the network is trained on states that it reaches itself.

    Training                                          Sampling
      t ~ U{1..T}, s < t;  x_s = D(x0, s)                 x_T ~ start
      xhat_t: the teacher's rollout from x_T to t,        for t = T..1:
              z_k ~ q(z | xhat_k, x_{k-1})                  z_t ~ prior
      z ~ q(z | xhat_t, x_s)                                xhat_{t-1} = xhat_t + f(xhat_t, t, t-1, z_t)
      xhat_s = xhat_t + f(xhat_t, t, s, z)                return xhat_0
      descend ||x_s - xhat_s||^2 + beta KL(q || prior)

    The rollout is `vcd.perturbations.Rollout`, the objective `Variational.losses`.
    """

    def __init__(self, *, perturbation: Perturbation | None = None, **parts: Any):
        perturbation = Rollout() if perturbation is None else perturbation
        if not isinstance(perturbation, Rollout):
            raise UserError(
                "model=vcd is trained on its own rollouts: perturbation=rollout; noise alone makes it model=vwd, "
                "no perturbation model=plain"
            )
        super().__init__(perturbation=perturbation, **parts)
