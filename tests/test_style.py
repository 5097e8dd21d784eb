"""Every plot that vcd draws: legends outside, nothing cut off or on top of something else, readable on a phone."""

import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from conftest import SHORT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from vcd import curves, degrade, figures, style
from vcd.cli import CONF
from vcd.comparison import pictures
from vcd.comparison.table import Run, Variant
from vcd.degradations.severity import Severity
from vcd.spectra import Bands

PHONE = 358  # pixels of a viewport of 390 that a picture fills
MACHADO = {  # Machado, Oliveira and Fernandes 2009, severity 1: what remains of linear RGB
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}


def linear(colour) -> np.ndarray:
    """sRGB to linear RGB."""
    c = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB under D65 of linear RGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    x, y, z = xyz / np.array([0.9505, 1, 1.089])
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(colour) -> float:
    """Against white, as WCAG has it."""
    return 1.05 / (0.05 + np.array([0.2126, 0.7152, 0.0722]) @ linear(colour))


@pytest.mark.parametrize("sight", MACHADO)
def test_colours_can_be_told_apart_by_everybody(sight):
    seen = [lab(np.array(MACHADO[sight]) @ linear(colour)) for colour in style.COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_colours_stand_out_from_white_and_text_is_dark():
    assert min(map(contrast, style.COLOURS)) >= 3
    assert contrast(style.TEXT) >= 12
    assert len({style.line(i) for i in range(15)}) == 15


# --- every plot -------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are written, as they are written."""
    found, save = [], Figure.savefig

    def savefig(figure: Figure, *how, **options) -> None:
        save(figure, *how, **{**options, "dpi": 40})
        FigureCanvasAgg(figure)
        found.append(figure)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def parts(figure) -> list:
    """The figure and all the figures inside it."""
    return [figure, *(inner for part in figure.subfigs for inner in parts(part))]


def words(figure) -> list[tuple[Text, object]]:
    """Every text that can be seen, with its box."""
    renderer = figure.canvas.get_renderer()
    found = []
    for axis in (axis for part in parts(figure) for axis in part.axes if axis.get_visible()):
        ticks = [t for a in (axis.xaxis, axis.yaxis) for t in a.get_ticklabels() if a.get_visible()]
        low, high = np.sort(axis.get_xlim()), np.sort(axis.get_ylim())
        ticks = [t for t in ticks if _between(t, axis, low, high)]
        found += [*ticks, axis.xaxis.label, axis.yaxis.label, axis.title, axis._left_title, *axis.texts]
    for part in parts(figure):
        found += [t for legend in part.legends for t in legend.get_texts()]
        found += [part._suptitle] if part._suptitle else []
    seen = [t for t in found if t.get_visible() and t.get_text().strip()]
    return [(t, t.get_window_extent(renderer)) for t in dict.fromkeys(seen)]


def _between(label: Text, axis, low, high) -> bool:
    """Whether a tick label is of a tick that is shown."""
    x, y = label.get_position()
    horizontal = label in axis.xaxis.get_ticklabels()
    return low[0] <= x <= low[1] if horizontal else high[0] <= y <= high[1]


def overlap(a, b) -> float:
    """The smaller of width and height of what two boxes share, in pixels."""
    return min(min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))


def check(figure: Figure, least: float = 7, cut: bool = True) -> None:
    """least: pixels of the smallest letters on a phone. cut: whether the figure's edges are the picture's."""
    figure.canvas.draw()
    whole, written = figure.bbox, words(figure)
    assert written
    for text, box in written:
        assert text.get_fontsize() / 72 / figure.get_figwidth() * PHONE >= least, text
        assert contrast(text.get_color()) >= 7, text
        if cut:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1, text
    for (a, box), (b, other) in itertools.combinations(written, 2):
        assert overlap(box, other) < 2, (a, b)
    axes = [axis for part in parts(figure) for axis in part.axes if axis.get_visible()]
    for axis in axes:
        assert axis.get_legend() is None and not axis.texts, "no legend and no label among the curves"
        for legend in (legend for part in parts(figure) for legend in part.legends):
            assert overlap(legend.get_window_extent(), axis.get_window_extent()) < 1


def history(path: Path, levels: list[str], terms=("loss", "reconstruction_sse", "kl_bits")) -> Path:
    """A metrics.csv of four validations."""
    names = [f"{stage}/{term}{level}" for stage in ("train", "val") for term in terms for level in ("", *levels)]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *names])
        for step in (49_999, 99_999, 149_999, 199_999):
            writer.writerow([step, *(1e4 * (i + 1) / step for i in range(len(names)))])
    return path


