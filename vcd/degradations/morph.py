"""Animorphosis: one image turns into another."""

from typing import Literal, Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from vcd.degradations.base import Degradation, Images
from vcd.degradations.noise import Noise
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.randomness import PerImage
from vcd.schedules import Schedule
from vcd.spaces import to_float


@runtime_checkable
class Pictures(Protocol):
    """One split of a data set."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Tensor:
        """The images at `index`, uint8."""
        ...


@runtime_checkable
class Source(Protocol):
    """A data set, such as `vcd.data.base.ImageData`."""

    def load(self, split: Literal["train", "val"]) -> Pictures:
        """The images of a split."""
        ...


@final
class Morph(Degradation):
    """sqrt(abar_t) x0 + sqrt(1 - abar_t) y, y an image of another data set (Bansal et al. 2022, 2208.09392, section 5).

    The first `images` training images of `source`, brought to the size and channels needed, are kept as a buffer: they
    are read when the first y is drawn, and checkpoints hold them. eps is y. UserError if `images` is below 1.
    """

    stochastic = True
    others: Tensor  # (images, C, N, N)
    read: Tensor  # have they been?

    def __init__(self, *, T: int, size: int, channels: int, schedule: Schedule, source: Source, images: int = 1000):
        if images < 1:
            raise UserError(f"degradation.images={images} must be at least 1: they are what images turn into")
        super().__init__(T=T)
        self.mix, self.source, self.ready = Noise(T=T, schedule=schedule), source, False
        self.register_buffer("others", torch.zeros(images, channels, size, size))
        self.register_buffer("read", torch.tensor(False))

    def forward(self, x0: Images, t: Levels, eps: Images | None = None) -> Images:
        """x_t in float32. ValueError without eps."""
        return self.mix(x0, t, eps)

    def draw(self, x0: Images, randomness: PerImage | None = None) -> Images:
        """Images of the other set."""
        if not self.ready:  # looks at the buffer once: on a GPU that waits
            if not self.read:
                self._fill()
            self.ready = True
        u = torch.rand(len(x0), device=x0.device) if randomness is None else randomness.uniform().to(x0.device)
        return self.others[(u * len(self.others)).long().clamp(max=len(self.others) - 1)]

    def infer(self, x_t: Images, x0: Images, t: Levels) -> Images:
        """The y that leads from x0 to x_t; 0 at level 0, which holds nothing of it."""
        return self.mix.infer(x_t, x0, t)

    def _fill(self) -> None:
        n, channels, size, _ = self.others.shape
        found = self.source.load("train")
        images = to_float(found.batch(torch.arange(n) % len(found)))  # fewer than asked for: in turns
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        if images.shape[1] != channels:
            images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        self.others.copy_(images)
        self.read.fill_(True)
