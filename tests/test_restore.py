"""Restoration: what a perfect restorer gives by every way, and the command with its pictures, numbers and sentences."""

import csv
from dataclasses import dataclass

import pytest
import torch
from conftest import TINY
from hydra.utils import instantiate
from PIL import Image

from vcd import restoring, training
from vcd.cli import CONF
from vcd.data.digits import Digits
from vcd.degradations.base import Degradation
from vcd.randomness import PerImage
from vcd.samplers import Cold, Naive
from vcd.spaces import Pixels

NAMES = sorted(path.stem for path in (CONF / "degradation").glob("*.yaml"))
N, T = 4, 6
pytestmark = pytest.mark.usefixtures("seed")


@dataclass
class Perfect:
    degradation: Degradation
    x0: torch.Tensor
    space: Pixels = Pixels()

    def restore(self, x_t, t, s, condition):
        return self.x0


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_restorer_that_remembers_the_draw_returns_the_image(compose, name):
    D = instantiate(compose(f"degradation={name}", "dataset=digits", "dataset.channels=3", f"T={T}").degradation)
    x0 = torch.rand(N, 3, 8, 8) * 2 - 1
    eps = D.draw(x0)
    model = restoring.remembering(Perfect(D, x0), eps)
    for sampler in (Cold(), Naive()):  # algorithms 2 and 1
        states = sampler(model, D(x0, torch.full((N,), T), eps), PerImage(0, range(N))).states
        torch.testing.assert_close(states[0], x0, rtol=0, atol=1e-5)
        for level in range(1, T):  # the true path, on which the draw is one and the same
            torch.testing.assert_close(states[level], D(x0, torch.full((N,), level), eps), rtol=0, atol=1e-4)


def build(compose, *overrides: str):
    small = ["network.unet.mults=[1]", "network.unet.attention=[]"]
    model = training.build(compose(*(o for o in TINY if o != "T=3"), *small, *overrides)).eval()
    model.start.fit([torch.rand(30, 1, 8, 8) * 2 - 1], model.degradation)
    return model


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=bansal", "degradation=inpaint", "T=4"], {"algorithm_1", "algorithm_2", "direct"}),
        (["model=rissanen", "degradation=blur", "T=4"], {"own"}),
        (["model=plain", "prediction=vxt", "T=4"], {"algorithm_1", "algorithm_2", "direct", "own"}),
        (["model=ddpm", "T=10", "sampler.steps=5"], {"algorithm_1", "algorithm_2", "direct", "own"}),
    ],
    ids=lambda p: p[0] if isinstance(p, list) else "",
)
def test_a_model_restores_by_the_ways_that_its_prediction_answers(compose, overrides, expected):
    model, x0 = build(compose, *overrides), torch.rand(N, 1, 8, 8) * 2 - 1
    t, eps = torch.full((N,), 3), model.degradation.draw(x0)
    assert set(restoring.ways(model, eps)) == expected
    for way in expected:
        found = restoring.restore(model, way, model.degradation(x0, t, eps), 3, PerImage(0, range(N)), eps)
        assert found.shape == x0.shape and found.isfinite().all()


def test_snow_that_is_not_remembered_is_restored_in_one_step_alone(compose):
    model = build(compose, "model=bansal", "degradation=snow", "sampler=one_shot", "T=4")
    x0 = torch.rand(N, 1, 8, 8) * 2 - 1
    eps = model.degradation.draw(x0)
    assert set(restoring.ways(model)) == {"direct"}
    assert set(restoring.ways(model, eps)) == {"direct", "algorithm_1", "algorithm_2"}
    x_t = model.degradation(x0, torch.full((N,), 4), eps)
    assert restoring.consistency(model.degradation, x0, x_t, 4) is None
    assert (restoring.consistency(model.degradation, x0, x_t, 4, eps) == 0).all()


def test_consistency_is_the_distance_to_what_was_seen(compose):
    D = instantiate(compose("degradation=black", "dataset=digits", f"T={T}").degradation)
    x0 = torch.rand(N, 1, 8, 8) - 1
    x_t = D(x0, torch.full((N,), 3))
    kept = (D.table[3, 0, 0] ** 2).item()
    found = restoring.consistency(D, x0 + 0.5, x_t, 3)
    torch.testing.assert_close(found, torch.full((N,), 0.5 * kept), rtol=1e-5, atol=1e-6)


