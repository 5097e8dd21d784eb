"""python benchmarks/bench_network.py: what each way in which the network saves time brings, and what compiling brings.

A step is VWD's, forwards and backwards. The first row has none of them: nearest neighbours and then a convolution,
nn.Dropout, contiguous feature maps; "times" is against it. compiled: what the first step takes is in the column first s.
"""

import statistics
import time

import torch.nn.functional as F
from measure import arguments, interleaved, parse, ratio, report
from torch import nn
from variants import SIZES, config, data, model

from vcd.callbacks.compiled import compile_in_place
from vcd.networks.blocks import Dropout, Entry, Up
from vcd.quiet import quiet


class PlainUp(Up):
    """What Up's docstring says, in this order."""

    def forward(self, x, size):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, : size[0], : size[1]])


PLAIN = {Up: PlainUp, Dropout: nn.Dropout, Entry: nn.Conv2d}
VARIANTS: dict[str, tuple[type[nn.Module], ...]] = {  # name -> the layers that are made plain
    "plain": (Up, Dropout, Entry),
    "transposed convolution": (Dropout, Entry),
    "16 bits of dropout too": (Entry,),
    "channels-last too": (),
    "compiled": (),
}


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=8)
    parser.add_argument("--sizes", nargs="+", default=["mnist", "cifar10"], choices=SIZES)
    parser.add_argument("--variants", nargs="+", default=[v for v in VARIANTS if v != "compiled"], choices=VARIANTS)
    parser.add_argument("--batch", type=int, default=64)
    options = parse(parser)
    quiet()
    rows = []
    for size in options.sizes:
        cfg = config(*SIZES[size], "model=vwd", f"batch_size={options.batch}")
        calls, first = {}, {}
        for name in options.variants:
            of = model(cfg, options.device).train()
            for module in of.modules():
                if type(module) in VARIANTS[name]:
                    module.__class__ = PLAIN[type(module)]
            if name == "compiled":
                compile_in_place(of)
            images = data(cfg, of, 1)
            batch = images.transfer_batch_to_device(next(iter(images.train_dataloader())), of.device, 0)
            batch = images.on_after_batch_transfer(batch, 0)

            def step(of=of, batch=batch) -> None:
                of.zero_grad()
                of.losses(batch).total.backward()

            began = time.perf_counter()
            step()
            calls[name], first[name] = step, time.perf_counter() - began
        taken = interleaved(calls, options.repeats, options.device)
        plain = taken[options.variants[0]]
        rows += [{"size": size, "network": name, "first s": first[name], "ms": 1e3 * statistics.median(times), "times": ratio(plain, times)}
                 for name, times in taken.items()]  # fmt: skip
    report(f"A step of VWD, {options.batch} images", rows, options.out)


if __name__ == "__main__":
    main()
