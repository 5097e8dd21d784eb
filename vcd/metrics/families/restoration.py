"""How well test images come back from level t: from their own latents, from the prior's, and in one step."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vcd import steering
from vcd.batch import Condition
from vcd.metrics.evaluation import Evaluation
from vcd.metrics.fidelity import CEILING, WINDOW, fidelity, lpips
from vcd.metrics.results import Number, Result
from vcd.models.base import Diffusion
from vcd.randomness import PerImage

NEEDS_A_MODEL = True
BETTER = {"psnr": "higher", "ssim": "higher", "mse": "lower", "lpips": "lower"}


def measure(e: Evaluation) -> Result:
    """Means over test images and over levels, for every way that every level has; the table has all of them."""
    assert e.model is not None  # NEEDS_A_MODEL
    images, T = e.test.balanced(e.restored), e.model.degradation.T
    x0 = e.model.space.encode(images.to(e.model.device))
    levels = sorted({int(t) for t in torch.linspace(T / min(T, e.levels), T, min(T, e.levels)).round()})
    table: list[dict[str, Any]] = []
    for level in levels:
        randomness = PerImage(e.seed, range(len(x0)), e.model.device)
        for way, x in restored(e.model, x0, level, randomness).items():
            back = e.model.space.decode(x).cpu()
            means = {name: values.mean().item() for name, values in fidelity(back, images).items()}
            if (perceived := lpips(back, images)) is not None:
                means["lpips"] = perceived.item()
            table += [{"t": level, "way": way, "metric": name, "value": value} for name, value in means.items()]
    protocol = {
        "data": e.data.name, "test": e.test.fingerprint, "restored": len(x0), "levels": levels, "ssim_window": WINDOW,
        "seed": e.seed,
    }  # fmt: skip
    numbers = {}
    for name, way in dict.fromkeys((row["metric"], row["way"]) for row in table):
        values = [row["value"] for row in table if (row["metric"], row["way"]) == (name, way)]
        if len(values) == len(levels):  # a mean over fewer levels would not compare
            unit, more = (
                ("dB", {"psnr": f"mean over images of at most {CEILING:g} dB each"}) if name == "psnr" else ("", {})
            )
            mean = sum(values) / len(values)
            numbers[f"{name}_{way}"] = Number(mean, BETTER[name], None, unit, protocol | more)
    return Result(numbers, {"restoration": table})


@torch.no_grad()
def restored(
    model: Diffusion, x0: Float[Tensor, "n c h w"], level: int, randomness: PerImage
) -> dict[str, Float[Tensor, "n c h w"]]:
    """x0 degraded to `level` and brought back, by every way the model has."""
    D, t = model.degradation, torch.full((len(x0),), level, device=x0.device)
    x_t, ways = D(x0, t, D.draw(x0, randomness)), {}
    model.check_alone()
    latents = model.latents(randomness)
    ways["prior" if model.has_latents else "sequential"] = model.sampler(
        model, x_t, randomness.take(), latents=latents, level=level, keep=2
    ).x0
    if model.has_latents:
        path, _ = steering.encode(steering.variational(model), x0, randomness.take(), level=level)
        ways["posterior"] = steering.decode(steering.variational(model), path, keep=2, level=level).x0
    s = torch.zeros_like(t)
    if model.prediction.answers(t, s).all():
        z = latents(x_t, t, s) if callable(latents) else None if latents is None else latents[level - 1]
        ways["one_step"] = model.restore(x_t, t, s, Condition(z=z))
    return ways
