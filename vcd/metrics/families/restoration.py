"""How well degraded test images are restored, by every way of `vcd.restoring`: the table of Bansal et al. (2208.09392).

For images at level T alone, as published: levels=1.
"""

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vcd import restoring, steering
from vcd.metrics.evaluation import Evaluation
from vcd.metrics.families.distribution import frechet
from vcd.metrics.fidelity import CEILING, WINDOW, fidelity, lpips
from vcd.metrics.results import Number, Result
from vcd.models.base import Diffusion
from vcd.randomness import PerImage

NEEDS_A_MODEL = True
NEEDS_FEATURES = True
BATCH = 256  # images at a time
UNITS = {"psnr": "dB", "rmse": "of images in [0, 1]"}


def measure(e: Evaluation) -> Result:
    """Means over levels, for the degraded images and every way back from them; the table has every level.

    Fréchet distance of the restored images from the same images undamaged, PSNR, SSIM, RMSE, and LPIPS where its weights
    are.
    """
    assert e.model is not None  # NEEDS_A_MODEL
    images, T = e.test.balanced(e.restored), e.model.degradation.T
    features, _ = e.extractor.features(images, "the test images")
    distance = f"f{e.extractor.letter}d_{len(images)}"
    levels = sorted({int(t) for t in torch.linspace(T / min(T, e.levels), T, min(T, e.levels)).round()})
    table: list[dict[str, Any]] = []
    for level in levels:
        for way, back in _all(e.model, images, level, e.seed).items():
            found = {distance: frechet(e.extractor.features(back, f"level {level}, {way}")[0], features)}
            means = {name: values.mean().item() for name, values in fidelity(back, images).items()}
            found |= {"psnr": means["psnr"], "ssim": means["ssim"], "rmse": (means["mse"] / 4) ** 0.5}
            if (perceived := lpips(back, images)) is not None:
                found["lpips"] = perceived.item()
            table += [{"t": level, "way": way, "metric": name, "value": value} for name, value in found.items()]
    protocol = {
        "data": e.data.name, "test": e.test.fingerprint, "restored": len(images), "levels": [t / T for t in levels],
        "seed": e.seed,
    }  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        distance: {**e.extractor.protocol, "reference": "the same images, not degraded"},
        "psnr": {"psnr": f"mean over images of at most {CEILING:g} dB each"},
        "ssim": {"ssim_window": WINDOW},
    }
    numbers = {}
    for name, way in sorted(dict.fromkeys((row["metric"], row["way"]) for row in table), key=lambda pair: pair[0]):
        values = [row["value"] for row in table if (row["metric"], row["way"]) == (name, way)]
        better = "higher" if name in ("psnr", "ssim") else "lower"
        mean = sum(values) / len(values)
        numbers[f"{name}_{way}"] = Number(mean, better, None, UNITS.get(name, ""), protocol | own.get(name, {}))
    return Result(numbers, {"restoration": table})


def _all(model: Diffusion, images: UInt8[Tensor, "n c h w"], level: int, seed: int) -> dict[str, Tensor]:
    """`restored` of all images, as 8 bits."""
    found = defaultdict(list)
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        randomness = PerImage(seed, range(first, first + len(part)), model.device)
        for way, x in restored(model, model.space.encode(part.to(model.device)), level, randomness).items():
            found[way].append(model.space.decode(x).cpu())
    return {way: torch.cat(parts) for way, parts in found.items()}


@torch.no_grad()
def restored(
    model: Diffusion, x0: Float[Tensor, "n c h w"], level: int, randomness: PerImage
) -> dict[str, Float[Tensor, "n c h w"]]:
    """x0 degraded to `level`, and brought back by `restoring.ways`; and by latents of its own ("posterior"), where there
    are any."""
    D, t = model.degradation, torch.full((len(x0),), level, device=x0.device)
    model.check_alone()
    eps = D.draw(x0, randomness)
    x_t = D(x0, t, eps)
    found = {"degraded": x_t}
    for way in restoring.ways(model, eps):
        found[way] = restoring.restore(model, way, x_t, level, randomness.take(), eps)
    if model.has_latents:
        path, _ = steering.encode(steering.variational(model), x0, randomness.take(), level=level)
        found["posterior"] = steering.decode(steering.variational(model), path, keep=2, level=level).x0
    return found
