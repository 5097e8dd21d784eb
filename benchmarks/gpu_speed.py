"""python benchmarks/gpu_speed.py --table train: a step, or a sampling pass, of every model in every mode.

A step is forwards, backwards and Adam, on images that lie on the device. TFLOP/s are counted operations of convolutions
and products over time, the ceiling a product of large bf16 matrices; counted MiB is what `trainer.estimate_memory` says.
Tables: train, sample, compiled (both, for VWD), profile (where the time of a step goes), auto (what trainer=auto chooses,
against what was fastest in train.json and compiled.json beside --out).
"""

import gc
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_train import MODELS
from kept import Kept
from measure import arguments, parse, seconds
from torch.utils.flop_counter import FlopCounterMode
from variants import SIZES, config, data, model

from vcd import hardware, memory
from vcd.callbacks.compiled import compile_in_place
from vcd.models.base import Diffusion
from vcd.networks.blocks import Entry
from vcd.quiet import quiet
from vcd.randomness import PerImage

ALL = {**MODELS, "vdm": ["model=vdm"]}
SAMPLED = {  # ten evaluations of each network are enough to know what one takes
    "vwd": ["model=vwd"],
    **{name: [f"model={name}", "sampler.steps=10"] for name in ("ddpm", "bansal", "vdm")},
}


class LastEntry(Entry):
    """Feature maps are channels-last from here on."""

    def forward(self, x):
        return super().forward(x).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Mode:
    """How a network is run; `change` is what makes it so in training."""

    change: str
    bf16: bool = False
    tf32: bool = False
    channels_last: bool = False
    backend: str | None = None

    def apply(self, of: Diffusion) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        for module in of.modules():
            if self.channels_last and type(module) is Entry:
                module.__class__ = LastEntry

    def compile(self, of: Diffusion, quick: bool) -> None:
        if self.backend:
            compile_in_place(of, "eager" if quick else self.backend)

    def autocast(self, device: str) -> AbstractContextManager:
        return torch.autocast(device.partition(":")[0], torch.bfloat16) if self.bf16 else nullcontext()


LAST = "Entry in vcd/networks/blocks.py makes feature maps channels-last on a GPU too"
MODES = {
    "fp32": Mode("trainer.precision=32-true"),
    "tf32": Mode("torch.backends.cuda.matmul.allow_tf32", tf32=True),
    "bf16": Mode("trainer.precision=bf16-mixed", bf16=True, tf32=True),
    "bf16, channels-last": Mode(f"trainer.precision=bf16-mixed; {LAST}", bf16=True, tf32=True, channels_last=True),
    "bf16, compiled": Mode("trainer.precision=bf16-mixed trainer.compile=true", bf16=True, tf32=True, backend="inductor"),
    "bf16, channels-last, compiled": Mode(f"trainer.precision=bf16-mixed trainer.compile=true; {LAST}", bf16=True, tf32=True,
                                          channels_last=True, backend="inductor"),
    "bf16, CUDA graphs": Mode("trainer.precision=bf16-mixed trainer.compile=cudagraphs", bf16=True, tf32=True, backend="cudagraphs"),
}  # fmt: skip
EAGER = [name for name, mode in MODES.items() if mode.backend is None]
COMPILED = [name for name, mode in MODES.items() if mode.backend]


def built(overrides: list[str], device: str) -> tuple[Any, Diffusion]:
    """A fresh model, and as much memory as there was before the last one."""
    gc.collect()
    torch._dynamo.reset()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    cfg = config(*overrides)
    return cfg, model(cfg, device)


def batch_of(cfg: Any, of: Diffusion) -> Any:
    module = data(cfg, of, 1)
    batch = module.transfer_batch_to_device(next(iter(module.train_dataloader())), of.device, 0)
    return module.on_after_batch_transfer(batch, 0)


