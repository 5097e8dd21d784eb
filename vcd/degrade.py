"""`python -m vcd.degrade degradation=X dataset=Y`: a picture of D(x0, t) for every t, and how severe each level is."""

import math
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vcd.cli import entry

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from matplotlib.figure import Figure
    from torch import Tensor

    from vcd.degradations.severity import Severity

ROWS, COLUMNS, MEASURED = 8, 12, 256  # images shown, levels shown at most, images measured at most


@entry("degrade")
def main(cfg: DictConfig) -> None:
    from pathlib import Path

    import torch
    from hydra.utils import instantiate

    from vcd.degradations.severity import measure
    from vcd.errors import UserError
    from vcd.files import check_writable
    from vcd.images import to_float, to_uint8
    from vcd.randomness import PerImage
    from vcd.schema import signatures

    out = check_writable(Path(str(cfg.out)).expanduser(), "out")
    signatures.check(cfg)
    degradation = instantiate(cfg.degradation)
    data = instantiate(cfg.dataset.source)
    images = data.load("val")
    if len(images) < ROWS:
        images = data.load("train")
    some = torch.linspace(0, len(images) - 1, min(MEASURED, len(images))).long()  # from all over: files lie by class
    severity = measure(degradation, to_float(images.batch(some)), PerImage(cfg.seed, range(len(some))))
    if not severity.kept[0].isfinite():
        raise UserError(f"dataset={data.name} has too few images: severity is measured on at least two different ones")

    T = degradation.T
    shown = torch.linspace(0, T, min(T + 1, COLUMNS)).round().long()
    x0 = to_float(images.balanced(ROWS))
    eps = degradation.draw(x0, PerImage(cfg.seed, range(len(x0))))
    levels = torch.stack([to_uint8(degradation(x0, t.expand(len(x0)), eps)) for t in shown], 1)  # (rows, columns, ...)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw(levels, shown.tolist(), severity).savefig(out, format="png", dpi=110)
    except OSError as error:
        raise UserError(f"out={cfg.out}: the picture cannot be written there ({error.strerror})") from error

    print(f"{'t':>5} {'distance':>9} {'kept':>9}")
    for t in shown.tolist():
        print(f"{t:5d} {severity.distance[t]:9.4f} {severity.kept[t]:9.2g}")
    print("distance: E|x_t - x0|^2 / E|x0 - mean|^2; kept: std of x_t across images / std of x0")
    print(out.resolve())


def draw(levels: "UInt8[Tensor, 'rows columns c h w']", shown: list[int], severity: "Severity") -> "Figure":
    """Images on the left, one row each and a column per level of `shown`; on the right both curves over all levels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullFormatter

    from vcd.images import grid

    columns = len(shown)
    sheet = grid(levels.flatten(0, 1), columns)
    width = 6.5 * sheet.width / sheet.height
    figure = Figure(figsize=(width + 5.2, 7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(width, 4.8))
    pictures = left.subplots()
    pictures.imshow(sheet, interpolation="nearest")
    pitch = sheet.width / columns
    pictures.set_xticks([(i + 0.5) * pitch for i in range(columns)], [str(t) for t in shown])
    pictures.set(yticks=[], xlabel="level t: 0 clean, T fully degraded")
    pictures.tick_params(length=0)
    pictures.spines[:].set_visible(False)

    distance, kept = right.subplots(2, sharex=True)
    t = range(len(severity.distance))
    marker = "o" if len(severity.distance) <= 40 else None
    distance.plot(t, severity.distance, marker=marker, color="tab:red")
    distance.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    distance.set(title="distance to the clean image", ylabel="E|x_t - x0|² / E|x0 - mean|²", ylim=(0, None))
    above_zero = severity.kept > 0  # the rest has no place on a log axis
    kept.plot(t, severity.kept.where(above_zero, math.nan), marker=marker, color="tab:blue")
    label = "level t" if above_zero.all() else "level t (0 where the curve has ended)"
    lowest = 10 ** math.floor(math.log10(severity.kept[above_zero].min()))
    kept.set(title="what tells images apart", ylabel="std of x_t across images / std of x0", xlabel=label)
    kept.set(yscale="log", ylim=(min(lowest, 0.1), 1.3))
    kept.yaxis.set_minor_formatter(NullFormatter())
    kept.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (distance, kept):
        axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
