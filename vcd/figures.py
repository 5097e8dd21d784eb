"""Pictures with words: sheets of images under column titles."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vcd.images import grid, to_uint8
from vcd.spectra import Bands


def sheet(
    path: Path,
    blocks: Sequence[tuple[str, Float[Tensor, "rows columns c h w"]]],
    titles: Sequence[str],
    rows: Sequence[str] = (),
) -> Path:
    """Blocks of images, one below the other, each with its name and those of its `rows` on the left, and a title over
    every column."""
    from matplotlib.figure import Figure

    sheets = [grid(_flat(images), columns=images.shape[1]) for _, images in blocks]
    width = max(1.3 + 0.62 * len(titles), 3)
    heights = [width * s.height / s.width for s in sheets]
    figure = Figure(figsize=(width + 0.3, sum(heights) + 0.35 * len(sheets)), layout="constrained")
    axes = figure.subplots(len(sheets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, picture, (name, images) in zip(axes, sheets, blocks, strict=True):
        axis.imshow(picture, interpolation="nearest")
        pitch = picture.width / len(titles)
        axis.set_xticks([(i + 0.5) * pitch for i in range(len(titles))], titles, fontsize=8)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        pitch = picture.height / images.shape[0]
        axis.set_yticks([(i + 0.5) * pitch for i in range(len(rows))], rows, fontsize=8)
        axis.set(ylabel=name)
        axis.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


def _flat(images: Float[Tensor, "rows columns c h w"]) -> UInt8[Tensor, "n c h w"]:
    return to_uint8(images).cpu().flatten(0, 1)


def bands(file: Path | BytesIO, blocks: Sequence[tuple[str, Bands]]) -> None:
    """What each step contributes, a row of three panels a model: spectra, KL in bits, and where exchanges change things."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6 * len(blocks)), layout="constrained")
    for row, (name, b) in zip(figure.subplots(len(blocks), 3, squeeze=False), blocks, strict=True):
        colours = matplotlib.colormaps["viridis"](torch.linspace(0, 0.92, len(b.levels)).numpy())
        f = range(b.power.shape[1])
        for t, power, colour in zip(b.levels, b.power, colours, strict=True):
            row[0].plot(f, power, color=colour, label=f"t={t}")
        row[0].set(yscale="log", xlabel="cycles an image", ylabel=f"{name}\npower of $x_{{t-1}} - x_t$", title="what a step adds")
        if len(b.levels) <= 12:
            row[0].legend(fontsize=7, ncols=2)
        at = range(len(b.levels))
        row[1].bar(at, b.kl_bits, color=colours)
        row[1].set(title="KL of a step", ylabel="bits", xlabel="level t")
        shown = row[2].imshow(b.share, aspect="auto", origin="upper", cmap="magma", vmin=0)
        row[2].plot(b.centroid, at, color="white", marker="o", markersize=4, label="mean frequency")
        row[2].set(title="energy changed by exchanging a step", xlabel="cycles an image", ylabel="level t")
        row[2].legend(fontsize=7)
        figure.colorbar(shown, ax=row[2], label="share")
        ticks = [int(i) for i in torch.linspace(0, len(b.levels) - 1, min(len(b.levels), 12)).round()]
        row[1].set_xticks(ticks, [b.levels[i] for i in ticks])
        row[2].set_yticks(ticks, [b.levels[i] for i in ticks])
    figure.savefig(file, format="png", dpi=110)
