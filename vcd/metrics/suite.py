"""The families of metrics: each takes a subject and a reference and gives named numbers with their floors."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vcd import spectra
from vcd.data.base import ImageData, Images
from vcd.data.decode import VERSION
from vcd.images import to_float, write_png
from vcd.metrics import distribution, memorisation, restoration
from vcd.metrics.cached import cached, key
from vcd.metrics.extractor import Extractor
from vcd.models.base import Diffusion
from vcd.randomness import PerImage


@dataclass
class Number:
    """A metric: floor is the same of real images, other than the reference, at the same n; null where there is none."""

    value: float
    better: str  # lower, higher or neither
    floor: float | None = None
    unit: str = ""
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """Named numbers, and tables for plots."""

    numbers: dict[str, Number] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return {"metrics": {k: asdict(v) for k, v in self.numbers.items()}, "curves": self.curves}


@dataclass
class Evaluation:
    """What is measured (samples, and the model where there is one) against what (a split of a data set)."""

    images: Tensor  # uint8 (n, c, h, w)
    model: Diffusion | None
    data: ImageData
    split: str
    extractor: Extractor
    cache: Path
    out: Path
    restored: int
    levels: int
    seed: int

    @cached_property
    def reference(self) -> Images:
        return self.train if self.split == "train" else self.test

    @cached_property
    def train(self) -> Images:
        return self.data.load("train")

    @cached_property
    def test(self) -> Images:
        return self.data.load("val")

    @cached_property
    def held_out(self) -> Images:
        return self.test if self.split == "train" else self.train

    @property
    def n(self) -> int:
        return len(self.images)

    @cached_property
    def floor_rows(self) -> Tensor:
        """As many held-out images as there are samples, or all of them."""
        count = min(self.n, len(self.held_out))
        return torch.randperm(len(self.held_out), generator=torch.Generator().manual_seed(0))[:count]

    def protocol(self, **more: Any) -> dict[str, Any]:
        """What a number depends on besides its subject."""
        return {"n": self.n, "data": self.data.name, "size": self.data.size, "channels": self.data.channels,
                "split": self.split, "reference": self.reference.fingerprint, "reference_n": len(self.reference), "floor_n": len(self.floor_rows),
                "transform": f"8 bits, decode version {VERSION}", **more}  # fmt: skip

    def features(self, what: str) -> tuple[Tensor, Tensor]:
        """Features and logits of the samples, of the reference (kept), or of the held-out images (kept)."""
        if what == "samples":
            return self._own
        images = self.reference if what == "reference" else self.held_out
        facts = dict(images=images.fingerprint, decode=VERSION, **self.extractor.protocol)

        def make() -> dict[str, Tensor]:
            return dict(zip(("features", "logits"), self.extractor.features(images.images, f"the {what}"), strict=True))

        kept = cached(self.cache / f"{self.data.name}-{what}-{key(**facts)}.pt", make)
        return kept["features"], kept["logits"]

    @cached_property
    def _own(self) -> tuple[Tensor, Tensor]:
        return self.extractor.features(self.images, "the samples")


def distribution_(e: Evaluation) -> Result:
    """Frechet and kernel distance, inception score, precision, recall, density, coverage."""
    (a, logits), (b, _), (h, held_logits) = (e.features(what) for what in ("samples", "reference", "held_out"))
    h, held_logits = h[e.floor_rows], held_logits[e.floor_rows]
    letter, n, protocol = e.extractor.letter, e.n, e.protocol(**e.extractor.protocol)
    some = b[
        torch.randperm(len(b), generator=torch.Generator().manual_seed(1))[: max(n, 10_000)]
    ]  # all pairs are looked at
    pairs = {**protocol, "reference_n": len(some)}
    manifold = {**pairs, "neighbours": distribution.NEIGHBOURS}
    own, floor = distribution.manifolds(a, some), distribution.manifolds(h, some)
    numbers = {
        f"f{letter}d_{n}": Number(distribution.frechet(a, b), "lower", distribution.frechet(h, b), "", protocol),
        f"k{letter}d_{n}": Number(distribution.kernel_distance(a, some), "lower", distribution.kernel_distance(h, some), "",
                                  {**pairs, "estimator": "unbiased, all pairs, cubic kernel"}),
        f"{letter}s_{n}": Number(distribution.inception_score(logits), "higher", distribution.inception_score(held_logits),
                                 "", {**protocol, "splits": 1}),
        **{f"{name}_{n}": Number(own[name], "higher", floor[name], "", manifold) for name in own},
    }  # fmt: skip
    return Result(numbers)


def spectrum(e: Evaluation) -> Result:
    """The radial power spectrum of samples against that of the data, in decibel."""

    def power(images: Tensor) -> Tensor:
        return torch.stack([spectra.power(to_float(part)).sum(0) for part in images.split(1024)]).sum(0) / len(images)

    some = torch.randperm(len(e.reference), generator=torch.Generator().manual_seed(1))[:20_000]
    own, real, held = (power(x) for x in (e.images, e.reference.batch(some), e.held_out.batch(e.floor_rows)))

    def distance(x: Tensor) -> float:
        return (10 * (x / real).log10()).square().mean().sqrt().item()

    curve = {"cycles_an_image": list(range(len(own))), "samples": own.tolist(), "data": real.tolist()}
    protocol = e.protocol(reference_n=len(some))
    return Result(
        {f"log_spectral_distance_{e.n}": Number(distance(own), "lower", distance(held), "dB", protocol)},
        {"spectrum": curve},
    )


def memorised(e: Evaluation) -> Result:
    """Nearest training neighbours of samples against those of held-out images, and the classes that are covered."""
    device = next(e.extractor.parameters()).device
    some = torch.randperm(len(e.test), generator=torch.Generator().manual_seed(0))[: e.n]
    own, at = memorisation.nearest(e.images, e.train.images, device)
    held, _ = memorisation.nearest(e.test.images[some], e.train.images, device)
    close = held.quantile(0.01)
    n = e.n
    protocol = e.protocol(distance="root mean square over pixels in [-1, 1]", split="train", reference=e.train.fingerprint,
                          reference_n=len(e.train), floor_n=len(some))  # fmt: skip
    numbers = {
        f"nearest_train_{n}": Number(own.median().item(), "neither", held.median().item(), "", protocol),
        f"copies_{n}": Number((own <= close).double().mean().item(), "lower", 0.01, "",
                              {**protocol, "nearer than": "the nearest 1 % of held-out images"}),
    }  # fmt: skip
    curves = {}
    if len(e.reference.classes) > 1:
        (_, logits), (_, held_logits) = e.features("samples"), e.features("held_out")
        real = torch.bincount(e.reference.labels, minlength=len(e.reference.classes)).double() / len(e.reference)
        if logits.shape[1] == len(real):
            k = len(real)
            mine, theirs = logits.argmax(1), held_logits[e.floor_rows].argmax(1)
            distance = memorisation.total_variation(mine, e.reference.labels, k)
            numbers[f"classes_tv_{n}"] = Number(distance, "lower", memorisation.total_variation(theirs, e.reference.labels, k),
                                                "", e.protocol(**e.extractor.protocol))  # fmt: skip
            curves["classes"] = {
                "names": list(e.reference.classes),
                "samples": mine.bincount(minlength=k).tolist(),
                "data": real.tolist(),
            }
    shown = own.argsort()[: min(10, n)]  # the samples that lie nearest to a training image
    pairs = torch.cat([e.images[shown], e.train.images[at[shown]]])
    return Result(
        numbers,
        curves,
        [write_png(e.out.with_name(f"nearest{e.out.stem.removeprefix('metrics')}.png"), pairs, columns=len(shown))],
    )


def restoration_(e: Evaluation) -> Result:
    """Test images degraded to several levels and brought back."""
    x0 = to_float(e.test.balanced(e.restored)).to(e.model.device)
    T = e.model.degradation.T
    levels = sorted({int(t) for t in torch.linspace(T / min(T, e.levels), T, min(T, e.levels)).round()})
    table, sums = [], {}
    for level in levels:
        randomness = PerImage(e.seed, range(len(x0)), e.model.device)
        for way, images in restoration.restored(e.model, x0, level, randomness).items():
            for name, values in restoration.fidelity(images, x0).items():
                table.append({"t": level, "way": way, "metric": name, "value": values.mean().item()})
                sums.setdefault((way, name), []).append(values.mean().item())
            if (distance := restoration.lpips(images, x0)) is not None:
                table.append({"t": level, "way": way, "metric": "lpips", "value": distance.item()})
                sums.setdefault((way, "lpips"), []).append(distance.item())
    units = {"psnr": ("higher", "dB"), "ssim": ("higher", ""), "mse": ("lower", ""), "lpips": ("lower", "")}
    protocol = {
        "data": e.data.name,
        "test": e.test.fingerprint,
        "restored": len(x0),
        "levels": levels,
        "ssim_window": restoration.WINDOW,
        "seed": e.seed,
    }
    numbers = {
        f"{name}_{way}": Number(sum(v) / len(v), units[name][0], None, units[name][1], protocol)
        for (way, name), v in sums.items()
        if len(v) == len(levels)  # a mean over fewer levels would not compare; the table has them
    }
    return Result(numbers, {"restoration": table})


def likelihood(e: Evaluation) -> Result:
    """The model's own variational bound, where it has one."""
    x0 = to_float(e.test.balanced(e.restored)).to(e.model.device)
    found = e.model.bound(x0, PerImage(e.seed, range(len(x0)), e.model.device))
    if found is None:
        return Result()
    protocol = {"data": e.data.name, "test": e.test.fingerprint, "images": len(x0), "seed": e.seed, **found.protocol}
    return Result(
        {name: Number(q.value, q.better, None, q.unit, protocol) for name, q in found.numbers.items()}, found.curves
    )


FAMILIES: dict[str, Callable[[Evaluation], Result]] = {
    "distribution": distribution_, "spectrum": spectrum, "memorisation": memorised, "restoration": restoration_, "bound": likelihood,
}  # fmt: skip
NEED_A_MODEL = {"restoration", "bound"}


def finite(numbers: dict[str, Number]) -> list[str]:
    """The names of numbers that are not."""
    return [name for name, number in numbers.items() if not math.isfinite(number.value)]
