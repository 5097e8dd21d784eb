"""Spaces: pixels change nothing, and one defined in a folder of one's own trains, samples and decodes."""

import json
import pkgutil
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

from vcd import checkpoints, discovery, tasks, training
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


def write(folder: Path) -> Path:
    """Two spaces and their yamls, as the command line finds them."""
    (folder / "spaces_of_mine.py").write_text(MINE)
    (folder / "space").mkdir()
    for name, keys in KEYS.items():
        lines = ["# Mine.", f"_target_: spaces_of_mine.{name.title()}", *(f"{k}: {v}" for k, v in keys.items())]
        (folder / "space" / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(write(tmp_path))
    yield tmp_path
    sys.modules.pop("spaces_of_mine", None)


def build(folder: Path, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"hydra.searchpath=[{folder}]", *TINY, *overrides])
    return training.build(cfg)


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
    with_space = compose(*TINY, "model=vwd", "degradation=black_blur", "space=pixels")
    OmegaConf.resolve(with_space)
    without = OmegaConf.masked_copy(with_space, [key for key in with_space if key != "space"])
    without.degradation.parts.black.zero, without.start.zero = BLACK, BLACK  # what version 0.1 had in its code
    found = []
    for cfg in (with_space, without):
        torch.manual_seed(1)
        model = training.build(cfg)
        D, x0, t = model.degradation, to_float(pixels(6)), torch.arange(6) % 3 + 1
        batch = Degraded(x0, t, t - 1, D(x0, t), D(x0, t - 1), None, torch.zeros(6, dtype=torch.long))
        loss = model.train().losses(batch).total
        loss.backward()
        found.append((loss, model.eval().sample(PerImage(0, range(3))).states, list(model.state_dict())))
    (a, x, names), (b, y, others) = found
    assert torch.equal(a, b) and torch.equal(x, y) and names == others


def test_black_is_what_the_space_says_it_is(compose):
    model = training.build(compose(*TINY, "degradation=black_blur", "space.zero=0.5"))
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
    request = asked(images=str(mine / "image.png"))
    given = request.given(model)
    assert given.shape == (1, 4, 4, 4)
    assert np.array_equal(shown(model, given)[0, 0].numpy(), image)
    assert columns(model, [request.paths(model, "images", 1)] * 2).shape == (1, 2, 1, 8, 8)


@pytest.mark.long
def test_the_levels_of_a_degradation_are_drawn_as_images(mine, command):
    """Negatives that fade to 1 fade to black, and the picture of the levels says so."""
    drawn = []
    for name in ("pixels", "negative"):
        given = [f"space={name}", "degradation=black", "dataset=digits", "T=2", f"out={mine / name}.png"]
        process = command("degrade", "--config-dir", str(mine), *given, cwd=mine)
        assert process.returncode == 0, process.stderr
        drawn.append(np.asarray(Image.open(mine / f"{name}.png")))
    assert np.array_equal(*drawn)


def asked(**keys) -> Request:
    """What vcd.control is asked for."""
    settings = {"n": 2, "images": None, "sources": None, "levels": None, "temperatures": [1.0], "weights": 2}
    return Request(seed=0, posterior=0.0, variations=1, **(settings | keys))


@pytest.mark.parametrize(
    "task", [m.name for m in pkgutil.iter_modules(tasks.__path__) if not m.name.startswith("guess_")]
)
def test_every_task_steers_in_a_space_of_another_shape(mine, task):
    model = build(mine, "space=haar", "model=vwd", "degradation=black").eval()
    written = discovery.find(task, tasks, "task").run({"VWD": model}, asked(), mine)
    assert written and all(path.stat().st_size for path in written)


@pytest.fixture(scope="module")
def haar(command, tmp_path_factory):
    """haar("verb", "key=value", ...): a command on a trained checkpoint in the Haar space, and the folder of its run."""
    cwd = write(tmp_path_factory.mktemp("haar"))

    def do(verb: str, *given: str) -> str:
        process = command(verb, *given, cwd=cwd)
        assert process.returncode == 0, process.stderr
        return process.stdout

    done = do("train", "--config-dir", str(cwd), *SHORT, "space=haar", "model=vwd", "degradation=black")
    ckpt = Path(done.splitlines()[-1].split(maxsplit=1)[1])
    which = {"report": f"run={ckpt.parent}"}
    return lambda verb, *given: do(verb, which.get(verb, f"ckpt={ckpt}"), "trust=[spaces_of_mine]", *given), ckpt.parent


@pytest.mark.long
def test_a_space_of_another_shape_samples_by_command(haar, monkeypatch):
    run, folder = haar
    run("sample", "n=6", f"out={folder / 'out'}")
    monkeypatch.syspath_prepend(folder.parent.parent)
    model, _ = checkpoints.load(folder / "last.ckpt", trust=["spaces_of_mine"])
    expected = model.space.decode(model.sample(PerImage(0, range(6))).x0).permute(0, 2, 3, 1)
    assert np.array_equal(np.load(folder / "out" / "samples.npy"), expected.numpy())
    sys.modules.pop("spaces_of_mine", None)


@pytest.mark.long
@pytest.mark.parametrize(("verb", "written"), [("control", "reconstruct.csv"), ("restore", "restore.csv")])
def test_a_space_of_another_shape_takes_images_by_command(haar, verb, written):
    run, folder = haar
    image = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(image).save(folder / "image.png")
    task = ["task=reconstruct"] if verb == "control" else []
    run(verb, *task, f"images={folder / 'image.png'}", f"out={folder / verb}")
    assert (folder / verb / written).exists()
    if verb == "restore":
        assert np.array_equal(np.asarray(Image.open(folder / verb / "png" / "true-000.png")), image)


@pytest.mark.long
def test_a_space_of_another_shape_is_evaluated_and_reported_by_command(haar):
    run, folder = haar
    few = ["n=16", "batch_size=16", "restored=8", "levels=2", f"data.root={folder / 'data'}"]
    run("evaluate", "metrics=[distribution,spectrum,restoration,bound]", *few)
    found = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert {"psnr_posterior", "rate_bits", "log_spectral_distance_16"} <= found.keys()
    run("report", "n=4", "pairs=2")
    assert "data:image/png" in (folder / "report.html").read_text()
