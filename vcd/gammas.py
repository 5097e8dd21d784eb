"""gamma(t) = -ln SNR over time t in [0, 1], fixed or learned: the noise schedules of variational diffusion models.

sigma^2 = sigmoid(gamma) and alpha^2 = sigmoid(-gamma) (Kingma et al. 2021, arXiv:2107.00630, section 3).
"""

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vcd.errors import UserError
from vcd.schedules import Number

Times = Float[Tensor, " n"]


class Gamma(nn.Module, ABC):
    """gamma rises from about gamma_0 at t = 0 to gamma_1 at t = 1: low + span * shape(t), shape from 0 to 1.

    learned: whether the ends are trained on the bound; shaped: whether the shape is trained to keep its variance low.
    """

    learned: bool
    shaped = False

    def __init__(self, *, gamma_0: Number = -13.3, gamma_1: Number = 5.0):
        super().__init__()
        if not gamma_0 < gamma_1:
            raise UserError(f"gamma.gamma_0={gamma_0} must be less than gamma.gamma_1={gamma_1}")
        self.gamma_0, self.gamma_1 = gamma_0, gamma_1

    @abstractmethod
    def ends(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """gamma(0), and how much higher gamma(1) is."""

    def shape(self, t: Times) -> tuple[Times, Times]:
        """How far t is on the way, and the derivative, which the continuous loss needs: t and 1 where gamma is linear."""
        return t, torch.ones_like(t)

    def forward(self, t: Times) -> Times:
        """gamma(t)."""
        return self.with_slope(t)[0]

    def with_slope(self, t: Times) -> tuple[Times, Times]:
        """gamma(t) and its derivative."""
        (low, span), (shape, rise) = self.ends(), self.shape(t)
        return low + span * shape, span * rise


@final
class Fixed(Gamma):
    """Linear between the given ends."""

    learned = False

    def ends(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        return torch.tensor(self.gamma_0), torch.tensor(self.gamma_1 - self.gamma_0)


@final
class LearnedLinear(Gamma):
    """b + |w| t: the ends are trained on the bound."""

    learned = True

    def __init__(self, *, gamma_0: Number = -13.3, gamma_1: Number = 5.0):
        super().__init__(gamma_0=gamma_0, gamma_1=gamma_1)
        self.b, self.w = nn.Parameter(torch.tensor(gamma_0)), nn.Parameter(torch.tensor(gamma_1 - gamma_0))

    def ends(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        return self.b, self.w.abs()


@final
class LearnedNet(Gamma):
    """A monotone network: l1(t) + l3(sigmoid(l2(t))) with weights kept positive, brought to the ends b and b + |w|.

    In continuous time the bound depends on the ends alone, which are trained on it; the shape between them changes its
    variance only, and is trained to make that small (appendix I.2).
    """

    learned = shaped = True

    def __init__(self, *, gamma_0: Number = -13.3, gamma_1: Number = 5.0, width: int = 1024):
        super().__init__(gamma_0=gamma_0, gamma_1=gamma_1)
        self.b, self.w = nn.Parameter(torch.tensor(gamma_0)), nn.Parameter(torch.tensor(gamma_1 - gamma_0))
        self.l1 = nn.Parameter(torch.ones(1))
        self.l2, self.l3 = nn.Linear(1, width), nn.Linear(width, 1, bias=False)

    def ends(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        return self.b, self.w.abs()

    def shape(self, t: Times) -> tuple[Times, Times]:
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            low, high = self._rising(torch.zeros_like(t)), self._rising(torch.ones_like(t))
            shape = (self._rising(t) - low) / (high - low)
            (rise,) = torch.autograd.grad(shape.sum(), t, create_graph=True)
        return shape, rise

    def _rising(self, t: Times) -> Times:
        x = 2 * t[:, None] - 1
        hidden = torch.sigmoid(F.linear(x, self.l2.weight.abs(), self.l2.bias))
        width = self.l3.weight.shape[1]
        return (self.l1.abs() * t[:, None] + F.linear(2 * hidden - 1, self.l3.weight.abs()) / width)[:, 0]
