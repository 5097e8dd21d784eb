"""python benchmarks/bench_frontier.py: which network is nearest to the data after the same seconds of training.

VWD, for sizes and shapes of the network: the Fréchet distance to held-out images, in the features of the set's own
classifier, against seconds of training and against seconds for 1,000 samples. On the frontier is what no other is both
cheaper and nearer than. Stopped, the same command goes on where it was.
"""

import os
import statistics
from pathlib import Path
from typing import Any

from gpu_quality import folder
from measure import arguments, parse, save, show
from quality import Plan, frontier

from vcd import style
from vcd.quiet import quiet

SHAPES = {  # name -> overrides of network=small: dim 16, mults 1 2 4, attention at the coarsest, one block, patch 1
    "small": [],
    "small, patch 2": ["network.unet.patch=2"],
    "narrow and wide": ["network.unet.dim=8", "network.unet.mults=[1,4,8]"],
    "patch 2, dim 32": ["network.unet.patch=2", "network.unet.dim=32"],
    "patch 2, two levels": ["network.unet.patch=2", "network.unet.dim=32", "network.unet.mults=[1,2]", "network.unet.attention=[1]"],
    "patch 2, two blocks": ["network.unet.patch=2", "network.unet.blocks=2"],
    "patch 2, no attention": ["network.unet.patch=2", "network.unet.attention=[]"],
    "patch 4": ["network.unet.patch=4", "network.unet.dim=64", "network.unet.mults=[1]", "network.unet.attention=[0]"],
    "tiny": ["network=tiny"],
}  # fmt: skip
DEFAULT = ["small", "small, patch 2", "narrow and wide", "patch 2, two levels"]
QUICK = [
    "prior.images=1000",
    "prior.components=10",
    "scheduler.warmup=30",
]  # a full fit takes longer than the training here


def sets(data: Path) -> dict[str, list[str]]:
    return {"mnist": ["dataset=mnist"], "colour": folder(data, "colour32", 32, 6), "digits": ["dataset=digits"]}


def ends(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Shape -> (seconds for 1,000 samples, distance of the last checkpoint), the mean over seeds."""
    last = {(row["shape"], row["seed"]): row for row in rows}.values()
    of = {row["shape"]: [r for r in last if r["shape"] == row["shape"]] for row in last}
    return {
        shape: (found[0]["s per 1,000"], statistics.mean(row["fcd of held-out images"] for row in found))
        for shape, found in of.items()
    }


@style.styled()
def draw(tables: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    """A row for every data set: distance against seconds of training, and, at the end, against seconds for samples."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(style.PAGE, 2.9 * len(tables)))
    grid = figure.subplots(len(tables), 2, squeeze=False)
    names = list(dict.fromkeys(row["shape"] for rows in tables.values() for row in rows))
    for (trained, sampled), (which, rows) in zip(grid, tables.items(), strict=True):
        found = ends(rows)
        for i, name in enumerate(names):
            if name not in found:
                continue
            colour, dashes = style.line(i)
            for k, seed in enumerate(dict.fromkeys(row["seed"] for row in rows)):
                ours = [row for row in rows if (row["shape"], row["seed"]) == (name, seed)]
                trained.plot([row["seconds"] for row in ours], [row["fcd of held-out images"] for row in ours], color=colour,
                             ls=dashes, marker="o", lw=1.6 - k, label=name if k == 0 else None)  # fmt: skip
            sampled.plot(*found[name], color=colour, marker="o" if i < len(style.COLOURS) else "s", ls="")
        best = [found[name] for name in frontier(found)]
        sampled.plot(*zip(*best, strict=True), color="#888888", lw=1,
                     marker="o", ms=9, mfc="none", drawstyle="steps-post", label="frontier")  # fmt: skip
        trained.set(xlabel="seconds of training", xlim=(0, 1.1 * max(row["seconds"] for row in rows)))
        sampled.set(xlabel="seconds for 1,000 samples")
        for axis in (trained, sampled):
            style.logarithmic(axis)
            style.title(axis, "Fréchet distance", which)
    style.legend(figure, list(grid.flat))
    style.save(figure, picture)


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=3)
    parser.add_argument("--sets", nargs="+", default=["mnist"], choices=["mnist", "colour", "digits"])
    parser.add_argument("--shapes", nargs="+", default=DEFAULT, choices=SHAPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of training; samples are those of seed 0")
    parser.add_argument("--budget", type=float, default=240, help="seconds of training, of each")
    parser.add_argument("--points", type=int, default=1, help="checkpoints that are evaluated")
    parser.add_argument("--n", type=int, default=1000, help="samples")
    parser.add_argument("--data", type=Path, default=os.environ.get("VCD_DATA", "~/.cache/vcd"),
                        help="the folder of data sets; for colour with the zip that gpu_quality.py makes")  # fmt: skip
    parser.add_argument("--work", type=Path, default=Path("runs/frontier"), help="where runs are kept")
    parser.add_argument("--evaluate", nargs="+", default=[], help="overrides of vcd.evaluate, for all")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("overrides", nargs="*", help="of vcd.train, for all")
    options = parse(parser)
    quiet()
    data = options.data.expanduser().resolve()
    tables: dict[str, list[dict[str, Any]]] = {}
    for which in options.sets:
        common = [
            *sets(data)[which],
            "network=small",
            "model=vwd",
            "degradation=black_blur",
            *QUICK,
            *options.overrides,
        ]
        rows = []
        for seed in options.seeds:
            plan = Plan(out=options.work.resolve() / which, data=data, variants={n: SHAPES[n] for n in options.shapes},
                        common=[*common, f"seed={seed}"], evaluate=["batch_size=100", *options.evaluate], seconds=options.budget,
                        points=options.points, n=options.n, device=options.device)  # fmt: skip
            rows += [
                {"set": which, "shape": row.pop("variant"), "seed": seed, **row} for row in plan.run(options.repeats)
            ]
        tables[which] = rows
        steps = {row["shape"]: row["steps"] for row in rows}
        best = frontier(ends(rows))
        for row in tables[which]:
            row["frontier"] = "yes" if row["shape"] in best and row["steps"] == steps[row["shape"]] else ""
        show(f"{which}, {options.budget:g} s of training", tables[which])
    save("Frontier", [row for rows in tables.values() for row in rows], options.out)
    if options.plot:
        draw(tables, options.plot)


if __name__ == "__main__":
    main()
