"""Degradations that are one small matrix product per side of the image: blur, kernel blur, pixelation and fading."""

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.degradations.base import Degradation, Eps, Images, exactly
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.spaces import BLACK

Table = Float[Tensor, "levels n n"]  # (T+1, H, H)


class SeparableLinear(Degradation):
    """D(x0, t) = A_t (x0 - zero) A_t^T + zero, with A_t from a table; zero is black.

    Black is where fading ends, so it is the zero of the linear map. The constant is applied as
    zero (1 - r_t r_t^T), r_t the row sums of A_t: the same thing, but exactly x0 where A_t is the identity.
    Subclasses compute their table in float64 and hand it over. Where every A_t is a multiple of the identity (fading),
    the product is one number times the image.
    """

    table: Tensor  # A, (T+1, H, H), float32
    row_sums: Tensor  # r, (T+1, H), float32

    def __init__(self, table: Table, *, zero: float = BLACK):
        super().__init__(T=len(table) - 1)
        self.zero = zero
        self.keeps_flat = bool(
            torch.allclose(table.double().sum(-1), table.new_ones(()).double())
        )  # flat images: any zero will do
        self.register_buffer("table", table.float())
        self.register_buffer("row_sums", table.sum(-1).float())
        self.scalar = torch.equal(table, table[:, :1, :1] * torch.eye(table.shape[-1], dtype=table.dtype))

    def forward(self, x0: Images, t: Levels, eps: Eps | None = None) -> Images:
        """x_t in float32 (in float64 after `.double()`). UserError if the images are not as large as the table."""
        return self.linear(x0, t) + self.zero * (1 - self._outer(t))

    def linear(self, x: Images, t: Levels) -> Images:
        """A_t x A_t^T, the part that is linear in x."""
        n = self.table.shape[-1]
        if x.shape[-2:] != (n, n):
            h, w = x.shape[-2:]
            raise UserError(f"the degradation was built for {n}x{n} images but got {h}x{w}; check dataset.size")
        x = x.to(self.table.dtype)
        if self.scalar:
            return self._outer(t) * x
        with exactly(x.device):
            A = self.table[t][:, None]
            return A @ x @ A.mT

    def _outer(self, t: Levels) -> Float[Tensor, "b 1 n n"]:
        """r_t r_t^T, or where all of its entries are one number, this: (b, 1, 1, 1)."""
        r = self.row_sums[:, :1][t] if self.scalar else self.row_sums[t]
        return r[:, None, :, None] * r[:, None, None, :]
