"""Inception v3, as every published FID has it."""

from pathlib import Path
from typing import final

from jaxtyping import Float, UInt8
from torch import Tensor

from vcd.checkpoints import fingerprint
from vcd.data.base import ImageData
from vcd.errors import UserError
from vcd.metrics.extractor import Extractor

FILE = "weights-inception-2015-12-05-6726825d.pth"


@final
class Inception(Extractor):
    """torch-fidelity's port of the original weights: 2,048 features. UserError when they are neither there nor in reach."""

    letter = "i"
    own_classes = False

    def __init__(self, *, weights: str | None = None, prefetch: bool = False):
        super().__init__()
        self.weights, self.prefetch = weights, prefetch

    def ready(self, data: ImageData) -> "Inception":
        """With its weights: those at `weights`, or torch-fidelity's own, downloaded if `prefetch`."""
        from torch.hub import get_dir
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        place = Path(self.weights).expanduser() if self.weights else Path(get_dir()) / "checkpoints" / FILE
        if not place.exists() and not (self.prefetch and not self.weights):
            raise UserError(f"Inception's weights are not at {place}: on a machine with a network, vcd.evaluate prefetch=true "
                            "fetches them; or copy them there, or take extractor=classifier")  # fmt: skip
        try:
            self.net = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], str(place) if place.exists() else None
            )
        except Exception as error:  # whatever the download or the file raises
            raise UserError(f"Inception's weights could not be had ({error}): copy {FILE} to {place}") from error
        self.hash = fingerprint(place)[:16]
        return self.eval()

    @property
    def protocol(self) -> dict[str, str | float]:
        return {"extractor": "inception-v3-compat", "weights": self.hash}

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        features, logits = self.net(images.expand(-1, 3, -1, -1))
        return features, logits
