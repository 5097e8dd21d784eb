"""Randomness that belongs to an image: image i of a seed is the same in any batch, on any number of devices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vcd.seeds import mix


class PerImage:
    """One generator an image, seeded by (seed, index) alone.

    Draws are made on the CPU and moved, so that they are the same on every device.
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.generators = [torch.Generator().manual_seed(mix(seed, i)) for i in indices]

    def take(self, rows: Sequence[int] | None = None) -> "PerImage":
        """These images' randomness (default: all) as it stands now, to be drawn from independently; rows may repeat."""
        other = PerImage.__new__(PerImage)
        other.device, other.generators = self.device, []
        for row in range(len(self)) if rows is None else rows:
            generator = torch.Generator()
            generator.set_state(self.generators[row].get_state())
            other.generators.append(generator)
        return other

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal (n, *shape)."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(self.device)

    def uniform(self) -> Tensor:
        """Uniform on [0, 1), (n,)."""
        return torch.cat([torch.rand(1, generator=g) for g in self.generators]).to(self.device)
