"""Pictures with words: sheets of images under column titles, and what is measured, drawn."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from vcd import style
from vcd.images import grid
from vcd.spectra import Bands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


class Block(NamedTuple):
    """A part of a sheet: its name, its images (rows, columns, c, h, w), and titles of its columns and rows, where they
    are not those of the sheet."""

    name: str
    images: UInt8[Tensor, "rows columns c h w"]
    titles: Sequence[str] | None = None
    rows: Sequence[str] | None = None


@style.styled()
def sheet(path: Path, blocks: Sequence[tuple], titles: Sequence[str] = (), rows: Sequence[str] = ()) -> Path:
    """Blocks (or tuples like them), one below the other, each with its name and those of its rows on the left, and a
    title over every column."""
    from matplotlib.figure import Figure

    parts = [Block(*block) for block in blocks]
    sheets = [grid(part.images.flatten(0, 1), columns=part.images.shape[1]) for part in parts]
    over = [titles if part.titles is None else part.titles for part in parts]
    beside = [rows if part.rows is None else part.rows for part in parts]
    columns = max(part.images.shape[1] for part in parts)
    left = 0.3 + max((style.wide(name) for names in beside for name in names), default=0)
    cell = max(0.3, min(0.9, (style.PAGE - left) / columns))
    upright = all(style.wide(title) < cell for names in over for title in names)
    heights = [cell * columns * s.height / max(s.width for s in sheets) for s in sheets]
    above = 0.35 if upright else 0.6
    figure = Figure(figsize=(left + cell * columns, sum(heights) + above * len(sheets)))
    axes = figure.subplots(len(sheets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, picture, part, columns_, rows_ in zip(axes, sheets, parts, over, beside, strict=True):
        axis.imshow(picture, interpolation="nearest")
        pitch = picture.width / part.images.shape[1]
        at = [(i + 0.5) * pitch for i in range(len(columns_))]
        axis.set_xticks(at, columns_, **({} if upright else {"rotation": 60, "ha": "left", "rotation_mode": "anchor"}))
        axis.xaxis.tick_top()
        pitch = picture.height / part.images.shape[0]
        axis.set_yticks([(i + 0.5) * pitch for i in range(len(rows_))], rows_)
        axis.set(ylabel=part.name)
        style.bare(axis)
    style.save(figure, path, bbox_inches="tight")
    return path


def _added(figure: "Figure | SubFigure", axis: "Axes", b: Bands) -> None:
    """The spectrum of what every step adds."""
    colours = style.levels(len(b.levels))
    for i, power in enumerate(b.power.flip(0)):  # t = 1 first
        axis.plot(power.numpy(), color=colours(i), ls="-")
    axis.set(xlabel="cycles per image")
    style.logarithmic(axis)
    style.title(axis, r"mean power of a coefficient of $x_{t-1} - x_t$", "What a step adds")
    style.scale_of_levels(figure, [axis], [str(t) for t in reversed(b.levels)])


def _kl(figure: "Figure | SubFigure", axis: "Axes", b: Bands) -> None:
    """The information that enters at every step."""
    n = len(b.levels)
    axis.bar(range(n), b.kl_bits.numpy(), color=[style.levels(n)(n - 1 - i) for i in range(n)])
    axis.set(xlabel="level t")
    axis.grid(visible=False, axis="x")
    at = style.some(n)
    axis.set_xticks(at, [str(b.levels[i]) for i in at])
    style.title(axis, "KL in bits per image", "Information that enters at a step")


def _changed(figure: "Figure | SubFigure", axis: "Axes", b: Bands) -> None:
    """In which frequencies an image changes when the latent of a step is exchanged."""
    from matplotlib.patheffects import Normal, Stroke

    n = len(b.levels)
    shown = axis.imshow(b.share.numpy(), aspect="auto", origin="upper", cmap="Blues", vmin=0)
    (line,) = axis.plot(
        b.centroid.numpy(), range(n), color=style.COLOURS[1], ls="-", marker="o", label="mean frequency"
    )
    line.set_path_effects([Stroke(linewidth=4, foreground="white"), Normal()])
    axis.set(xlabel="cycles per image", ylabel="level t")
    axis.grid(visible=False)
    at = style.some(n)
    axis.set_yticks(at, [str(b.levels[i]) for i in at])
    style.title(axis, "share of the changed energy", "What exchanging a step changes")
    bar = figure.colorbar(shown, ax=axis, fraction=0.08, aspect=25)
    bar.outline.set_visible(False)
    style.legend(figure, [axis])


CONTRIBUTIONS: Sequence[Callable[["Figure | SubFigure", "Axes", Bands], None]] = (_added, _kl, _changed)


@style.styled()
def bands(path: Path, blocks: Sequence[tuple[str, Bands]]) -> Path:
    """What each step contributes: a column a model, of spectra, KL in bits, and where exchanges change things."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(style.CARD * len(blocks), 8.4))
    columns = figure.subfigures(1, len(blocks), squeeze=False)[0]
    for column, (name, b) in zip(columns, blocks, strict=True):
        column.suptitle(name)
        for part, draw in zip(column.subfigures(len(CONTRIBUTIONS), 1), CONTRIBUTIONS, strict=True):
            draw(part, part.subplots(), b)
    style.save(figure, path)
    return path


