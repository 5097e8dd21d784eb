"""python benchmarks/bench_sample.py: samples a second of every sampler and number of steps."""

import statistics

import torch
from measure import arguments, interleaved, parse, report
from variants import SIZES, config, model

from vcd.quiet import quiet
from vcd.randomness import PerImage

SAMPLERS = {
    "vcd": ["model=vcd"],
    "vwd": ["model=vwd"],
    "vwd, vxt, half the levels": ["model=vwd", "prediction=vxt", "sampler.steps=3"],
    "vwd, one shot": ["model=vwd", "prediction=vxt", "sampler=one_shot"],
    "ddim, 10 steps": ["model=ddpm", "sampler=ddim", "sampler.steps=10"],
    "ddim, 50 steps": ["model=ddpm", "sampler=ddim", "sampler.steps=50"],
    "ancestral, 100 steps": ["model=ddpm", "sampler=ancestral", "sampler.steps=100"],
    "bansal, Algorithm 2": ["model=bansal"],
    "bansal, Algorithm 1": ["model=bansal", "sampler=naive"],
    "rissanen": ["model=rissanen"],
}


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=3)
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--batch", type=int, default=64)
    options = parse(parser)
    quiet()
    models = {
        name: model(config(*SIZES[options.size], *SAMPLERS[name]), options.device).eval() for name in options.samplers
    }
    calls = {
        name: lambda m=m: m.sample(PerImage(0, range(options.batch), m.device), keep=2) for name, m in models.items()
    }
    rows = []
    for name, taken in interleaved(calls, options.repeats, options.device).items():
        evaluations = len(models[name].sampler.grid(models[name].degradation.T)) - 1
        took = statistics.median(taken)
        found = {
            "sampler": name,
            "evaluations": evaluations,
            "samples/s": options.batch / took,
            "ms an evaluation": 1e3 * took / evaluations,
        }
        if options.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            calls[name]()
            found["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
        rows.append(found)
    report(f"Sampling {options.batch} images at size {options.size}", rows, options.out)


if __name__ == "__main__":
    main()