def timed(call: Callable[[], Any], device: str, repeats: int, each: int = 5) -> dict[str, float]:
    """Seconds of the first call, which compiles, and the median of `repeats` rounds of `each`, in ms."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    first = seconds(call, device)
    call()
    rounds = [seconds(lambda: [call() for _ in range(each)], device) / each for _ in range(repeats)]
    return {"first s": first, "ms": 1e3 * statistics.median(rounds)}


def ceiling(device: str) -> float:
    """TFLOP/s of a product of bf16 matrices."""
    n = 8192 if device.startswith("cuda") else 256
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    return 2 * n**3 / (1e9 * timed(lambda: a @ b, device, 5)["ms"])


def worked(call: Callable[[], Any]) -> float:
    """Counted operations of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def rates(took: dict[str, float], images: int, flops: float, best: float, device: str) -> dict[str, Any]:
    rate = flops / (1e9 * took["ms"])
    found = took | {
        "images/s": 1e3 * images / took["ms"],
        "TFLOP/s": rate,
        "share of the ceiling": f"{100 * rate / best:.1f} %",
    }
    if device.startswith("cuda"):
        found["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def stepping(cfg: Any, of: Diffusion, mode: Mode, device: str) -> Callable[[], None]:
    """A call that takes a step of training."""
    batch = batch_of(cfg, of)
    (optimizer,), _ = of.train().configure_optimizers()

    def step() -> None:
        with mode.autocast(device):
            total = of.losses(batch).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def train(size: str, name: str, mode: Mode, batch: int | None, best: float, options: Any) -> dict[str, Any]:
    cfg, of = built([*SIZES[size], *ALL[name], *([f"batch_size={batch}"] if batch else [])], options.device)
    mode.apply(of)
    with mode.autocast(options.device):
        counted = memory.estimate(of, batch_of(cfg, of)).total(cfg.batch_size) / 2**20
    flops = worked(stepping(cfg, of, mode, options.device))
    mode.compile(of, options.quick)
    took = timed(stepping(cfg, of, mode, options.device), options.device, options.repeats)
    return rates(took, cfg.batch_size, flops, best, options.device) | {"counted MiB": counted}


def sample(size: str, name: str, mode: Mode, batch: int, best: float, options: Any) -> dict[str, Any]:
    _, of = built([*SIZES[size], *SAMPLED[name]], options.device)
    mode.apply(of.eval())

    def call() -> None:
        with mode.autocast(options.device):
            of.sample(PerImage(0, range(batch), of.device), keep=2)

    flops = worked(call)
    mode.compile(of, options.quick)
    took = timed(call, options.device, 2, each=1)
    evaluations = len(of.sampler.grid(of.degradation.T)) - 1
    found = rates(took, batch, flops, best, options.device)
    return {"evaluations": evaluations, "ms an evaluation": took["ms"] / evaluations, **found}


def profile(size: str, name: str, mode: Mode, options: Any) -> list[dict[str, Any]]:
    """The kernels (on a CPU the operations) that take most of a step's time on the device, and how busy it is."""
    cfg, of = built([*SIZES[size], *ALL[name]], options.device)
    mode.apply(of)
    step, gpu = stepping(cfg, of, mode, options.device), options.device.startswith("cuda")
    timed(step, options.device, 1)
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=kinds) as seen:
        took = seconds(lambda: [step() for _ in range(3)], options.device)
    by = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = [event for event in seen.key_averages() if not gpu or event.device_type == torch.autograd.DeviceType.CUDA]
    found = sorted(events, key=lambda event: -getattr(event, by))
    whole = sum(getattr(event, by) for event in found)
    rows = [{"where": event.key[:60], "share": f"{100 * getattr(event, by) / whole:.1f} %", "calls a step": event.count / 3}
            for event in found[:15]]  # fmt: skip
    return [{"where": "the device is busy", "share": f"{100 * whole / 1e6 / took:.0f} %"}, *rows]


def advice(rows: list[dict[str, Any]], auto: str) -> list[dict[str, Any]]:
    """For every size: what trainer=auto does, the fastest mode of VWD at the same batch, and what would make it the choice."""
    found = []
    for size in dict.fromkeys(row["size"] for row in rows):
        ours = {row["mode"]: row["images/s"] for row in rows if row["size"] == size and row["model"] == "vwd" and "images/s" in row
                and row["what"] == "train" and row["batch"] is None}  # fmt: skip
        if auto not in ours:
            continue
        best = max(ours, key=ours.__getitem__)
        gain = ours[best] / ours[auto]
        found.append({"size": size, "trainer=auto": auto, "fastest": best, "times": gain,
                      "change": "none" if gain < 1.05 else MODES[best].change})  # fmt: skip
    return found


def wanted(options: Any) -> Iterator[tuple[dict[str, Any], Callable[[float], dict[str, Any]]]]:
    """(what is measured, the call that measures it), the most telling first."""
    jobs: list[tuple[str, str, str, str, int | None]] = []
    for size in options.sizes:
        if options.table == "compiled":
            jobs += [
                (what, size, "vwd", mode, batch)
                for mode in (COMPILED[:1] if options.quick else COMPILED)
                for what, batch in (("train", None), ("sample", options.batch))
            ]
        elif options.table == "train":
            jobs += [("train", size, name, mode, None) for name in options.models for mode in EAGER]
            jobs += [("train", size, "vwd", "bf16", batch) for batch in options.batches]
        elif options.table == "sample":
            jobs += [
                ("sample", size, name, mode, options.batch)
                for name in SAMPLED
                if name in options.models
                for mode in EAGER
            ]
    for what, size, name, mode, batch in jobs:
        key = {"what": what, "size": size, "model": name, "mode": mode, "batch": batch}
        yield key, lambda best, w=what, s=size, n=name, m=MODES[mode], b=batch: globals()[w](s, n, m, b, best, options)


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=5)
    parser.add_argument("--table", default="train", choices=["train", "sample", "compiled", "profile", "auto"])
    parser.add_argument("--sizes", nargs="+", default=["mnist", "cifar10", "afhq"], choices=SIZES)
    parser.add_argument("--models", nargs="+", default=list(ALL), choices=ALL)
    parser.add_argument("--batches", nargs="*", type=int, default=[256, 1024], help="more batches of VWD in bf16")
    parser.add_argument("--batch", type=int, default=256, help="of samples")
    parser.add_argument("--quick", action="store_true", help="compile without a compiler, to rehearse")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.set_defaults(out=Path("speed.json"))
    options = parse(parser)
    quiet()
    kept = Kept(f"{options.table} on {options.device}", options.out, seconds=options.seconds)
    if options.table == "auto":
        tables = [options.out.with_name(f"{name}.json") for name in ("train", "compiled")]
        rows = [
            row for path in tables if path.exists() for row in json.loads(path.read_text())["rows"] if "size" in row
        ]
        chosen, why = hardware.precision(torch.device(options.device), width=64, size=28)
        print(f"trainer=auto: {chosen} ({why})")
        kept.table["rows"] = advice(rows, "bf16" if chosen == "bf16-mixed" else "fp32")
    elif options.table == "profile":
        kept.table["rows"] = [
            {"size": s, **row} for s in options.sizes for row in profile(s, "vwd", MODES["bf16"], options)
        ]
    else:
        best = ceiling(options.device)
        kept.measure({"what": "ceiling"}, lambda: {"TFLOP/s": best})
        for key, call in wanted(options):
            kept.measure(key, lambda call=call: call(best))
    kept.finish()


if __name__ == "__main__":
    main()
