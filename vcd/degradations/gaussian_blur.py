"""Blur by repeated Gaussian kernels."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from vcd.degradations.separable import SeparableLinear, Table
from vcd.errors import UserError


@final
class GaussianBlur(SeparableLinear):
    """x_t = K_t * x_{t-1}, K_t a Gaussian kernel of std sigma_t pixels; x_T is the channel mean.

    Bansal et al., 2208.09392, section 5. `sigma` maps T to (T+1,), one of vcd.schedules' laws; `padding` is
    "circular" or "reflect" (mirrored without repeating the border pixel, as torch pads; such a blur tends to a mean
    that counts the border half, so that the step to x_T can be a little nearer to x0 at very large T).
    UserError if the kernel is even or does not fit into the image.
    """

    def __init__(self, *, T: int, size: int, kernel_size: int, sigma: Callable[[int], Tensor], padding: str):
        super().__init__(kernel_table(sigma(T), size, kernel_size, padding))


def kernel_table(sigma: Float64[Tensor, " levels"], size: int, kernel_size: int, padding: str) -> Table:
    """A_t = K_t A_{t-1}, A_T = 1/N everywhere, (T+1, N, N), float64."""
    half = kernel_size // 2
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(f"kernel_size={kernel_size}: a kernel has a centre, set an odd number such as 5")
    if padding not in ("circular", "reflect"):
        raise UserError(f"padding={padding}: choose circular or reflect")
    if half >= size:
        raise UserError(
            f"kernel_size={kernel_size}: it does not fit into {size}x{size} images; "
            f"set degradation.kernel_size={2 * size - 1} or less"
        )
    offset = torch.arange(-half, half + 1)
    source = torch.arange(size)[:, None] + offset  # (N, k): the pixel each tap reads
    if padding == "circular":
        source = source % size
    else:
        source = source.abs()
        source = torch.where(source < size, source, 2 * (size - 1) - source)
    table = [torch.eye(size, dtype=torch.float64)]
    for s in sigma[1:]:
        taps = torch.softmax(-(offset.double() ** 2) / (2 * s**2), 0)
        K = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, source, taps.expand(size, -1).contiguous())
        table.append(K @ table[-1])
    table[-1] = torch.full((size, size), 1 / size, dtype=torch.float64)
    return torch.stack(table)
