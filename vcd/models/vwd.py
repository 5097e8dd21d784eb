"""Variational warm diffusion."""

from vcd.models.variational import Variational


class VWD(Variational):
    """Variational warm diffusion: the network is trained on states with a little Gaussian noise.

    Training                                          Sampling
      t ~ U{1..T}, s < t;  x_t, x_s = D(x0, t), D(x0, s)  x_T ~ start
      v = x_t + sigma eps                                 for t = T..1:
      z ~ q(z | v, x_s)                                     z_t ~ prior;  v = xhat_t + delta eps
      xhat_s = v + f(v, t, s, z)                            xhat_{t-1} = v + f(v, t, t-1, z_t)
      descend ||x_s - xhat_s||^2 + beta KL(q || prior)    return xhat_0
    """
