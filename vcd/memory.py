"""How much memory training will take: counted, on any device, from what autograd keeps of two small batches."""

import logging
import os
from dataclasses import dataclass

import pytorch_lightning as L
import torch
from torch import Tensor

from vcd.batch import Degraded
from vcd.models.base import Diffusion

log = logging.getLogger("vcd")
COPIES = 5  # of every weight: itself, its gradient, Adam's two moments, the average
BACKWARD = 1.3  # gradients of skips that wait for their turn, and scratch, beside what is kept: benchmarks/RESULTS.md


@dataclass
class Estimate:
    """Bytes at the peak of a training step: `fixed` for any batch, and `an_image` for each image."""

    fixed: int
    an_image: int

    def total(self, batch_size: int) -> int:
        return self.fixed + batch_size * self.an_image

    def largest(self, available: int) -> int:
        """The largest batch that fits into `available` bytes, a tenth left free; 0: none does."""
        return max(0, int((0.9 * available - self.fixed) // self.an_image))


class Forecast(L.Callback):
    """A line that says, before training, what memory a step takes and the largest batch that fits."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        assert isinstance(pl_module, Diffusion)
        data = trainer.datamodule  # type: ignore[attr-defined]
        size, free = data.batch_size // trainer.world_size, available(trainer.strategy.root_device)
        with torch.random.fork_rng(), torch.autocast("cpu", torch.bfloat16, enabled=trainer.precision == "bf16-mixed"):
            found = estimate(pl_module, data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0))
        log.info("memory: about %.2f GiB for a step of %d images, %.1f GiB are free: batch_size=%d fits",
                 found.total(size) / 2**30, size, free / 2**30, found.largest(free))  # fmt: skip


def estimate(model: Diffusion, batch: Degraded) -> Estimate:
    """From the first one and first two images of `batch`, on the device of the model; nothing of the model is changed."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    one, two = (_kept(model, batch, n) for n in (1, 2))
    return Estimate(COPIES * weights, max(1, round(BACKWARD * (two - one))))


def _kept(model: Diffusion, batch: Degraded, n: int) -> int:
    """Bytes that autograd keeps for the backward pass of n images, each storage once, weights left out."""
    part = batch.take(slice(n))
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # the tensors themselves: a storage that is freed could be taken for another

    def pack(tensor: Tensor) -> Tensor:
        if (at := tensor.untyped_storage().data_ptr()) not in own:
            kept[at] = tensor
        return tensor

    training, before = model.training, [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train().losses(model.told(part))
    model.train(training)
    for buffer, value in before:  # running means, such as those of a calibrated beta
        buffer.copy_(value)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def available(device: torch.device) -> int:
    """Bytes that are free on the device now; where the system does not tell, all of its memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not os.path.exists("/proc/meminfo"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with open("/proc/meminfo") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
