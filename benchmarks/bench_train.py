"""python benchmarks/bench_train.py: images a second of a whole training step, and where its time goes.

The step is Lightning's, with every callback of a run but pictures and checkpoints, on images of noise.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytorch_lightning as L
import torch
from hydra.utils import instantiate
from measure import arguments, parse, report
from omegaconf import DictConfig
from pytorch_lightning.profilers import SimpleProfiler
from variants import SIZES, config, data, model

from vcd.callbacks.ema import EMA
from vcd.models.base import Diffusion
from vcd.quiet import quiet

MODELS = {
    "vcd": ["model=vcd"],
    "vcd as published": [
        "model=vcd",
        "perturbation=rollout_published",
        "perturbation.p_warmup=0.125",
        "injection=emb_concat",
        "prediction=vxt",
    ],
    "vcd self-conditioned": ["model=vcd", "network.unet.self_conditioning=true"],
    "vwd": ["model=vwd"],
    "vwd self-conditioned": ["model=vwd", "network.unet.self_conditioning=true"],
    "ddpm": ["model=ddpm"],
    "bansal": ["model=bansal"],
    "rissanen": ["model=rissanen"],
}
PARTS = {  # what of a step -> the profiler's names
    "data": ["train_dataloader_next"],
    "degradation": ["on_after_batch_transfer"],
    "rollout": ["rollout"],
    "forward": ["training_step"],
    "backward": [".backward"],
    "optimiser": ["optimizer_step"],
    "EMA": ["EMA.on_train_batch_end", "EMA{}.on_train_batch_end"],
}


class Parts(SimpleProfiler):
    """Lightning's profiler, without its table."""

    def summary(self) -> str:
        return ""


class Clock(L.Callback):
    """Seconds from the end of one step to the end of the next, by a clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.ends = now, []

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(self.now())


@dataclass
class Subject:
    """A model in training."""

    cfg: DictConfig
    model: Diffusion
    steps: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)

    def train(self, steps: int, device: str, now: Callable[[], float] = time.perf_counter) -> None:
        """`steps` steps more; the first, which makes buffers and kernels, is not counted."""
        profiler, clock = Parts(), Clock(now)
        shown = self.model.shown

        def rollout(batch):
            with profiler.profile("rollout"):
                return shown(batch)

        self.model.shown = rollout
        trainer = instantiate(self.cfg.trainer, _partial_=True)(
            max_steps=steps + 1, accelerator=device, callbacks=[EMA(decay=self.cfg.ema_decay), clock], logger=False, profiler=profiler,
            limit_val_batches=0, enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(self.model, data(self.cfg, self.model, steps + 1))
        del self.model.shown
        taken = profiler.recorded_durations
        self.steps += [end - began for began, end in pairwise(clock.ends)]
        for part, names in PARTS.items():
            found = [times for name, times in taken.items() if any(name.endswith(n) for n in names)]
            self.parts.setdefault(part, []).extend(max(found, key=sum)[1:] if found else [])


def row(name: str, size: str, subject: Subject) -> dict:
    """Medians; shares are of the median step. What a part holds of another is taken out of it."""
    median = {part: statistics.median(times) if times else 0.0 for part, times in subject.parts.items()}
    median["forward"] -= median["rollout"]
    median["optimiser"] -= median["forward"] + median["rollout"] + median["backward"]
    step = statistics.median(subject.steps)
    shares = {part: f"{100 * took / step:.1f} %" for part, took in median.items()}
    shares["rest"] = f"{100 * (1 - sum(median.values()) / step):.1f} %"
    weights = sum(p.numel() for p in subject.model.parameters())
    return {"size": size, "model": name, "parameters": f"{weights / 1e6:.2f} M", "ms a step": 1e3 * step,
            "images/s": subject.cfg.batch_size / step, **shares}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=2)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mnist", "cifar10"], choices=SIZES)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--steps", type=int, default=3, help="a round")
    parser.add_argument("overrides", nargs="*", help="of vcd.train, for all")
    options = parse(parser)
    quiet()
    L.seed_everything(0, verbose=False)
    rows = []
    for size in options.sizes:
        subjects = {}
        for name in options.models:
            cfg = config(*SIZES[size], *MODELS[name], *options.overrides)
            subjects[name] = Subject(cfg, model(cfg, options.device))
        for _ in range(options.repeats):
            for subject in subjects.values():
                subject.train(options.steps, "gpu" if options.device.startswith("cuda") else "cpu")
        rows += [row(name, size, subject) for name, subject in subjects.items()]
    report("A training step", rows, options.out)


if __name__ == "__main__":
    main()
