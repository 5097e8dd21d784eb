"""Truncation: what colder latents gain in precision, and lose in recall."""

import logging

from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from vcd.errors import NotFinite
from vcd.metrics import samples
from vcd.metrics.evaluation import Evaluation
from vcd.metrics.families.distribution import LEAST_IMAGES as LEAST_IMAGES
from vcd.metrics.families.distribution import few, frechet, manifolds
from vcd.metrics.results import Number, Result
from vcd.models.variational import Variational

log = logging.getLogger("vcd")
NEEDS_A_MODEL = NEEDS_FEATURES = True
BATCH = 256
TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)


def measure(e: Evaluation) -> Result:
    """Fréchet distances, precision and recall of n samples at every temperature of the latents, image i from the same random
    numbers at each (Brock et al. 2019, arXiv:1809.11096, for GANs); the best is the nearest to the split that is not the
    reference, so that its distance from the reference is no choice of itself. Nothing for a model without latents."""
    model = e.model
    if not isinstance(model, Variational):
        log.warning("metrics=[truncation]: a %s has no latents to truncate", type(model).__name__)
        return Result()
    reference, other = e.comparisons
    letter, rows = e.extractor.letter, list[dict[str, float]]()
    for temperature in tqdm(TEMPERATURES, desc="truncation", unit="temperature"):
        if temperature == model.temperature:
            a, _ = e.features
        else:
            a, _ = e.extractor.features(_drawn(model, e, temperature), f"temperature {temperature}")
        distances: dict[str, float] = {c.split: frechet(a, e.features_of(c.split)[0]) for c in (reference, other)}
        own = manifolds(a, few(e, reference))
        rows.append({"temperature": temperature, "precision": own["precision"], "recall": own["recall"]} | distances)
        log.info("temperature %.1f   distance %6.2f   precision %.3f   recall %.3f", temperature,
                 distances[reference.split], own["precision"], own["recall"])  # fmt: skip
    best = min(rows, key=lambda row: row[other.split])
    protocol = e.protocol(reference, **e.extractor.protocol, temperatures=list(TEMPERATURES), seed=e.seed)
    numbers = {
        f"best_temperature_{e.n}": Number(best["temperature"], "neither", None, "", protocol),
        f"best_temperature_f{letter}d_{e.n}": Number(best[reference.split], "lower", None, "", protocol),
    }
    return Result(numbers, {"truncation": rows})


def _drawn(model: Variational, e: Evaluation, temperature: float) -> UInt8[Tensor, "n c h w"]:
    """The images of the evaluation's samples, at another temperature. NotFinite where one is."""
    with model.tempered(temperature), model.evaluating():
        images, finite = samples.draw(model, e.seed, range(e.n), BATCH, show=False)
    if not finite.all():
        raise NotFinite(f"truncation: {(~finite).sum()} of {e.n} samples are not finite at temperature {temperature:g}")
    return images
