"""The likelihood of images by the probability-flow ODE (Song et al. 2021, arXiv:2011.13456, section 4.3)."""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vcd.batch import UNCONDITIONAL
from vcd.degradations.gaussian import GaussianDegradation
from vcd.levels import Levels
from vcd.predictions import gaussian
from vcd.randomness import PerImage
from vcd.restorer import Restorer


def ode_bits(
    model: Restorer, images: UInt8[Tensor, "n c h w"], randomness: PerImage, *, steps: int, std: float = 1.0
) -> Float[Tensor, " n"]:
    """-log2 p per dimension of dequantised images, whose bytes k become x = 2 (k + u) / 256 - 1, u uniform.

    The ODE in y = x / signal from level 1 to T by Heun's method in `steps` steps of ln sigma; its divergence by
    Hutchinson's estimator, with random signs that stay along the path. std: of x_T. It bounds nothing and is not
    comparable with a bound on the bytes: it is the density of dequantised data, given as bits of the bytes.
    """
    D: GaussianDegradation = gaussian(model.degradation)
    shape, dims = images.shape[1:], images[0].numel()
    u = torch.distributions.Normal(0.0, 1.0).cdf(randomness.normal(*shape))
    sign = torch.where(randomness.normal(*shape) < 0, -1.0, 1.0)
    ratio = D.log_ratio.float()
    grid = torch.linspace(float(ratio[0]), float(ratio[-1]), steps + 1, device=images.device)
    y, gained = 2 * (images.float() + u) / 256 - 1, torch.zeros(len(images), device=images.device)

    def slope(y: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
        """dy / d ln sigma = y - xhat_0, and its divergence."""
        t: Levels = D.level_of(log_sigma.expand(len(y)))
        signal, _ = D.at(t)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            x0hat = model.restore(signal * y, t, torch.zeros_like(t), UNCONDITIONAL)
            (product,) = torch.autograd.grad((x0hat * sign).sum(), y)
        return (y - x0hat).detach(), dims - (product * sign).flatten(1).sum(1)

    for low, high in zip(grid[:-1], grid[1:], strict=True):
        first, divergence = slope(y, low)
        second, again = slope(y + (high - low) * first, high)
        y = y + (high - low) * (first + second) / 2
        gained = gained + (high - low) * (divergence + again) / 2
    spread = std / D.signal[-1].item()
    log_p = torch.distributions.Normal(0.0, spread).log_prob(y).flatten(1).sum(1) + gained
    return 7 - log_p / (dims * math.log(2))
