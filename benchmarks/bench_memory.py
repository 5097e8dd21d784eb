"""python benchmarks/bench_memory.py: the peak of training and of sampling, each in a process of its own.

Training is set against what vcd.memory counts beforehand; sampling shows that n does not matter, only the batch.
"""

import argparse
import json
import multiprocessing
import resource
from typing import Any

import torch
from bench_train import Subject
from measure import arguments, parse, report
from variants import SIZES, config, data, model

from vcd import memory
from vcd.metrics.samples import draw
from vcd.quiet import quiet


def peak() -> float:
    """MiB of resident memory, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def training(size: str, name: str, batch_size: int) -> dict[str, Any]:
    cfg = config(*SIZES[size], f"model={name}", f"batch_size={batch_size}")
    of = model(cfg)
    module = data(cfg, of, 1)
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    counted = memory.estimate(of, batch)
    before = peak()
    Subject(cfg, of).train(2, "cpu")
    weights = sum(p.numel() * p.element_size() for p in of.parameters()) / 2**20  # they were there before
    return {"what": f"training {name}, {size}, batch {batch_size}", "peak MiB": peak() - before + weights,
            "counted MiB": counted.total(batch_size) / 2**20}  # fmt: skip


def sampling(size: str, n: int, batch_size: int) -> dict[str, Any]:
    of = model(config(*SIZES[size], "model=vwd")).eval()
    before = peak()
    images, _ = draw(of, 0, range(n), batch_size, show=False)
    kept = images.numel() / 2**20
    return {"what": f"sampling vwd, {size}, n {n}, batch {batch_size}", "peak MiB": peak() - before, "images MiB": kept}


def alone(job: tuple[str, tuple]) -> dict[str, Any]:
    torch.set_num_threads(1)
    quiet()
    return {"training": training, "sampling": sampling}[job[0]](*job[1])


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__.partition("\n")[0], repeats=1)
    parser.add_argument("--sizes", nargs="*", default=["tiny", "mnist"], choices=SIZES)
    options = parse(parser)
    jobs: list[tuple[str, tuple]] = []
    for size in options.sizes:
        batches = (64, 256) if size == "tiny" else (16, 64)
        jobs += [("training", (size, name, batch)) for name in ("vwd", "ddpm") for batch in batches]
    jobs += [("sampling", ("tiny", n, 256)) for n in (256, 4096, 16384)]
    rows = []
    for job in jobs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak belongs to a process
            rows.append(json.loads(json.dumps(pool.apply(alone, (job,)))))
    report("Memory", rows, options.out)


if __name__ == "__main__":
    main()
