"""`python -m vcd.degrade`, run as a user runs it, and every degradation on every data set's settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import composition
from hydra.utils import instantiate
from PIL import Image

from vcd.cli import CONF
from vcd.degradations.noise import Noise
from vcd.degradations.pixelate import Pixelate
from vcd.degradations.severity import measure
from vcd.randomness import PerImage
from vcd.schedules import Linear

REPOSITORY = CONF.parent
options = {g: sorted(p.stem for p in (CONF / g).glob("*.yaml")) for g in ("dataset", "degradation", "schedule")}

MINE = '''
"""Dimming from the left: a degradation of one's own, not separable and with a buffer."""
import torch
from vcd.degradations.base import Degradation

class Curtain(Degradation):
    def __init__(self, *, T, size):
        super().__init__(T=T)
        closed = torch.arange(size) < torch.arange(T + 1)[:, None] * size / T
        self.register_buffer("open", 1 - closed.float())

    def forward(self, x0, t, eps=None):
        return self.open[t][:, None, None, :] * (x0.float() + 1) - 1
'''


def degrade(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(folder)])}
    command = [sys.executable, "-m", "vcd.degrade", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_one_file_and_one_yaml_add_a_degradation(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "degradation").mkdir()
    yaml = "# Dimming from the left.\n_target_: mine.Curtain\nT: ${T}\nsize: ${dataset.size}\n"
    (tmp_path / "degradation" / "mine.yaml").write_text(yaml)

    run = degrade(tmp_path, "--config-dir", str(tmp_path), "degradation=mine", "dataset=digits", "T=4")
    assert run.returncode == 0, run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()[:6]] == ["t", "0", "1", "2", "3", "4"]

    picture = tmp_path / "degrade-mine-digits.png"
    assert run.stdout.splitlines()[-1] == str(picture)
    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 400
        assert len(image.convert("L").getcolors()) > 16
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"mine.py", "degradation", picture.name}


def test_a_mistake_is_one_sentence_and_writes_nothing(here, tmp_path):
    said = here("degrade", "degradation=pixelate", "dataset=digits", "T=8")
    assert said.sentence == "T=8: 8x8 images can be pixelated to 7 levels only; set T=7 or less"
    assert said.stdout == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "dataset", [pytest.param(d, marks=[] if d == "cifar10" else pytest.mark.long) for d in options["dataset"]]
)
def test_every_degradation_is_built_for_every_dataset(dataset):
    """At the settings of the data set's own yamls; kernels and inverse heat dissipation's blur have a T of their own."""
    own = {"blur_ihd": "ihd"} | {f"{part}gaussian_blur": "kernel" for part in ("", "black_", "quantise_")}
    for degradation in options["degradation"]:
        cfg = composition(f"dataset={dataset}", f"degradation={degradation}", config="degrade")
        if degradation.startswith("decolour") and cfg.dataset.channels == 1:
            continue  # refused, in a sentence
        D = instantiate(cfg.degradation)
        assert D.T == cfg[own.get(degradation, "dataset")].T
        x0 = torch.zeros(2, cfg.dataset.channels, cfg.dataset.size, cfg.dataset.size)
        assert D(x0, torch.tensor([0, D.T]), D.draw(x0)).isfinite().all()


@pytest.mark.parametrize("schedule", options["schedule"])
def test_every_schedule_yaml_shapes_a_fade_or_says_that_it_cannot(schedule):
    cfg = composition(f"schedule={schedule}", "degradation=black", config="degrade")
    if schedule in ("ve", "edm"):  # their noise grows and the image stays
        with pytest.raises(Exception, match="keeps the image: it cannot fade; take schedule=cosine or vp"):
            instantiate(cfg.degradation)
        return
    D = instantiate(cfg.degradation)
    x0 = torch.ones(D.T + 1, 1, 8, 8)
    kept = (D(x0, torch.arange(D.T + 1))[:, 0, 0, 0] + 1) / 2
    torch.testing.assert_close(kept, instantiate(cfg.schedule).fade(D.T).float(), rtol=0, atol=1e-6)


def test_severity_of_noise_and_of_block_means_is_known():
    """Noise keeps sqrt(abar) of what tells images apart and lies (1 - sqrt(abar))^2 |x0|^2 + 1 - abar away."""
    x0 = torch.rand(2000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = measure(Noise(T=6, schedule=Linear()), x0, PerImage(1, range(2000)))
    alpha_bar = Linear().alpha_bar(6)
    torch.testing.assert_close(noise.kept, alpha_bar.sqrt(), rtol=0, atol=1e-6)
    torch.testing.assert_close(noise.distance, (1 - alpha_bar.sqrt()) ** 2 + 3 * (1 - alpha_bar), rtol=0.02, atol=0)

    n = torch.tensor([8, 4, 3, 1]).double()  # independent pixels: the mean of m pixels keeps 1/m of the variance
    blocks = measure(Pixelate(T=3, size=8, published=False), x0)
    torch.testing.assert_close(blocks.kept**2, n**2 / 64, rtol=0, atol=0.005)
    torch.testing.assert_close(blocks.distance, 1 - n**2 / 64, rtol=0, atol=0.02)


# --- folders of one's own ---------------------------------------------------------------------------------------------


def photos(folder: Path, n: int) -> Path:
    folder.mkdir()
    for i in range(n):
        pixels = torch.randint(0, 256, (40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("n", [4, 20])
def test_a_handful_of_photos_is_enough(here, tmp_path, n):
    """Of 20, one is kept for validation: severity is then measured on the others."""
    folder = photos(tmp_path / "photos", n)
    said = here("degrade", "dataset=folder", f"dataset.path={folder}", "dataset.size=8", "T=3", "out=levels.png")
    assert said.code == 0, said
    rows = [line.split() for line in said.stdout.splitlines() if line.split()[0].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"] and rows[0][1:] == ["0.0000", "1"]
    assert (tmp_path / "levels.png").stat().st_size > 10_000


def test_too_few_photos_are_one_sentence(here, tmp_path):
    folder = photos(tmp_path / "photos", 2)  # one to train, one to validate
    said = here("degrade", "dataset=folder", f"dataset.path={folder}", "dataset.size=8", "out=levels.png")
    assert said.sentence == "dataset=folder has too few images: severity is measured on at least two different ones"
    assert not (tmp_path / "levels.png").exists()


def test_kernels_are_shown_at_their_own_levels(here, tmp_path):
    """Which are those of model=bansal, not those of the data set."""
    said = here("degrade", "degradation=gaussian_blur", "dataset=digits", "out=levels.png").stdout
    assert said.splitlines()[12].split()[0] == "20"
    severity = [float(line.split()[1]) for line in said.splitlines()[1:13]]
    steps = [b - a for a, b in zip(severity, severity[1:], strict=False)]
    assert min(steps) > 0 and max(steps) < 0.8 * severity[-1]
