"""A model that diverges: no command makes black pictures or numbers of what is NaN or infinite."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY

from vcd import training
from vcd.callbacks.pictures import Pictures
from vcd.errors import NotFinite
from vcd.spaces import Bins, Pixels, to_uint8

SUBJECT = {"model": "VCD", "parameters": 1000, "images_seen": 320, "steps": 20, "training_seed": 0}
NUMBER = {"value": 1.0, "better": "lower", "floor": None, "unit": "", "protocol": {}}
METRICS = {"subject": SUBJECT, "metrics": {"fcd_50": NUMBER}, "curves": {}}


@pytest.fixture(scope="module")
def diverging(trained, tmp_path_factory) -> Path:
    """A run folder whose weights are finite, and whose network leads beyond all numbers."""
    folder = tmp_path_factory.mktemp("diverging") / trained.last.parent.name
    shutil.copytree(trained.last.parent, folder, ignore=shutil.ignore_patterns("*.png", "pictures"))
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    for state in ("state_dict", "current_model_state"):
        checkpoint[state]["network.out.bias"].fill_(3e38)
    torch.save(checkpoint, folder / "last.ckpt")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


TASKS = ("bands", "encode", "exchange", "interpolate", "reconstruct", "resample", "temperature")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "ckpt={run}/last.ckpt", "n=3", "out={out}"],
        *(["control", "ckpt={run}/last.ckpt", f"task={task}", "n=2", "images={digits}", "out={out}"] for task in TASKS),
        ["restore", "ckpt={run}/last.ckpt", "images={digits}", "out={out}"],
        ["evaluate", "ckpt={run}/last.ckpt", "metrics=spectrum", "n=4", "out={out}/metrics.json"],
        *(["evaluate", "ckpt={run}/last.ckpt", "images={digits}", f"metrics={name}", "restored=4", "out={out}/metrics.json"]
          for name in ("bound",)),
        pytest.param(["evaluate", "ckpt={run}/last.ckpt", "images={digits}", "metrics=restoration", "restored=4",
                      "out={out}/metrics.json"], marks=pytest.mark.long),
        ["refit", "ckpt={run}/last.ckpt", "prior.images=50", "prior.components=1", "out={out}/new.ckpt"],
        ["report", "run={run}", "n=2", "pairs=2", "out={out}/report.html"],
        ["compare", "runs=[{run}]", "evaluate=null", "n=2", "out={out}"],
    ],
    ids=lambda arguments: "-".join(a for a in arguments if "{" not in a and a[1] != "=").replace("=", "-"),
)  # fmt: skip
def test_no_command_makes_anything_of_it(diverging, here, tmp_path, arguments):
    from PIL import Image

    out, digits = tmp_path / "out", tmp_path / "digits"
    digits.mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 80 * i).save(digits / f"{i}.png")
    said = here(*(argument.format(run=diverging, out=out, digits=digits) for argument in arguments))
    assert "not finite" in said.sentence or "of the finite samples there are 0" in said.sentence
    made = {path.name for path in out.rglob("*") if path.is_file()}
    assert made <= {"sample.json", "table.md", "table.csv"}, made


def test_bytes_are_made_of_numbers_alone():
    for space in (Pixels(), Bins()):
        x = torch.zeros(4, 1, 2, 2)
        assert space.decode(x).unique().numel() == 1
        for i, odd in enumerate((torch.nan, torch.inf, -torch.inf)):
            x[i, 0, 1, 1] = odd
            with pytest.raises(NotFinite, match=rf"^{i + 1} of 4 images are not finite"):
                space.decode(x)
    with pytest.raises(NotFinite):
        to_uint8(torch.tensor(torch.nan))


def test_training_goes_on_without_the_pictures(compose, tmp_path, caplog):
    model = training.build(compose(*TINY, "model=vwd")).eval()
    pictures = Pictures(folder=tmp_path, n=3, rows=2)
    torch.nn.init.constant_(model.network.out.bias, 3e38)
    assert pictures.draw(model, tmp_path) is None and "no pictures: 3 of 3 images are not finite" in caplog.text
    torch.nn.init.zeros_(model.network.out.bias)
    assert [path.name for path in pictures.draw(model, tmp_path)] == ["samples.png", "sequences.png"]
