"""python benchmarks/bench_degrade.py: milliseconds to degrade a batch, for every degradation and size.

The share is that of a VWD's training step at the published size of this image, where there is one; a step degrades twice.
"""

import statistics
from collections.abc import Callable

import torch
from bench_train import Subject
from hydra.utils import instantiate
from measure import arguments, interleaved, parse, report
from variants import SIZES, config, model

from vcd.cli import CONF
from vcd.quiet import quiet

PUBLISHED = {28: "mnist", 32: "cifar10", 64: "afhq"}


def degrading(name: str, size: int, channels: int, batch: int, device: str) -> Callable[[], torch.Tensor]:
    """A call that degrades a batch of noise, every image at its own level."""
    cfg = config("dataset=mnist", f"dataset.size={size}", f"dataset.channels={channels}", f"degradation={name}")
    D = instantiate(cfg.degradation).to(device)
    x0 = torch.rand(batch, channels, size, size, device=device) * 2 - 1
    t, eps = torch.randint(1, D.T + 1, (batch,), device=device), D.draw(x0)
    return lambda: D(x0, t, eps)


def step(size: str, device: str) -> float:
    """Milliseconds of a training step of VWD."""
    cfg = config(*SIZES[size], "model=vwd")
    subject = Subject(cfg, model(cfg, device))
    subject.train(2, "gpu" if device.startswith("cuda") else "cpu")
    return 1e3 * statistics.median(subject.steps)


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=20)
    parser.add_argument("--sizes", nargs="+", type=int, default=[28, 32, 64, 128, 256])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--steps",
        nargs="*",
        type=int,
        default=[28, 32],
        choices=PUBLISHED,
        help="sizes whose training step is measured too",
    )
    options = parse(parser)
    quiet()
    names = sorted(path.stem for path in (CONF / "degradation").glob("*.yaml"))
    rows: dict[str, dict] = {name: {"degradation": name} for name in names}
    for size in options.sizes:
        channels = 1 if size == 28 else 3
        able = [name for name in names if channels == 3 or not name.startswith("decolour")]
        calls = {name: degrading(name, size, channels, options.batch, options.device) for name in able}
        whole = step(PUBLISHED[size], options.device) if size in options.steps else None
        for name, taken in interleaved(calls, options.repeats, options.device).items():
            took = 1e3 * statistics.median(taken)
            rows[name][f"{channels}x{size}x{size} ms"] = took
            if whole:
                rows[name][f"share at {size}"] = f"{100 * 2 * took / whole:.2f} %"
    report(f"Degrading {options.batch} images", list(rows.values()), options.out)


if __name__ == "__main__":
    main()
