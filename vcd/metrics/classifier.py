"""A small classifier of the data set itself, for features where Inception's mean little, such as digits'."""

import json
import logging
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from vcd.data.base import ImageData, Images
from vcd.errors import UserError
from vcd.files import write_text
from vcd.images import to_float
from vcd.metrics.cached import cached, digest, key
from vcd.metrics.extractor import Extractor

log = logging.getLogger(__name__)
VERSION = 1  # counts up when the same data would give other weights
WIDTH, FEATURES = 32, 128


@final
class Classifier(Extractor):
    """Three convolutions, then the `FEATURES` units that are compared, then the classes.

    Trained once, seeded, and kept below `root` with its hash and test accuracy in a .json beside it; UserError for
    data of a single class.
    """

    letter = "c"

    def __init__(self, *, root: str | Path, steps: int, batch_size: int = 128, seed: int = 0):
        super().__init__()
        self.root, self.steps, self.batch_size, self.seed = Path(root).expanduser(), steps, batch_size, seed

    def ready(self, data: ImageData) -> "Classifier":
        """Of this data set: read, or trained now."""
        train = data.load("train")
        classes = len(train.classes)
        if classes < 2:
            raise UserError(f"{data.name} has a single class, there is nothing to classify: take extractor=inception")
        self.layers = nn.Sequential(
            nn.Conv2d(data.channels, WIDTH, 3, padding=1), nn.SiLU(),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1), nn.GroupNorm(8, 2 * WIDTH), nn.SiLU(),
            nn.Conv2d(2 * WIDTH, 4 * WIDTH, 3, stride=2, padding=1), nn.GroupNorm(8, 4 * WIDTH), nn.SiLU(),
            nn.AdaptiveAvgPool2d(min(4, data.size // 4)), nn.Flatten(),
        )  # fmt: skip
        self.compared = nn.Linear(4 * WIDTH * min(4, data.size // 4) ** 2, FEATURES)
        self.classes = nn.Linear(FEATURES, classes)
        test = data.load("val")
        facts = dict(
            data=(data.name, train.fingerprint, test.fingerprint), how=(self.steps, self.batch_size, self.seed, VERSION)
        )
        path = self.root / "classifiers" / f"{data.name}-{key(**facts)}.pt"

        def make() -> dict[str, Tensor]:
            log.info("training the classifier of %s once (%d steps), kept as %s", data.name, self.steps, path)
            self._fit(train)
            return {**self.state_dict(), "accuracy": torch.tensor(self._accuracy(test))}

        kept = cached(path, make)
        self.accuracy = kept.pop("accuracy").item()
        self.load_state_dict(kept)
        note, text = path.with_suffix(".json"), json.dumps(self.protocol, indent=2) + "\n"
        if not note.exists() or note.read_text() != text:
            write_text(note, text)
        return self.eval()

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        features = F.silu(self.compared(self.layers(to_float(images))))
        return features, self.classes(features)

    def _fit(self, train: Images) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for module in self.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=self.steps)
            self.train()
            for _ in tqdm(range(self.steps), desc="classifier", unit="step", leave=False):
                index = torch.randint(len(train), (self.batch_size,))
                _, logits = self(train.batch(index))
                optimizer.zero_grad()
                F.cross_entropy(logits, train.labels[index]).backward()
                optimizer.step()
                schedule.step()

    def _accuracy(self, test: Images) -> float:
        self.eval()
        _, logits = self.features(test.images, "test images")
        return (logits.argmax(1) == test.labels).double().mean().item()

    @property
    def protocol(self) -> dict[str, str | float]:
        weights = {name: tensor.cpu() for name, tensor in self.state_dict().items()}
        return {"extractor": "classifier", "weights": digest(weights)[:16], "test_accuracy": round(self.accuracy, 6)}