SIX = [f"/t{t:02}" for t in range(1, 7)]
GROUPS = [f"/t{63 * i + 1:04}-{63 * i + 63:04}" for i in range(16)]


@pytest.mark.parametrize("levels", [SIX, GROUPS], ids=["six levels", "groups of a thousand"])
def test_the_curves_of_a_run(drawn, tmp_path, levels):
    curves.draw(history(tmp_path / "metrics.csv", levels), tmp_path / "curves.png")
    check(drawn[0])
    rows = curves.read(tmp_path / "metrics.csv")
    assert [p.title for p in curves.panels({"VCD": ("VCD", rows)})][:2] == ["VCD: loss", "VCD: loss by level"]
    assert len(drawn) == 7
    for figure in drawn[1:]:
        check(figure, 10)


def test_a_run_without_validation_has_curves_all_the_same(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n4,1.0\n")
    assert curves.draw(tmp_path / "metrics.csv", tmp_path / "curves.png").stat().st_size > 1000


def test_the_curves_of_many_runs_with_long_names(drawn, tmp_path):
    rows = curves.read(history(tmp_path / "metrics.csv", SIX[:2], ("loss",)))
    runs = {f"vwd with network.unet.patch={i} and a long name": ("VWD", rows) for i in range(7)}
    assert len(list(curves.panels(runs))) == 1 + 7
    check(drawn[0], 10)
    lines = drawn[0].axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 7  # also the sixth and the seventh


def contributions(T: int = 6) -> Bands:
    power = torch.logspace(0, -5, 15)[None] * torch.arange(1, T + 1)[:, None]
    return Bands(list(range(T, 0, -1)), power, torch.arange(T).float(), torch.rand(T, 15, dtype=torch.float64))


@pytest.mark.parametrize("T", [1, pytest.param(6, marks=pytest.mark.long), 100])
def test_what_steps_contribute(drawn, tmp_path, T):
    figures.bands(tmp_path / "bands.png", [("VCD", contributions(T)), ("VWD", contributions(T))])
    assert len(figures.contributions(contributions(T))) == 3
    check(drawn[0], 6)
    for figure in drawn[1:]:
        check(figure, 10)


@pytest.mark.parametrize("names", [list("0123456789"), ["T-shirt/top", "Trouser", "Pullover", "Ankle boot"]])
def test_an_evaluation(drawn, tmp_path, names):
    ways = ("prior", "posterior", "one_step")
    tables = {
        "spectrum": {"cycles_per_image": [0, 1, 2], "data": [10, 1, 0.1], "samples": [9, 1.5, 0.01]},
        "classes": {"names": names, "samples": [3] * len(names), "data": [1 / len(names)] * len(names)},
        "restoration": [{"way": w, "metric": "psnr", "t": t, "value": 30.0 - t} for w in ways for t in range(1, 7)],
        "steps": [{"t": t, "rate_bits": 3.0 * t, "distortion_mse": 0.1 / t} for t in range(1, 7)],
    }
    for known in (tables, {"classes": tables["classes"]}):
        assert figures.evaluation(tmp_path / "metrics.png", known) == tmp_path / "metrics.png"
        check(drawn.pop())
    assert figures.evaluation(tmp_path / "none.png", {}) is None and not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("columns", [1, 8, 14])
def test_a_sheet(drawn, tmp_path, columns):
    titles = ["source", "target", *(f"t={t}" for t in range(1000, 0, -1))][:columns]
    images = torch.zeros(2, columns, 1, 8, 8, dtype=torch.uint8)
    figures.sheet(tmp_path / "sheet.png", [("VCD", images, titles), ("VWD", images, titles)])
    check(drawn[0], cut=False)
    figures.sheet(tmp_path / "rows.png", [("", images)], rows=["vwd", "vwd patch 2, twice as wide"])
    check(drawn[1], cut=False)


@pytest.mark.parametrize("T", [4, 1000])
def test_a_degradation(drawn, tmp_path, T):
    shown = torch.linspace(0, T, min(T + 1, 12)).round().long().tolist()
    severity = Severity(torch.linspace(0, 2, T + 1), torch.linspace(1, 0, T + 1))
    degrade.draw(torch.zeros(8, len(shown), 1, 8, 8, dtype=torch.uint8), shown, severity, tmp_path / "degrade.png")
    check(drawn[0])


def variant(name: str, seeds: int, values: list[float], folder: Path) -> Variant:
    """A variant that was evaluated at as many checkpoints as there are values."""
    runs = []
    for seed in range(seeds):
        run = folder / f"{name}-seed{seed}".replace(" ", "-")
        run.mkdir()
        number = {"floor": 4.0, "better": "lower", "unit": "dB"}
        for i, value in enumerate(values):
            step = 500 * (i + 1)
            name_ = "metrics.json" if i == len(values) - 1 else f"metrics-step-{step:07d}.json"
            content = {"subject": {"steps": step}, "metrics": {"fcd_2000": {**number, "value": value + seed}}}
            (run / name_).write_text(json.dumps(content))
        subject = {"steps": 500 * len(values), "images_seen": 32_000 * len(values)}
        runs.append(Run(run, {"fcd_2000": {**number, "value": values[-1]}}, subject))
    return Variant(name, runs)


def test_a_comparison_over_training(drawn, tmp_path):
    variants = [variant(f"variant number {i}", 2, [40.0 + i, 20.0, 10.0], tmp_path) for i in range(6)]
    found = pictures.curves(variants)
    assert list(found) == ["fcd_2000"] and len(found["fcd_2000"]) == 12
    pictures.draw(found, tmp_path / "curves.png")
    (panel,) = pictures.panels(found)
    assert panel.title == "fcd_2000"
    check(drawn[0])
    check(drawn[1], 10)
    labels = [text.get_text() for text in drawn[1].legends[0].get_texts()]
    assert labels == [v.name for v in variants] + ["real images"]  # a variant once, not a seed each


def test_what_was_measured_once_has_no_curve(tmp_path):
    found = pictures.curves([variant("once", 2, [40.0], tmp_path)])
    assert found == {}
    assert pictures.draw(found, tmp_path / "curves.png").exists()


# --- parts ------------------------------------------------------------------------------------------------------------


def test_the_users_own_settings_change_nothing_and_are_left_alone(tmp_path):
    figures.evaluation(
        tmp_path / "a.png", {"spectrum": {"cycles_per_image": [0, 1], "data": [1, 2], "samples": [1, 3]}}
    )
    with matplotlib.rc_context(
        {"font.size": 30, "text.color": "yellow", "axes.grid": False, "figure.facecolor": "red"}
    ):
        before = dict(matplotlib.rcParams)
        figures.evaluation(
            tmp_path / "b.png", {"spectrum": {"cycles_per_image": [0, 1], "data": [1, 2], "samples": [1, 3]}}
        )
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 24, 25, 1001])
def test_some_has_both_ends_and_no_more_than_asked_for(n):
    for most in (2, 8, 13):
        found = style.some(n, most)
        assert found[0] == 0 and found[-1] == n - 1 and found == sorted(set(found)) and len(found) == min(n, most)


