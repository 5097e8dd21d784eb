"""A family of metrics, as it is found: see `vcd.metrics.families`."""

from collections.abc import Callable
from dataclasses import dataclass

from vcd import discovery
from vcd.errors import UserError
from vcd.metrics import families
from vcd.metrics.evaluation import Evaluation
from vcd.metrics.results import Result


@dataclass(frozen=True)
class Family:
    """How to measure, and what that needs."""

    name: str
    measure: Callable[[Evaluation], Result]
    needs_a_model: bool
    needs_features: bool
    least_images: int


def find(name: str) -> Family:
    """The family of that name, or at that dotted path. UserError where there is none."""
    found = discovery.find(name, families, "metrics")
    measure = getattr(found, "measure", found)
    if not callable(measure):
        raise UserError(f"metrics={name} has no function measure(evaluation)")
    return Family(
        name=name,
        measure=measure,
        needs_a_model=getattr(found, "NEEDS_A_MODEL", False),
        needs_features=getattr(found, "NEEDS_FEATURES", False),
        least_images=getattr(found, "LEAST_IMAGES", 2),
    )
