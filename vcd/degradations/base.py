"""What every degradation is: x_t = D(x0, t), with x_0 = x0 and x_T fully degraded."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vcd.levels import Levels
from vcd.randomness import PerImage
from vcd.schedules import check_levels

Images = Float[Tensor, "b c h w"]
Eps = Float[Tensor, "b c2 h2 w2"]  # of noise like the images; a centre, a colour or a field of flakes elsewhere


class Degradation(nn.Module, ABC):
    """D(x0, t) for levels t = 0 (clean) .. T (fully degraded), each image at its own level.

    Images are in [-1, 1]. A subclass has no trainable parameter and keeps every tensor as a buffer; it computes in
    float32, under autocast too. UserError if T is not a whole number of at least 1.

    Examples:
        >>> class Dim(Degradation):
        ...     def forward(self, x0, t, eps=None):
        ...         return x0 * (1 - t / self.T)[:, None, None, None]
        >>> D, x0 = Dim(T=4), torch.ones(3, 1, 2, 2)
        >>> D(x0, torch.tensor([0, 1, 4]))[:, 0, 0, 0].tolist()
        [1.0, 0.75, 0.0]
    """

    T: int
    stochastic: bool = False  # does x_t need randomness besides x0?
    continuous: bool = False  # are there levels between the whole numbers?
    readable: bool = True  # can `infer` say which eps led to x_t?

    def __init__(self, *, T: int):
        super().__init__()
        self.T = check_levels(T)

    @abstractmethod
    def forward(self, x0: Images, t: Levels, eps: Eps | None = None) -> Images:
        """x_t. `eps` is the randomness of the path, from `draw`; deterministic degradations ignore it.

        ValueError if the degradation is stochastic and eps is None.
        """

    def draw(self, x0: Images, randomness: PerImage | None = None) -> Eps | None:
        """The randomness of one whole path per image, shared by x_t and x_s; None where there is none.

        randomness: each image's own; None: torch's global random state.
        """
        return None

    def infer(self, x_t: Images, x0: Images, t: Levels) -> Eps | None:
        """The eps that leads from x0 to x_t; None where there is none."""
        return None

    def normalise(self, x: Images, t: Levels) -> Images:
        """What a network is shown of x_t: x_t itself, unless its scale depends on t."""
        return x


def exactly(device: torch.device) -> AbstractContextManager:
    """Products in the precision of their factors, whatever autocast says: levels differ in amplitudes that half
    precision erases. (TF32 products are off by default in torch, and training leaves them off.)"""
    has_autocast = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if has_autocast else nullcontext()
