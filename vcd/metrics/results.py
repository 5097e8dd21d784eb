"""What is measured: named numbers, each with its floor and its protocol, tables and pictures."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vcd.errors import UserError


@dataclass(frozen=True)
class Number:
    """A metric: floor is the same of real images, other than the reference, at the same n; None where there is none."""

    value: float
    better: str  # lower, higher or neither
    floor: float | None = None
    unit: str = ""
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """Named numbers, tables for plots, and pictures that were written."""

    numbers: dict[str, Number] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)

    def add(self, other: "Result") -> None:
        """Take over another family's."""
        self.numbers |= other.numbers
        self.curves |= other.curves
        self.pictures += other.pictures

    def plain(self) -> dict[str, Any]:
        """For metrics.json."""
        return {"metrics": {name: asdict(number) for name, number in self.numbers.items()}, "curves": self.curves}


def place(ckpt: Path | None) -> Path:
    """metrics.json beside last.ckpt; metrics-step-0000500.json beside a copy that was kept."""
    if ckpt is None:
        return Path.cwd() / "metrics.json"
    return ckpt.with_name("metrics.json" if ckpt.stem == "last" else f"metrics-{ckpt.stem}.json")


def not_finite(numbers: dict[str, Number]) -> list[str]:
    """The names of numbers that are NaN or infinite."""
    return [name for name, number in numbers.items() if not math.isfinite(number.value)]


def read(path: Path) -> dict[str, Any]:
    """What metrics.json holds. UserError where it is damaged."""
    try:
        found = json.loads(path.read_text())
        if isinstance(found["subject"], dict) and all("value" in number for number in found["metrics"].values()):
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path} is damaged: python -m vcd.evaluate writes it again")
