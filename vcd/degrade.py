"""`python -m vcd.degrade degradation=X dataset=Y`: a picture of D(x0, t) for every t, and how severe each level is."""

import math
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vcd import style
from vcd.cli import entry

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import UInt8
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
    from vcd.randomness import PerImage

    out = check_writable(Path(str(cfg.out)).expanduser(), "out")
    degradation, space = instantiate(cfg.degradation), instantiate(cfg.space)
    data = instantiate(cfg.dataset.source)
    images = data.load("val")
    if len(images) < ROWS:
        images = data.load("train")
    some = torch.linspace(0, len(images) - 1, min(MEASURED, len(images))).long()  # from all over: files lie by class
    severity = measure(degradation, space.encode(images.batch(some)), PerImage(cfg.seed, range(len(some))))
    if not severity.kept[0].isfinite():
        raise UserError(f"dataset={data.name} has too few images: severity is measured on at least two different ones")

    T = degradation.T
    shown = torch.linspace(0, T, min(T + 1, COLUMNS)).round().long()
    x0 = space.encode(images.balanced(ROWS))
    eps = degradation.draw(x0, PerImage(cfg.seed, range(len(x0))))
    levels = torch.stack(
        [space.decode(degradation(x0, t.expand(len(x0)), eps)) for t in shown], 1
    )  # (rows, columns, ...)

    try:
        draw(levels, shown.tolist(), severity, out)
    except OSError as error:
        raise UserError(f"out={cfg.out}: the picture cannot be written there ({error.strerror})") from error

    print(f"{'t':>5} {'distance':>9} {'kept':>9}")
    for t in shown.tolist():
        print(f"{t:5d} {severity.distance[t]:9.4f} {severity.kept[t]:9.2g}")
    print("distance: E|x_t - x0|^2 / E|x0 - mean|^2; kept: std of x_t across images / std of x0")
    print(out.resolve())


@style.styled()
def draw(levels: "UInt8[Tensor, 'rows columns c h w']", shown: list[int], severity: "Severity", out: "Path") -> None:
    """Images above, one row each and a column per level of `shown`; below them both curves over all levels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from vcd.images import grid

    columns = len(shown)
    sheet = grid(levels.flatten(0, 1), columns)
    width = min(style.PAGE, 0.6 * columns)
    height = width * sheet.height / sheet.width
    figure = Figure(figsize=(style.PAGE, height + 3.4))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(height + 0.5, 2.9))[:, 0]
    pictures = above.subplots()
    pictures.imshow(sheet, interpolation="nearest")
    pitch = sheet.width / columns
    pictures.set_xticks([(i + 0.5) * pitch for i in range(columns)], [str(t) for t in shown])
    pictures.set(yticks=[], xlabel="level t: 0 clean, T fully degraded")
    style.bare(pictures)

    distance, kept = below.subplots(1, 2)
    t = range(len(severity.distance))
    look = {"ls": "-", "marker": "o" if len(t) <= 40 else None}
    distance.plot(t, severity.distance, color=style.COLOURS[1], **look)
    distance.axhline(1, color=style.TEXT, linewidth=0.8, linestyle=":")
    distance.set(ylim=(0, None))
    style.title(distance, "E|x_t - x0|² / E|x0 - mean|²", "Distance to the clean image")
    above_zero = severity.kept > 0  # the rest has no place on a logarithmic axis
    kept.plot(t, severity.kept.where(above_zero, math.nan), color=style.COLOURS[0], **look)
    style.title(kept, "std of x_t across images / std of x0", "What tells images apart")
    kept.set(ylim=(min(0.1, 10 ** math.floor(math.log10(severity.kept[above_zero].min()))), 1.3))
    style.logarithmic(kept)
    distance.set(xlabel="level t")
    kept.set(xlabel="level t" if above_zero.all() else "level t (0 where the curve has ended)")
    for axes in (distance, kept):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    style.save(figure, out)


if __name__ == "__main__":
    main()
