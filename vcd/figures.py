"""Pictures with words: sheets of images under column titles."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vcd.images import grid, to_uint8
from vcd.spectra import Bands


class Block(NamedTuple):
    """A part of a sheet: its name, its images (rows, columns, c, h, w), and titles of its columns and rows, where they
    are not those of the sheet."""

    name: str
    images: Tensor
    titles: Sequence[str] | None = None
    rows: Sequence[str] | None = None


def sheet(path: Path, blocks: Sequence[tuple], titles: Sequence[str] = (), rows: Sequence[str] = ()) -> Path:
    """Blocks (or tuples like them), one below the other, each with its name and those of its rows on the left, and a
    title over every column."""
    from matplotlib.figure import Figure

    blocks = [Block(*block) for block in blocks]
    sheets = [grid(_flat(block.images), columns=block.images.shape[1]) for block in blocks]
    width = max(1.3 + 0.62 * max(block.images.shape[1] for block in blocks), 3)
    heights = [width * s.height / max(s.width for s in sheets) for s in sheets]
    figure = Figure(figsize=(width + 0.3, sum(heights) + 0.35 * len(sheets)), layout="constrained")
    axes = figure.subplots(len(sheets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, picture, block in zip(axes, sheets, blocks, strict=True):
        axis.imshow(picture, interpolation="nearest")
        over = titles if block.titles is None else block.titles
        pitch = picture.width / block.images.shape[1]
        axis.set_xticks([(i + 0.5) * pitch for i in range(len(over))], over, fontsize=8)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        beside = rows if block.rows is None else block.rows
        pitch = picture.height / block.images.shape[0]
        axis.set_yticks([(i + 0.5) * pitch for i in range(len(beside))], beside, fontsize=8)
        axis.set(ylabel=block.name)
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
            row[0].plot(f, power.numpy(), color=colour, label=f"t={t}")
        row[0].set(
            yscale="log",
            xlabel="cycles an image",
            ylabel=f"{name}\npower of $x_{{t-1}} - x_t$",
            title="what a step adds",
        )
        if len(b.levels) <= 12:
            row[0].legend(fontsize=7, ncols=2)
        at = range(len(b.levels))
        row[1].bar(at, b.kl_bits.numpy(), color=colours)
        row[1].set(title="KL of a step", ylabel="bits", xlabel="level t")
        shown = row[2].imshow(b.share.numpy(), aspect="auto", origin="upper", cmap="magma", vmin=0)
        row[2].plot(b.centroid.numpy(), at, color="white", marker="o", markersize=4, label="mean frequency")
        row[2].set(title="energy changed by exchanging a step", xlabel="cycles an image", ylabel="level t")
        row[2].legend(fontsize=7)
        figure.colorbar(shown, ax=row[2], label="share")
        ticks = [int(i) for i in torch.linspace(0, len(b.levels) - 1, min(len(b.levels), 12)).round()]
        row[1].set_xticks(ticks, [b.levels[i] for i in ticks])
        row[2].set_yticks(ticks, [b.levels[i] for i in ticks])
    figure.savefig(file, format="png", dpi=110)


def evaluation(path: Path, curves: Mapping[str, Any]) -> Path | None:
    """The tables of metrics.json as plots: spectrum, classes, restoration by level, rate and distortion by step."""
    from matplotlib.figure import Figure

    known = [name for name in ("spectrum", "classes", "restoration", "steps") if curves.get(name)]
    if not known:
        return None
    figure = Figure(figsize=(4.2 * len(known), 3.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(known), squeeze=False)[0], known, strict=True):
        table = curves[name]
        if name == "spectrum":
            for which, style in (("data", "k--"), ("samples", "C0-")):
                axis.plot(table["cycles_per_image"], table[which], style, label=which)
            axis.set(title="power spectrum", xlabel="cycles an image", yscale="log")
        elif name == "classes":
            at, total = range(len(table["names"])), sum(table["samples"])
            axis.bar(at, [count / total for count in table["samples"]], label="samples")
            axis.plot(at, table["data"], "k_", markersize=14, label="data")
            axis.set(title="classes, as the classifier sees them", ylabel="share")
            axis.set_xticks(
                at, table["names"], rotation=0 if len(at) <= 10 and max(map(len, table["names"])) < 3 else 60
            )
        elif name == "restoration":
            for way in dict.fromkeys(row["way"] for row in table):
                rows = [row for row in table if row["way"] == way and row["metric"] == "psnr"]
                axis.plot([row["t"] for row in rows], [row["value"] for row in rows], marker="o", label=way)
            axis.set(title="restoration", xlabel="from level t", ylabel="PSNR in dB")
        else:
            rate, distortion = ([row[key] for row in table] for key in ("rate_bits", "distortion_mse"))
            axis.plot(rate, distortion, "o-", color="grey")
            for row in table:
                axis.annotate(f"t={row['t']}", (row["rate_bits"], row["distortion_mse"]), fontsize=8)
            axis.set(
                title="rate and distortion of the steps",
                xlabel="bits an image",
                ylabel="mean squared error",
                yscale="log",
            )
        if name != "steps":
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return path
