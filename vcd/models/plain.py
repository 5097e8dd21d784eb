"""The variational bound on the true path alone."""

from typing import Any, final

from vcd.errors import UserError
from vcd.models.variational import Variational
from vcd.perturbations import Perturbation, Unperturbed


@final
class Plain(Variational):
    """VCD without rollouts, VWD without noise: the ablation that shows why perturbation is needed.

    Training                                          Sampling
      t ~ U{1..T}, s < t;  x_t, x_s = D(x0, t), D(x0, s)  x_T ~ start
      z ~ q(z | x_t, x_s)                                 for t = T..1:  z_t ~ prior
      xhat_s = x_t + f(x_t, t, s, z)                        xhat_{t-1} = xhat_t + f(xhat_t, t, t-1, z_t)
      descend ||x_s - xhat_s||^2 + beta KL(q || prior)    return xhat_0
    """

    def __init__(self, *, perturbation: Perturbation, **parts: Any):
        if not isinstance(perturbation, Unperturbed):
            raise UserError(
                "model=plain is trained on the true path: perturbation=none; rollouts make it model=vcd, noise model=vwd"
            )
        super().__init__(perturbation=perturbation, **parts)
