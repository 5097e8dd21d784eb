"""One degradation after another."""

from collections.abc import Iterable, Mapping
from typing import cast, final

import torch
from torch import nn

from vcd.degradations.base import Degradation, Eps, Images
from vcd.degradations.quantise import Quantise
from vcd.degradations.separable import SeparableLinear, Table
from vcd.errors import UserError
from vcd.levels import Levels
from vcd.randomness import PerImage


@final
class Compose(Degradation):
    """The parts in their order, at the same level t: black_blur is blur, then black.

    Neighbouring separable parts are fused into one table of products, so that composing them costs nothing.
    At most one part may be stochastic; it then serves `draw` and `infer`.
    UserError if the parts disagree on T or on the image size.
    """

    def __init__(self, *, parts: Mapping[str, Degradation]):
        levels = {name: part.T for name, part in parts.items()}
        if len(set(levels.values())) != 1:
            raise UserError(f"parts of a composed degradation need one and the same T, got {levels or 'no part'}")
        random = [name for name, part in parts.items() if part.stochastic]
        if len(random) > 1:
            raise UserError(f"at most one part of a composed degradation may be random, got {' and '.join(random)}")
        super().__init__(T=next(iter(levels.values())))
        self.stages = nn.ModuleList(_fused(parts.values()))
        self.stochastic = bool(random)
        self.undo: nn.ModuleList | None = None
        if random:
            self.at = next(i for i, stage in enumerate(self.stages) if stage.stochastic)
            after = self._blurring()
            if all(isinstance(stage, SeparableLinear) for stage in after):
                # what is damped below 1e-3 on either side is given up: float32 could not bring it back
                self.undo = nn.ModuleList(
                    _Table(torch.linalg.pinv(s.table.double(), rtol=1e-3), zero=s.zero)
                    for s in cast(list[SeparableLinear], after)
                )
        self.readable = not random or (self.undo is not None and self.random.readable)

    def _blurring(self) -> list[nn.Module]:
        """The stages behind the random one, but for rounding, which is not undone."""
        return [stage for stage in self.stages[self.at + 1 :] if not isinstance(stage, Quantise)]

    def forward(self, x0: Images, t: Levels, eps: Eps | None = None) -> Images:
        """x_t in float32. ValueError if a part is stochastic and eps is None."""
        return self._through(self.stages, x0, t, eps)

    def draw(self, x0: Images, randomness: PerImage | None = None) -> Eps | None:
        return self.random.draw(x0, randomness) if self.stochastic else None

    @property
    def random(self) -> Degradation:
        """The stage that is random."""
        return cast(Degradation, self.stages[self.at])

    def infer(self, x_t: Images, x0: Images, t: Levels) -> Eps | None:
        """The smallest eps that leads from x0 to x_t: the parts behind the random one are undone by least squares.

        Zeros where they leave nothing of eps (fully faded). UserError if one of them is not separable.
        """
        if not self.stochastic:
            return None
        if self.undo is None:
            raise UserError("the noise cannot be read behind a part that is not separable; put the noise last in parts")
        part, after = self.random, self._blurring()
        x = self._through(self.stages[: self.at], x0, t, None)
        if not after:
            return part.infer(x_t, x, t)
        one = part.draw(x[:1], PerImage(0, [0], x.device))
        assert one is not None  # it is random
        y = part(x, t, torch.zeros_like(one).expand(len(x), *one.shape[1:]))
        left = x_t - self._through(after, y, t, None)
        for inverse in reversed(self.undo):
            left = cast(SeparableLinear, inverse).linear(left, t)
        return part.infer(y + left, x, t)

    @staticmethod
    def _through(stages: Iterable[nn.Module], x: Images, t: Levels, eps: Eps | None) -> Images:
        for stage in stages:
            x = stage(x, t, eps)
        return x


@final
class _Table(SeparableLinear):
    """A table of its own, such as a product or a pseudo-inverse of others."""

    def __init__(self, table: Table, *, zero: float):
        super().__init__(table, zero=zero)


def _fused(parts: Iterable[Degradation]) -> list[Degradation]:
    stages: list[Degradation] = []
    for part in parts:
        last = stages[-1] if stages else None
        if isinstance(part, SeparableLinear) and isinstance(last, SeparableLinear):
            if part.table.shape != last.table.shape:
                sizes = [p.table.shape[-1] for p in (last, part)]
                raise UserError(f"parts of a composed degradation need the same image size, got {sizes}")
            zeros = {p.zero for p in (last, part) if not p.keeps_flat} or {last.zero}
            if len(zeros) > 1:
                raise UserError(f"parts of a composed degradation need one and the same zero, got {sorted(zeros)}")
            stages[-1] = _Table(part.table.double() @ last.table.double(), zero=zeros.pop())
        else:
            stages.append(part)
    return stages
