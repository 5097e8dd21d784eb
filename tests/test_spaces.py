"""Spaces: pixels change nothing, and one defined in a folder of one's own trains, samples and decodes."""

import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from conftest import SHORT, TINY
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from vcd import checkpoints
from vcd.batch import Degraded
from vcd.cli import CONF
from vcd.randomness import PerImage
from vcd.spaces import BLACK, Pixels, to_float, to_uint8

pytestmark = pytest.mark.usefixtures("seed")

MINE = '''
"""Spaces of one's own: negatives, and squares of 2x2 pixels as four channels, by an orthonormal Haar transform."""
import torch
import torch.nn.functional as F
from vcd.spaces import Space, to_float, to_uint8

class Negative(Space):
    def __init__(self, *, zero):
        super().__init__()
        self.zero = zero
    def encode(self, images):
        return -to_float(images)
    def decode(self, x):
        return to_uint8(-x)
    def clip(self, x0):
        return x0.clamp(-1, 1)

class Haar(Space):
    def __init__(self, *, zero):
        super().__init__()
        self.zero = zero
        h = torch.tensor([[1.0, 1], [1, -1]]) / 2**0.5
        self.register_buffer("H", torch.kron(h, h))
    def encode(self, images):
        x = F.pixel_unshuffle(to_float(images), 2).unflatten(1, (-1, 4))
        return torch.einsum("ij,ncjhw->ncihw", self.H, x).flatten(1, 2)
    def decode(self, x):
        return to_uint8(F.pixel_shuffle(torch.einsum("ji,ncjhw->ncihw", self.H, x.unflatten(1, (-1, 4))).flatten(1, 2), 2))
    def clip(self, x0):
        return x0.clamp(-2, 2)
'''
HAAR = ["network.unet.channels=4", "network.unet.size=4", "start.channels=4", "start.size=4", "degradation.size=4"]


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A folder with two spaces and their yamls, as the command line finds them."""
    (tmp_path / "spaces_of_mine.py").write_text(MINE)
    (tmp_path / "space").mkdir()
    for name, zero in (("negative", 1.0), ("haar", 0.0)):
        text = f"# Mine.\n_target_: spaces_of_mine.{name.title()}\nzero: {zero}\n"
        (tmp_path / "space" / f"{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("spaces_of_mine", None)


def build(folder: Path, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"hydra.searchpath=[{folder}]", *TINY, *overrides])
    return checkpoints.build(cfg)


def pixels(n: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8)


def test_pixels_are_the_way_of_version_0_1():
    space, images = Pixels(), torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert space.zero == BLACK == -1.0 and not space.state_dict()
    assert torch.equal(space.encode(images), images.float() / 127.5 - 1) and torch.equal(
        space.encode(images), to_float(images)
    )
    assert torch.equal(space.decode(space.encode(images)), images)
    x = torch.tensor([-7.0, -1.0, 0.3, 1.0, 2.0]).view(1, 1, 1, 5)
    assert torch.equal(space.clip(x), x.clamp(-1, 1)) and torch.equal(space.decode(x), to_uint8(x))


def test_naming_pixels_is_the_same_as_naming_nothing(compose):
    """Bit for bit, in training and in sampling."""
    with_space = compose(*TINY, "model=vwd", "space=pixels")
    without = OmegaConf.masked_copy(with_space, [key for key in with_space if key != "space"])
    without.degradation.parts.black.zero, without.start.zero = BLACK, BLACK  # what version 0.1 had in its code
    found = []
    for cfg in (with_space, without):
        torch.manual_seed(1)
        model = checkpoints.build(cfg)
        D, x0, t = model.degradation, to_float(pixels(6)), torch.arange(6) % 3 + 1
        batch = Degraded(x0, t, t - 1, D(x0, t), D(x0, t - 1), None, torch.zeros(6, dtype=torch.long))
        loss = model.train().losses(batch).total
        loss.backward()
        found.append((loss, model.eval().sample(PerImage(0, range(3))).states, list(model.state_dict())))
    (a, x, names), (b, y, others) = found
    assert torch.equal(a, b) and torch.equal(x, y) and names == others


def test_black_is_what_the_space_says_it_is(compose):
    model = checkpoints.build(compose(*TINY, "space.zero=0.5"))
    x0 = to_float(pixels())
    end = model.degradation(x0, torch.full((4,), 3))
    assert torch.equal(end, torch.full_like(end, 0.5))
    assert torch.equal(model.start.sample(PerImage(0, range(4))), end)


@pytest.mark.parametrize(("name", "overrides"), [("negative", []), ("haar", HAAR)])
def test_a_space_of_ones_own_is_degraded_restored_and_decoded(mine, name, overrides):
    model, images = build(mine, f"space={name}", "model=vwd", "degradation=black", *overrides), pixels()
    x0 = model.space.encode(images)
    assert torch.equal(model.space.decode(x0), images)
    assert x0.shape == (4, *model.start.shape)
    end = model.degradation(x0, torch.full((4,), 3))
    assert (end == model.space.zero).all() and torch.equal(model.start.sample(PerImage(0, range(4))), end)
    decoded = model.space.decode(model.eval().sample(PerImage(0, range(4))).x0)
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8


@pytest.mark.long
@pytest.mark.parametrize(("name", "overrides"), [("negative", []), ("haar", HAAR)])
def test_a_space_of_ones_own_trains_and_samples_by_command(command, mine, name, overrides):
    given = ["--config-dir", str(mine), *SHORT, f"space={name}", "model=vwd", "degradation=black", *overrides]
    process = command("train", *given, cwd=mine)
    assert process.returncode == 0, process.stderr
    ckpt = process.stdout.splitlines()[-1].split(maxsplit=1)[1]
    process = command("sample", f"ckpt={ckpt}", "n=6", f"out={mine / 'out'}", cwd=mine)
    assert process.returncode == 0, process.stderr
    model, _ = checkpoints.load(ckpt)
    expected = model.space.decode(model.sample(PerImage(0, range(6))).x0).permute(0, 2, 3, 1)
    assert np.array_equal(np.load(mine / "out" / "samples.npy"), expected.numpy())