@pytest.mark.parametrize("low, high", [(0.22, 0.28), (0.04, 3), (1e-9, 1e2)])
def test_a_logarithmic_axis_has_some_plain_numbers_whatever_it_spans(low, high):
    with style.styled():
        figure = Figure(figsize=(style.CARD, 2.5))
        axis = figure.subplots()
        axis.plot([low, high])
        style.logarithmic(axis)
        figure.canvas.draw()
        labels = [t.get_text() for t in axis.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert 2 <= len(labels) <= 9 and all("\\" not in label for label in labels)


def test_pictures_side_by_side_keep_their_pixels(tmp_path):
    for name, size, colour in (("a", (30, 20), "red"), ("b", (10, 40), "blue")):
        Image.new("RGB", size, colour).save(tmp_path / f"{name}.png")
    whole = Image.open(figures.beside(tmp_path / "deep" / "c.png", [tmp_path / "a.png", tmp_path / "b.png"]))
    assert whole.size == (30 + 24 + 10, 40)
    assert [whole.getpixel(at) for at in ((0, 0), (29, 19), (54, 0), (63, 39), (40, 0), (0, 39))] == [
        (255, 0, 0), (255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 255, 255), (255, 255, 255),
    ]  # fmt: skip


@pytest.mark.long
def test_a_script_draws_the_pictures_of_the_readme(tmp_path):
    script = CONF.parent / "scripts" / "pictures.sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PICTURES": str(tmp_path / "docs"), "RUNS": str(tmp_path / "runs")}
    said = subprocess.run(["bash", str(script), "digits", *SHORT], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    (run,) = (tmp_path / "runs").iterdir()
    drawn = np.asarray(Image.open(tmp_path / "docs" / "digits.png"))
    samples = np.asarray(Image.open(run / "samples.png").convert("RGB"))
    assert np.array_equal(drawn[: len(samples), : samples.shape[1]], samples)
    usage = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)
    assert usage.returncode == 2 and "pictures.sh digits" in usage.stderr and "set -e" not in usage.stderr
