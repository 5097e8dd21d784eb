"""python benchmarks/bench_sample.py: samples a second of every sampler and number of steps.

--compiled: each also with a network compiled by torch.compile, in turns; "times" is how many times as fast that is, and
"first s" what its first pass takes. Kernels are kept where TORCHINDUCTOR_CACHE_DIR says: a second start is shorter.
"""

import statistics

import torch
from measure import arguments, interleaved, parse, ratio, report, seconds
from variants import SIZES, config, model

from vcd.callbacks.compiled import compile_in_place
from vcd.quiet import quiet
from vcd.randomness import PerImage

SAMPLERS = {
    "vcd": ["model=vcd"],
    "vwd": ["model=vwd"],
    "vwd, patch 2": ["model=vwd", "network.unet.patch=2"],
    "vwd, vxt, half the levels": ["model=vwd", "degradation=black_blur", "prediction=vxt", "sampler.steps=3"],
    "vwd, one shot": ["model=vwd", "degradation=black_blur", "prediction=vxt", "sampler=one_shot"],
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
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("overrides", nargs="*", help="of vcd.train, for all")
    options = parse(parser)
    quiet()
    ways = ("", ", compiled") if options.compiled else ("",)
    models = {
        name + way: model(config(*SIZES[options.size], *SAMPLERS[name], *options.overrides), options.device).eval()
        for name in options.samplers
        for way in ways
    }
    calls = {
        name: lambda m=m: m.sample(PerImage(0, range(options.batch), m.device), keep=2) for name, m in models.items()
    }
    first = {}
    for name, of in models.items():
        if name.endswith(", compiled"):
            compile_in_place(of)
            first[name] = seconds(calls[name], options.device)
    rows = []
    all_taken = interleaved(calls, options.repeats, options.device)
    for name, taken in all_taken.items():
        evaluations = len(models[name].sampler.grid(models[name].degradation.T)) - 1
        took = statistics.median(taken)
        found = {
            "sampler": name,
            "evaluations": evaluations,
            "samples/s": options.batch / took,
            "ms an evaluation": 1e3 * took / evaluations,
        }
        if name in first:
            found |= {"times": ratio(all_taken[name.removesuffix(", compiled")], taken), "first s": first[name]}
        if options.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            calls[name]()
            found["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
        rows.append(found)
    report(f"Sampling {options.batch} images at size {options.size}", rows, options.out)


if __name__ == "__main__":
    main()
