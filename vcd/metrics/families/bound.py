"""What the model's own variational bound says of test images."""

import logging

from vcd.metrics.evaluation import Evaluation
from vcd.metrics.results import Number, Result
from vcd.randomness import PerImage

NEEDS_A_MODEL = True
log = logging.getLogger("vcd")


def measure(e: Evaluation) -> Result:
    """The numbers and curves of `Diffusion.bound`; nothing for a model without one."""
    assert e.model is not None  # NEEDS_A_MODEL
    images = e.test.balanced(e.restored)
    x0 = e.model.space.encode(images.to(e.model.device))
    if e.model.guess is not None:
        log.warning("no bound of a model that refines a first guess: that of the refiner says nothing of the guess")
        return Result()
    bound = e.model.bound(x0, PerImage(e.seed, range(len(x0)), e.model.device))
    if bound is None:
        return Result()
    protocol = {
        "T": e.model.degradation.T, "data": e.data.name, "test": e.test.fingerprint, "images": len(x0), "seed": e.seed, **bound.protocol,
    }  # fmt: skip
    log.info("bound of %s: %s", type(e.model).__name__, ", ".join(f"{key} {value}" for key, value in protocol.items()))
    numbers = {
        name: Number(quantity.value, quantity.better, None, quantity.unit, protocol)
        for name, quantity in bound.numbers.items()
    }
    return Result(numbers, bound.curves)
