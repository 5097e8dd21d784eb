"""What leads from one level of a linear degradation to a later one."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.degradations.base import Degradation, Images, exactly
from vcd.degradations.compose import Compose
from vcd.degradations.separable import SeparableLinear
from vcd.errors import UserError

LOST = 1e-5  # of the signal, relative to the strongest: float32 tables hold nothing below


@dataclass(frozen=True)
class Transition:
    """D(x_0, t) = M (D(x_0, s) - zero) M^T + zero, M = U diag(kept) V^T a matrix per side of the image."""

    M: Float[Tensor, "n n"]
    V: Float[Tensor, "n n"]
    kept: Float[Tensor, " n"]
    zero: float

    def to(self, device: torch.device) -> "Transition":
        return Transition(self.M.to(device), self.V.to(device), self.kept.to(device), self.zero)

    def __call__(self, x_s: Images) -> Images:
        """x_t."""
        with exactly(x_s.device):
            return self.M @ (x_s - self.zero) @ self.M.mT + self.zero

    def back(self, y: Images) -> Images:
        """The transpose: M^T y M."""
        with exactly(y.device):
            return self.M.mT @ y @ self.M

    def lost(self, eps: Images) -> Images:
        """Noise of covariance 1 - M^T M from standard normal noise: all of it where nothing of x_s is left in x_t."""
        std = (1 - (self.kept[:, None] * self.kept) ** 2).clamp(min=0).sqrt()
        with exactly(eps.device):
            return self.V @ (std * eps) @ self.V.mT


def transition(D: Degradation, t: int, s: int) -> Transition:
    """From level s to level t > s; UserError where no linear map leads there, or one that would amplify noise."""
    linear = D.stages[0] if isinstance(D, Compose) and len(D.stages) == 1 else D
    if not isinstance(linear, SeparableLinear):
        raise UserError(
            f"sampler=exact needs a linear separable degradation such as blur, black_blur or gaussian_blur, not "
            f"{type(D).__name__}; take sampler=sequential"
        )
    A_t, A_s = linear.table[t].double().cpu(), linear.table[s].double().cpu()
    M, U, kept, V = between(A_t, A_s)
    if (M @ A_s - A_t).abs().max() > 1e-4 or kept.max() > 1 + 1e-3:
        raise UserError(
            f"sampler=exact: level {t} of this degradation is not what a contraction makes of level {s}; take "
            "sampler=sequential, or degradation=blur or black_blur"
        )
    M = U @ torch.diag(kept.clamp(max=1)) @ V.mT
    return Transition(M.float(), V.contiguous().float(), kept.clamp(max=1).float(), linear.zero)


def between(A_t: Float[Tensor, "n n"], A_s: Float[Tensor, "n n"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """M, U, kept and V in float64 on the CPU: M = U diag(kept) V^T, for which M A_s is nearest to A_t."""
    A_t, A_s = A_t.double().cpu(), A_s.double().cpu()
    M = A_t @ torch.linalg.pinv(A_s, rtol=LOST)
    U, kept, Vh = torch.linalg.svd(M)
    return M, U, kept, Vh.mT