@style.styled()
def contributions(b: Bands) -> list[bytes]:
    """The same of one model, every plot a PNG of its own."""
    from matplotlib.figure import Figure

    pictures = []
    for draw in CONTRIBUTIONS:
        figure = Figure(figsize=(style.CARD, 3.0))
        draw(figure, figure.subplots(), b)
        pictures.append(style.png(figure))
    return pictures


def _spectrum(figure: "Figure | SubFigure", axis: "Axes", table: Mapping[str, Any]) -> None:
    for which, colour, dashes in (("data", style.TEXT, "--"), ("samples", style.COLOURS[0], "-")):
        axis.plot(table["cycles_per_image"], table[which], color=colour, ls=dashes, label=which)
    axis.set(xlabel="cycles per image")
    style.logarithmic(axis)
    style.title(axis, "mean power of a coefficient", "Power spectrum")


def _classes(figure: "Figure | SubFigure", axis: "Axes", table: Mapping[str, Any]) -> None:
    at, total = range(len(table["names"])), sum(table["samples"])
    axis.bar(at, [count / total for count in table["samples"]], label="samples", color=style.COLOURS[0])
    axis.plot(
        at, table["data"], color=style.COLOURS[1], ls="", marker="_", markersize=10, markeredgewidth=2.5, label="data"
    )
    axis.grid(visible=False, axis="x")
    short = max(map(len, table["names"])) < 3 and len(at) <= 10
    axis.set_xticks(at, table["names"], rotation=0 if short else 60)
    style.title(axis, "share, as the classifier sees them", "Classes")


def _restoration(figure: "Figure | SubFigure", axis: "Axes", table: Sequence[Mapping[str, Any]]) -> None:
    for i, way in enumerate(dict.fromkeys(row["way"] for row in table)):
        rows = [row for row in table if row["way"] == way and row["metric"] == "psnr" and row["value"] is not None]
        colour, dashes = style.line(i)
        axis.plot([row["t"] for row in rows], [row["value"] for row in rows], color=colour, ls=dashes, marker="o",
                  label=way.replace("_", " "))  # fmt: skip
    axis.set(xlabel="from level t")
    style.title(axis, "PSNR in dB", "Restoration")


def _steps(figure: "Figure | SubFigure", axis: "Axes", table: Sequence[Mapping[str, Any]]) -> None:
    rows = sorted(table, key=lambda row: row["t"])
    rate, distortion = ([row[key] for row in rows] for key in ("rate_bits", "distortion_mse"))
    axis.plot(rate, distortion, color="#bbbbbb", ls="-", linewidth=1)
    axis.scatter(rate, distortion, c=range(len(rows)), cmap=style.levels(len(rows)), zorder=3)
    axis.set(xlabel="bits per image")
    style.logarithmic(axis)
    style.title(axis, "mean squared error", "Rate and distortion of the steps")
    style.scale_of_levels(figure, [axis], [str(row["t"]) for row in rows])


def _truncation(figure: "Figure | SubFigure", axis: "Axes", table: Sequence[Mapping[str, Any]]) -> None:
    recall, precision = ([row[key] for row in table] for key in ("recall", "precision"))
    axis.plot(recall, precision, color=style.COLOURS[0], marker="o")
    for row in table:
        axis.annotate(f"{row['temperature']:g}", (row["recall"], row["precision"]), (4, 4), textcoords="offset points")
    axis.set(xlabel="recall")
    axis.margins(0.12)
    style.title(axis, "precision, by temperature of the latents", "Truncation")


TABLES: Mapping[str, Callable[["Figure | SubFigure", "Axes", Any], None]] = {
    "spectrum": _spectrum, "classes": _classes, "restoration": _restoration, "steps": _steps,
    "truncation": _truncation,
}  # fmt: skip


@style.styled()
def evaluation(path: Path, curves: Mapping[str, Any]) -> Path | None:
    """The tables of metrics.json as plots, two in a row: spectrum, classes, restoration by level, rate and distortion
    by step, precision and recall by temperature."""
    from matplotlib.figure import Figure

    known = [name for name in TABLES if curves.get(name)]
    if not known:
        return None
    rows, columns = -(-len(known) // 2), min(2, len(known))
    figure = Figure(figsize=(style.CARD if columns == 1 else style.PAGE, 2.7 * rows))
    parts = figure.subfigures(rows, columns, squeeze=False).flat
    for part, name in zip(parts, known, strict=False):
        axis = part.subplots()
        TABLES[name](part, axis, curves[name])
        style.legend(part, [axis])
    style.save(figure, path)
    return path


def beside(path: Path, pictures: Sequence[Path]) -> Path:
    """PNG files from left to right, their tops in a line, on white."""
    from PIL import Image

    images = [Image.open(picture).convert("RGB") for picture in pictures]
    gap = 24
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    whole, left = Image.new("RGB", (width, max(image.height for image in images)), "white"), 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + gap
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path)
    return path
