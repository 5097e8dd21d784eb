"""Spaces: pixels change nothing, and one defined in a folder of one's own trains, samples and decodes."""

import json
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from conftest import SHORT, TINY
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from vcd import checkpoints
from vcd.batch import Condition, Degraded
from vcd.cli import CONF
from vcd.errors import UserError
from vcd.randomness import PerImage
from vcd.request import Request, columns, shown
from vcd.spaces import BLACK, Pixels, to_float, to_uint8

pytestmark = pytest.mark.usefixtures("seed")

MINE = '''
"""Spaces of one's own: negatives, and squares of 2x2 pixels as four channels, by an orthonormal Haar transform."""
import torch
import torch.nn.functional as F
from vcd.spaces import Space, to_float, to_uint8

class Negative(Space):
    def encode(self, images):
        return -to_float(images)
    def decode(self, x):
        return to_uint8(-x)
    def clip(self, x0):
        return x0.clamp(-1, 1)

class Haar(Space):
    def __init__(self, **settings):
        super().__init__(**settings)
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
KEYS = {"negative": {"zero": 1.0, "size": "${dataset.size}", "channels": "${dataset.channels}"},
        "haar": {"zero": 0.0, "size": 4, "channels": 4}}  # fmt: skip


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """A folder with two spaces and their yamls, as the command line finds them."""
    (tmp_path / "spaces_of_mine.py").write_text(MINE)
    (tmp_path / "space").mkdir()
    for name, keys in KEYS.items():
        lines = ["# Mine.", f"_target_: spaces_of_mine.{name.title()}", *(f"{k}: {v}" for k, v in keys.items())]
        (tmp_path / "space" / f"{name}.yaml").write_text("\n".join(lines) + "\n")
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
    OmegaConf.resolve(with_space)
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


@pytest.mark.parametrize("name", KEYS)
def test_a_space_of_ones_own_is_degraded_restored_and_decoded(mine, name):
    model, images = build(mine, f"space={name}", "model=vwd", "degradation=black"), pixels()
    x0 = model.space.encode(images)
    assert torch.equal(model.space.decode(x0), images)
    assert x0.shape == (4, *model.start.shape)
    end = model.degradation(x0, torch.full((4,), 3))
    assert (end == model.space.zero).all() and torch.equal(model.start.sample(PerImage(0, range(4))), end)
    decoded = model.space.decode(model.eval().sample(PerImage(0, range(4))).x0)
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8


@pytest.mark.parametrize("degradation", ["black", "blur", "noise", "pixelate", "black_blur", "inpaint"])
def test_parts_have_the_size_and_channels_of_the_space(mine, degradation):
    model, images = build(mine, "space=haar", "model=vwd", f"degradation={degradation}"), pixels()
    assert model.start.shape == model.space.shape == (4, 4, 4) and model.image_shape == (1, 8, 8)
    x0, t = model.space.encode(images), torch.full((4,), 2)
    x_t = model.degradation(x0, t, model.degradation.draw(x0))
    assert x_t.shape == x0.shape == model.restore(x_t, t, t - 1, Condition(z=torch.zeros(4, 4))).shape


def test_a_start_of_another_shape_than_the_space_is_refused(mine):
    with pytest.raises(UserError, match=r"space.size make x of shape \(4, 4, 4\), start.channels .* \(4, 8, 8\)"):
        build(mine, "space=haar", "model=vwd", "degradation=black", "start=black", "start.size=8")


def test_images_given_to_a_model_are_encoded_by_its_space(mine):
    """Of the images' size, not of that of x; and what is drawn are images."""
    model = build(mine, "space=haar", "model=vwd", "degradation=black").eval()
    image = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(image).save(mine / "image.png")
    asked = Request(
        n=1, seed=0, images=str(mine / "image.png"), sources=None, levels=None, posterior=0.0, temperatures=[1.0],
        variations=1, weights=2,
    )  # fmt: skip
    given = asked.given(model)
    assert given.shape == (1, 4, 4, 4)
    assert np.array_equal(shown(model, given)[0, 0].numpy(), image)
    assert columns(model, [asked.paths(model, "images", 1)] * 2).shape == (1, 2, 1, 8, 8)


def test_the_levels_of_a_degradation_are_drawn_as_images(mine, command):
    """Negatives that fade to 1 fade to black, and the picture of the levels says so."""
    drawn = []
    for name in ("pixels", "negative"):
        given = [f"space={name}", "degradation=black", "dataset=digits", "T=2", f"out={mine / name}.png"]
        process = command("degrade", "--config-dir", str(mine), *given, cwd=mine)
        assert process.returncode == 0, process.stderr
        drawn.append(np.asarray(Image.open(mine / f"{name}.png")))
    assert np.array_equal(*drawn)


TASKS = ("bands", "encode", "exchange", "interpolate", "reconstruct", "resample", "temperature")


@pytest.mark.long
@pytest.mark.parametrize("name", KEYS)
def test_a_space_of_ones_own_goes_through_every_command(command, mine, name):
    def do(verb: str, *given: str) -> str:
        process = command(verb, *given, cwd=mine)
        assert process.returncode == 0, f"{verb} {given}: {process.stderr}"
        return process.stdout

    training = ["--config-dir", str(mine), *SHORT, f"space={name}", "model=vwd", "degradation=black"]
    ckpt = do("train", *training).splitlines()[-1].split(maxsplit=1)[1]
    trust = "trust=[spaces_of_mine]"
    do("sample", f"ckpt={ckpt}", trust, "n=6", f"out={mine / 'out'}")
    model, _ = checkpoints.load(ckpt, trust=["spaces_of_mine"])
    expected = model.space.decode(model.sample(PerImage(0, range(6))).x0).permute(0, 2, 3, 1)
    assert np.array_equal(np.load(mine / "out" / "samples.npy"), expected.numpy())

    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(mine / "image.png")
    for task in TASKS:
        do("control", f"ckpt={ckpt}", trust, f"task={task}", "n=2", f"out={mine / 'control'}")
    do("control", f"ckpt={ckpt}", trust, "task=reconstruct", f"images={mine / 'image.png'}", f"out={mine / 'own'}")
    assert (mine / "own" / "reconstruct.png").stat().st_size > 0
    do("restore", f"ckpt={ckpt}", trust, f"images={mine / 'image.png'}", f"out={mine / 'restored'}")
    true = np.asarray(Image.open(mine / "restored" / "png" / "true-000.png"))
    assert np.array_equal(true, np.asarray(Image.open(mine / "image.png")))

    metrics = "metrics=[distribution,spectrum,restoration,bound]"
    few = ["n=16", "batch_size=16", "restored=8", "levels=2"]
    do("evaluate", f"ckpt={ckpt}", trust, metrics, *few, f"data.root={mine / 'data'}")
    found = json.loads(Path(ckpt).with_name("metrics.json").read_text())["metrics"]
    assert {"psnr_posterior", "rate_bits", "log_spectral_distance_16"} <= found.keys()
    do("report", f"run={Path(ckpt).parent}", trust, "n=4", "pairs=2")
    assert "data:image/png" in (Path(ckpt).parent / "report.html").read_text()
