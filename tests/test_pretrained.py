"""The model that comes with vcd: small, the same for everybody, and good enough to show."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vcd
from vcd import hub
from vcd.data.digits import Digits
from vcd.metrics.families.distribution import frechet

FOLDER = hub.SHIPPED / "digits"


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return vcd.load("digits", device="cpu").sample(500)


def test_it_is_small_and_says_what_it_is():
    assert hub.shipped() == ["digits"] and sum(file.stat().st_size for file in FOLDER.iterdir()) < 2_000_000
    assert all(file.stat().st_size < 200_000 for file in FOLDER.glob("*.png"))
    card = (FOLDER / "README.md").read_text()
    assert "license: mit" in card and "vcd train model=vcd dataset=digits" in card and "fcd_2000" in card


@pytest.mark.long
def test_it_needs_neither_training_nor_a_folder_of_its_own(tmp_path):
    code = "import vcd; print(tuple(vcd.load('digits', device='cpu').sample(16).shape))"
    (tmp_path / "here").mkdir()
    path = {"PYTHONPATH": str(Path(vcd.__file__).parents[1]), "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    said = subprocess.run([sys.executable, "-c", code], env=path, cwd=tmp_path / "here", capture_output=True, text=True)
    assert said.stdout == "(16, 1, 8, 8)\n", said.stderr
    assert not list((tmp_path / "here").iterdir())


def test_its_first_image_is_the_same_for_everybody(samples):
    first = torch.tensor(
        [[0, 1, 0, 105, 225, 29, 3, 0], [3, 0, 14, 238, 228, 72, 0, 0], [2, 0, 116, 244, 171, 124, 0, 0]]
    )
    assert (samples[0, 0, :3].int() - first).abs().max() <= 3  # up to rounding


def test_its_samples_are_like_the_held_out_digits(samples):
    """Fréchet's distance of pixels, in units of [0, 1]; and every digit is among them, by a linear classifier."""
    from sklearn.linear_model import LogisticRegression

    train, held_out = (Digits().load(split) for split in ("train", "val"))
    pixels, real, others = (flat(images) for images in (samples, held_out.images, train.images))
    assert frechet(others, real) < frechet(pixels, real) < 0.3  # 0.12 and 0.19; noise has 10
    kinds = LogisticRegression(max_iter=300).fit(others.numpy(), train.labels.numpy()).predict(pixels.numpy())
    shares = np.bincount(kinds, minlength=10) / 500
    assert shares.min() > 0.03 and shares.max() < 0.25


def flat(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).double() / 255