# The command


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """trained("model=bansal", ...): the checkpoint of a few steps."""
    folder, made = tmp_path_factory.mktemp("restore"), {}

    def train(*overrides: str):
        if overrides not in made:
            out = folder / str(len(made))
            short = ["trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
            done = command("train", *TINY, *short, *overrides, f"run_dir={out}", cwd=folder)
            assert done.returncode == 0, done.stderr
            made[overrides] = out / "last.ckpt"
        return made[overrides]

    images = Digits(size=8, channels=1).load("val").balanced(3)
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"digit{i}.png")
    train.photos = [str(folder / f"digit{i}.png") for i in range(3)]
    return train


BANSAL = ("model=bansal", "degradation=inpaint")


def restored(command, *arguments: str, cwd) -> str:
    done = command("restore", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def rows(out) -> list[dict[str, str]]:
    with open(out / "restore.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_it_degrades_and_restores_and_measures(command, trained, tmp_path):
    out = tmp_path / "out"
    restored(
        command,
        f"ckpt={trained(*BANSAL)}",
        f"images=[{','.join(trained.photos)}]",
        "level=2",
        f"out={out}",
        cwd=tmp_path,
    )
    table = rows(out)
    assert {row["way"] for row in table} == {"degraded", "algorithm_1", "algorithm_2", "direct"} and len(table) == 12
    assert all(float(row["psnr_db"]) > 0 and row["ssim"] for row in table)
    assert all((row["consistency_rms"] == "") == (row["way"] == "degraded") for row in table)
    assert len(list((out / "png").iterdir())) == 15 and (out / "restore.png").stat().st_size > 1000
    original = Image.open(trained.photos[1]).tobytes()
    assert Image.open(out / "png" / "true-001.png").tobytes() == original


@pytest.mark.long
def test_what_is_already_degraded_is_taken_as_it_is(command, trained, tmp_path):
    out = tmp_path / "out"
    restored(
        command,
        f"ckpt={trained(*BANSAL)}",
        f"images={trained.photos[0]}",
        "degraded=true",
        "ways=direct",
        f"out={out}",
        cwd=tmp_path,
    )
    table = rows(out)
    assert [row["way"] for row in table] == ["degraded", "direct"] and table[1]["psnr_db"] == ""
    assert not list((out / "png").glob("true*"))
    assert Image.open(out / "png" / "degraded-000.png").tobytes() == Image.open(trained.photos[0]).tobytes()


@pytest.mark.long
@pytest.mark.parametrize(("degradation", "ways"), [
    ("warm", ["algorithm_1", "algorithm_2", "direct"]), ("black_blur", ["own"]),
])  # fmt: skip
def test_a_model_with_latents_gives_several_samples(command, trained, tmp_path, degradation, ways):
    out = tmp_path / "out"
    restored(
        command,
        f"ckpt={trained('model=vwd', f'degradation={degradation}')}",
        f"images={trained.photos[0]}",
        "samples=3",
        "level=2",
        f"out={out}",
        cwd=tmp_path,
    )
    drawn = [f"{way}-{k}" for way in ways for k in (1, 2, 3)]
    assert [row["way"] for row in rows(out)] == ["degraded", *drawn]
    # by noise too: latents alone change a model of two steps by less than a byte
    assert len({(out / "png" / f"{ways[0]}-{k}-000.png").read_bytes() for k in (1, 2, 3)}) > 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["images=null"], "say what to restore"),
        (["level=9"], "level=9: choose from 1"),
        (["ways=[own]"], "ways: this Bansal cannot restore by own; it has algorithm_1, algorithm_2, direct"),
        (["degradation=blur"], "this checkpoint learned to undo Inpaint of 3 levels, not Blur of 3"),
        (["images=nowhere.png"], "images=nowhere.png"),
        (["samples=0"], "samples=0"),
    ],
)
def test_bad_input_is_one_sentence(command, trained, tmp_path, arguments, sentence):
    given = [f"ckpt={trained(*BANSAL)}", f"images={trained.photos[0]}", f"out={tmp_path / 'out'}"]
    keys = {argument.split("=")[0] for argument in arguments}
    given = [argument for argument in given if argument.split("=")[0] not in keys]
    done = command("restore", *given, *arguments, cwd=tmp_path)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_other_settings_of_the_same_degradation_are_taken_with_a_warning(command, trained, tmp_path):
    out = tmp_path / "out"
    said = restored(
        command, f"ckpt={trained(*BANSAL)}", f"images={trained.photos[0]}", "degradation=inpaint", "degradation.centre=fixed",
        f"out={out}", cwd=tmp_path,
    )  # fmt: skip
    assert "not those of training" in said
    assert len(rows(out)) == 4
