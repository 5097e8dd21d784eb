"""Where diffusion happens: the one place that knows uint8, [-1, 1], black and clipping."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import final

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vcd.errors import NotFinite

BLACK = -1.0  # the value of a black pixel


def to_float(images: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """uint8 0..255 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """[-1, 1] to uint8: clamp, then round to the nearest of the 256 values; files and metrics share it.

    NotFinite where a value is NaN or infinite.
    """
    return ((finite(images, "images").float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte()


def finite(x: Float[Tensor, "*shape"], what: str) -> Float[Tensor, "*shape"]:
    """x itself; NotFinite, which says how many of them, where one of the rows of x is not finite."""
    if not (good := x.isfinite().reshape(len(x) if x.ndim else 1, -1).all(1)).all():
        raise NotFinite(
            f"{int((~good).sum())} of {len(good)} {what} are not finite: the model diverges there; try an earlier checkpoint, "
            "a smaller delta, or another sampler or prior"
        )
    return x


class Space(nn.Module, ABC):
    """The way between images as bytes and the x that is degraded and restored.

    zero: the value that fading ends in and that `start=black` begins with, one number for all channels and positions of x.
    In `Pixels` it is black. A space in which a black image is not one and the same number everywhere, such as a wavelet
    transform, fades to another image: the one that x = zero decodes to.
    lossy: whether decoding what was encoded may be another image.
    size, channels: of x, from the yaml, where the network, the start and the degradation read them; None: not said.
    """

    lossy = False

    def __init__(self, *, zero: float, size: int | None = None, channels: int | None = None):
        super().__init__()
        self.zero = zero
        self.shape = None if size is None or channels is None else (channels, size, size)

    def fit(self, images: Iterable[UInt8[Tensor, "_ c h w"]]) -> None:
        """Learn from the training images, given once in batches, before anything else is trained."""

    @abstractmethod
    def encode(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """x0 of images."""

    @abstractmethod
    def decode(self, x: Float[Tensor, "n c2 h2 w2"]) -> UInt8[Tensor, "n c h w"]:
        """Images of x, whichever level x is at. NotFinite, from `to_uint8`, where there are none."""

    @abstractmethod
    def clip(self, x0: Float[Tensor, "n c2 h2 w2"]) -> Float[Tensor, "n c2 h2 w2"]:
        """An estimate of x0 brought back to where x0 can be."""


@final
class Pixels(Space):
    """The pixels themselves, in [-1, 1]."""

    def __init__(self, *, zero: float = BLACK, size: int | None = None, channels: int | None = None):
        super().__init__(zero=zero, size=size, channels=channels)

    def encode(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return to_float(images)

    def decode(self, x: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        return to_uint8(x)

    def clip(self, x0: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x0.clamp(-1, 1)


@final
class Bins(Space):
    """The centres of 256 bins that fill [-1, 1]: x = (k + 1/2) / 128 - 1, as variational diffusion models have it."""

    def __init__(self, *, zero: float = 1 / 256 - 1, size: int | None = None, channels: int | None = None):
        super().__init__(zero=zero, size=size, channels=channels)

    def encode(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return (images.float() + 0.5) / 128 - 1

    def decode(self, x: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        return ((finite(x, "images").float() + 1) * 128).clamp(0, 255).byte()

    def clip(self, x0: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x0.clamp(1 / 256 - 1, 1 - 1 / 256)
