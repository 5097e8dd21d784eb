"""What is measured level by level: means of named terms, and which latent units are in use."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from vcd.levels import Levels


def _index(t: Levels) -> Int[Tensor, " b"]:
    """t - 1; a real t counts to the next whole level."""
    return t.ceil().long() - 1


class PerLevel(Metric):
    """Means of named terms over all levels and at every level; above 32 levels, in 16 equal groups of levels.

    `compute` gives {"kl_bits": mean, "kl_bits/t01": mean at level 1, ...}; levels that were not seen are left out.
    """

    full_state_update = False
    count: Tensor

    def __init__(self, *, T: int):
        super().__init__()
        self.T, self.groups = T, T if T <= 32 else 16
        self.terms: list[str] = []
        self.add_state("count", torch.zeros(self.groups, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, terms: dict[str, Float[Tensor, " b"]], t: Levels) -> None:
        group = _index(t) * self.groups // self.T
        self.count.index_add_(0, group, torch.ones_like(group, dtype=torch.float64))
        for name, values in terms.items():
            if name not in self.terms:
                self.terms.append(name)
                self.add_state(name, torch.zeros_like(self.count), dist_reduce_fx="sum")
            getattr(self, name).index_add_(0, group, values.detach().double())

    def pack(self) -> dict[str, Tensor]:
        """What has been gathered so far, by all processes, for a checkpoint; all of them have to call it."""
        with self.sync_context():
            return {name: getattr(self, name).cpu() for name in ("count", *self.terms)}

    def unpack(self, packed: dict[str, Tensor]) -> None:
        """Go on from what was packed."""
        for name, values in packed.items():
            if name != "count" and name not in self.terms:
                self.terms.append(name)
                self.add_state(name, torch.zeros_like(self.count), dist_reduce_fx="sum")
            getattr(self, name).copy_(values)
        self._update_count = 1  # torchmetrics: there has been an update

    def compute(self) -> dict[str, Tensor]:
        means = {}
        for name in self.terms:
            sums = getattr(self, name)
            seen = self.count > 0
            means[name] = (sums[seen] / self.count[seen]).mean().float()
            for g in range(self.groups):
                if seen[g]:
                    means[f"{name}/{self.label(g)}"] = (sums[g] / self.count[g]).float()
        return means

    def label(self, group: int) -> str:
        """The name of a level, or of a group of levels: t03, t013-024."""
        first, last = -(-group * self.T // self.groups) + 1, -(-(group + 1) * self.T // self.groups)
        width = len(str(self.T)) if self.T > 9 else 2
        return f"t{first:0{width}}" if first == last else f"t{first:0{width}}-{last:0{width}}"


class ActiveUnits(Metric):
    """Latent units whose posterior mean varies over images, Var_x E[z|x] > 0.01, in some level (Burda et al. 2015)."""

    full_state_update = False
    threshold = 0.01
    sum: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, *, T: int, latent: int):
        super().__init__()
        for name in ("sum", "square"):
            self.add_state(name, torch.zeros(T, latent, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(T, 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean: Float[Tensor, "b d"], t: Levels) -> None:
        mean, index = mean.detach().double(), _index(t)
        self.sum.index_add_(0, index, mean)
        self.square.index_add_(0, index, mean**2)
        self.count.index_add_(0, index, torch.ones(len(t), 1, dtype=torch.float64, device=mean.device))

    def compute(self) -> Int[Tensor, " T"]:
        """The number of active units at every level."""
        n = self.count.clamp(min=1)
        return ((self.square / n - (self.sum / n) ** 2) > self.threshold).sum(1)
