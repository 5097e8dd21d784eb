"""What turns images into features. The name of a metric says which extractor it comes from: fid is Inception's alone."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from vcd.data.base import ImageData


class Extractor(nn.Module, ABC):
    """uint8 images -> features (n, d) and class logits (n, k).

    letter: i for Inception, c for a classifier of the data set itself: fid and kid, or fcd and kcd.
    own_classes: whether the logits are of the classes of the data set.
    """

    letter: str
    own_classes: bool

    @property
    @abstractmethod
    def protocol(self) -> dict[str, str | float]:
        """What numbers made with it depend on: name, hash of the weights, accuracy."""

    @abstractmethod
    def ready(self, data: ImageData) -> "Extractor":
        """With its weights, for images of this data set."""

    @abstractmethod
    def forward(self, images: UInt8[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]: ...

    @torch.no_grad()
    def features(
        self, images: UInt8[Tensor, "n c h w"], what: str, batch: int = 256
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        """Of all images, on the CPU; with a progress bar that says of `what`."""
        device = next(self.parameters()).device
        parts = [
            [x.float().cpu() for x in self(torch.as_tensor(part).to(device))]
            for part in tqdm(images.split(batch), desc=f"features of {what}", unit="batch", leave=False)
        ]
        features, logits = (torch.cat(side) for side in zip(*parts, strict=True))
        return features, logits
