"""A small classifier of the data set itself, for features where Inception's mean little, such as digits'."""

import hashlib
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
from vcd.images import to_float
from vcd.metrics.extractor import Extractor
from vcd.runs import write_atomically

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
        what = (data.name, train.fingerprint, self.steps, self.batch_size, self.seed, VERSION)
        name = f"{data.name}-{hashlib.sha256(repr(what).encode()).hexdigest()[:12]}"
        weights = self.root / "classifiers" / f"{name}.pt"
        if not self._read(weights):
            log.info("training the classifier of %s once (%d steps), kept as %s", data.name, self.steps, weights)
            self._fit(train, data.load("val"))
            self._write(weights)
        return self.eval()

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        features = F.silu(self.compared(self.layers(to_float(images))))
        return features, self.classes(features)

    def _fit(self, train: Images, test: Images) -> None:
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
        self.eval()
        _, logits = self.features(test.images, "test images")
        self.accuracy = (logits.argmax(1) == test.labels).double().mean().item()

    @property
    def protocol(self) -> dict[str, str | float]:
        return {"extractor": "classifier", "weights": self._hash(), "test_accuracy": round(self.accuracy, 6)}

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in self.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _read(self, weights: Path) -> bool:
        """Whether what is kept could be read and is what its .json says."""
        record = weights.with_suffix(".json")
        if not (weights.exists() and record.exists()):
            return False
        try:
            self.load_state_dict(torch.load(weights, weights_only=True))
            facts = json.loads(record.read_text())
            self.accuracy = facts["test_accuracy"]
            if facts["weights"] == self._hash():
                return True
        except Exception:  # truncated, in whatever way
            pass
        log.warning("%s is damaged: it is trained anew", weights)
        return False

    def _write(self, weights: Path) -> None:
        weights.parent.mkdir(parents=True, exist_ok=True)
        temporary = weights.with_suffix(".tmp")
        torch.save(self.state_dict(), temporary)
        temporary.replace(weights)
        write_atomically(weights.with_suffix(".json"), json.dumps(self.protocol, indent=2) + "\n")
