"""The likelihood of test images by the probability-flow ODE. It is not a bound, and never in one column with one."""

from vcd.errors import UserError
from vcd.metrics.evaluation import Evaluation
from vcd.metrics.results import Number, Result
from vcd.randomness import PerImage

NEEDS_A_MODEL = True
STEPS, DRAWS = 70, 5  # of Heun's method; of the dequantising noise


def measure(e: Evaluation) -> Result:
    """Bits per dimension of dequantised images, the mean of DRAWS. UserError for a model without an ODE."""
    assert e.model is not None  # NEEDS_A_MODEL
    images = e.test.balanced(e.restored).to(e.model.device)
    if e.model.guess is not None:
        raise UserError("metrics=[likelihood]: a model that refines a first guess has a density given the guess alone")
    draws = []
    for i in range(DRAWS):
        indices = range(i * len(images), (i + 1) * len(images))
        bits = e.model.likelihood(images, PerImage(e.seed, indices, e.model.device), steps=STEPS)
        if bits is None:
            raise UserError(
                f"metrics=[likelihood]: a {type(e.model).__name__} has no probability-flow ODE; take a checkpoint of "
                "model=ddpm or vdm with one signal per level, or metrics=[bound]"
            )
        draws.append(bits.mean().item())
    protocol = {
        "data": e.data.name, "test": e.test.fingerprint, "images": len(images), "seed": e.seed, "draws": DRAWS,
        "solver": f"Heun, {STEPS} steps of ln sigma", "divergence": "Hutchinson, Rademacher", "dequantised": "uniform",
    }  # fmt: skip
    number = Number(sum(draws) / DRAWS, "lower", None, "bits per dimension, dequantised", protocol)
    return Result({"ode_bits_per_dim": number})
