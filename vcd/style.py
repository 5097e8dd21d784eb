"""How every plot looks: one palette, dark text, legends and scales of levels outside the axes, readable on a phone."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vcd.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

CARD, PAGE = (
    3.6,
    6.0,
)  # widths in inches: of a plot alone, which a phone shows at its full width, and of several in one file
FONT = 9.0  # points; 12 pixels in a card on a phone, and never less than 7
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#222222",
)  # of Okabe and Ito (2008), those with 3:1 or more against white
DASHES = ("-", "--", ":")  # of the colours, from the sixth line on
TEXT = "#222222"


@contextmanager
def styled() -> Iterator[None]:
    """In here plots look as they do everywhere in vcd, whatever the user's own settings are. Save them in here too."""
    import matplotlib.style
    from cycler import cycler

    settings = {
        **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize", "figure.labelsize"), FONT),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "figure.titlesize"), FONT),
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), TEXT),
        "axes.edgecolor": "#888888",
        "axes.titlelocation": "left",
        "figure.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "axes.prop_cycle": cycler(linestyle=DASHES) * cycler(color=COLOURS),
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 200,
    }
    with matplotlib.style.context(settings, after_reset=True):
        yield


def save(figure: "Figure", path: Path, **how: Any) -> None:
    """Write a figure as PNG, whole or not at all; its folder is made. how: more for matplotlib's savefig."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", **how)


def png(figure: "Figure") -> bytes:
    """A figure as PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def wide(text: str) -> float:
    """About how wide a text is, in inches."""
    return 0.58 * FONT / 72 * len(text)


def title(axis: "Axes", unit: str, what: str = "") -> None:
    """Above the axis, where there is room: what is drawn, and the unit of y, which a rotated label could not hold."""
    axis.set_title(f"{what}\n{unit}" if what else unit)


def legend(figure: "Figure | SubFigure", axes: Iterable["Axes"]) -> None:
    """One legend for `axes`, below them and outside, every name once and no wider than the figure, which grows by it."""
    from matplotlib.figure import Figure

    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if not found:
        return
    width = figure.bbox.width / figure.dpi
    room = int(width / wide("x")) - 6  # letters in a line, beside the sign
    names = [textwrap.fill(name, room) for name in found]
    columns = max(1, min(len(names), room // (max(map(len, names)) + 6)))
    figure.legend(found.values(), names, loc="outside lower center", ncols=columns)
    if isinstance(figure, Figure):  # the plot keeps its height
        lines = math.ceil(len(names) / columns) * max(name.count("\n") + 1 for name in names)
        figure.set_figheight(figure.get_figheight() + (lines - 1) * 1.7 * FONT / 72)


def levels(n: int) -> "Colormap":
    """A colour for each of n levels or groups of them, t = 1 the darkest."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"]([0.88 * i / max(1, n - 1) for i in range(n)]))


def scale_of_levels(figure: "Figure | SubFigure", axes: Iterable["Axes"], names: Sequence[str]) -> None:
    """Beside `axes`: which colour of `levels` is which level; eight of the names at most, t = 1 first in `names`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    n = len(names)
    mappable = ScalarMappable(BoundaryNorm([i - 0.5 for i in range(n + 1)], n), levels(n))
    bar = figure.colorbar(mappable, ax=list(axes), fraction=0.08, aspect=25)
    bar.ax.set_title("t")
    at = some(n)
    bar.set_ticks(at, labels=[names[i] for i in at])
    bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def some(n: int, most: int = 8) -> list[int]:
    """Up to `most` of 0..n-1, the ends among them, evenly spread."""
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


def logarithmic(axis: "Axes") -> None:
    """A logarithmic y axis with plain numbers at sensible places, however many decades it spans. Call it when all is drawn."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    decades = math.log10(high / low)
    if decades < 1:
        axis.yaxis.set_major_locator(MaxNLocator(5))
    elif decades < 2.5:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axis.yaxis.set_major_locator(LogLocator(numticks=7))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def line(i: int) -> tuple[str, str]:
    """Colour and dashes of the i-th line."""
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]


def bare(axis: "Axes") -> None:
    """An axis that holds a picture: neither frame nor grid, and labels without ticks."""
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def counts(axis: "Axes") -> None:
    """A few ticks on an x axis that counts: 500, 20k, 3M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
