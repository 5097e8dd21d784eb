"""Checkpoints and unfinished runs of version 0.1 (tests/v0_1) load, sample and go on as they did."""

import copy
import importlib
import json
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from vcd import __version__, checkpoints
from vcd.cli import CONF
from vcd.errors import UserError
from vcd.migrations import RENAMED, migrate_config, migrate_state
from vcd.models.ddpm import DDPM
from vcd.models.plain import Plain
from vcd.models.vcd import VCD
from vcd.models.vwd import VWD
from vcd.randomness import PerImage

HERE = Path(__file__).parent / "v0_1"
SAMPLES = np.load(HERE / "samples.npz")
FINISHED = sorted(path.name.partition(".")[0] for path in HERE.glob("*.ckpt.xz"))
UNFINISHED = sorted(path.parent.name for path in HERE.glob("*/last.ckpt.xz"))


def unpack(packed: Path, path: Path) -> Path:
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path


@pytest.fixture
def old(tmp_path):
    """old(name): the checkpoint of a run of version 0.1."""

    def old(name: str) -> Path:
        packed = HERE / name / "last.ckpt.xz" if name in UNFINISHED else HERE / f"{name}.ckpt.xz"
        return unpack(packed, tmp_path / f"{name}.ckpt")

    return old


class PerImage0_1(PerImage):
    """The randomness of version 0.1: a generator of torch for every image."""

    def __init__(self, seed: int, indices: range):
        super().__init__(seed, indices)
        mixed = (np.random.SeedSequence((seed, i)).generate_state(1, np.uint64)[0] >> np.uint64(1) for i in indices)
        self.old = [torch.Generator().manual_seed(int(number)) for number in mixed]

    def __len__(self) -> int:
        return len(self.old)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in self.old])

    def uniform(self) -> torch.Tensor:
        return torch.cat([torch.rand(1, generator=g) for g in self.old])


def test_nothing_is_missing():
    assert len(FINISHED) == 10 and len(UNFINISHED) == 2 and set(SAMPLES) == {*FINISHED, *UNFINISHED}


@pytest.mark.parametrize("name", [*FINISHED, *UNFINISHED])
def test_old_checkpoints_give_the_same_samples(old, name):
    """A grey level apart at most: processors round differently."""
    model, _ = checkpoints.load(old(name))
    x0 = model.sample(PerImage0_1(3, range(8))).x0
    pixels = model.space.decode(x0).permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels.astype(int) - SAMPLES[name]).max() <= 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [("vcd", VCD), ("vwd", VWD), ("vcd_gaussian", VWD), ("vwd_rollout", VCD), ("vcd_none", Plain), ("ddpm_x0", DDPM)],
)
def test_an_old_model_is_called_what_it_is(old, name, kind):
    assert type(checkpoints.load(old(name))[0]) is kind


# Where a rollout starts is drawn otherwise since 0.2, from the same distribution; with 0.1's draw, every bit is the same.
AS_0_1 = """
import torch
from vcd.perturbations import Rollout

def starts(self, t, T, p):
    J = torch.floor(torch.log1p(-torch.rand(t.shape)) / torch.log1p(torch.tensor(-p)))
    kept = torch.rand(t.shape) < self.true_share
    return torch.where(kept, t, (t + J.clamp(max=self.longest or T).long()).clamp(max=T))

Rollout.starts = starts
from vcd.train import main
main()
"""


@pytest.mark.long
@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_run_goes_on_to_the_same_weights(tmp_path, name):
    """By the command that began it, in the folder that it left; what was the default of degradation is named."""
    folder = tmp_path / "runs" / name
    shutil.copytree(HERE / name, folder)
    unpack(folder / "last.ckpt.xz", folder / "last.ckpt")
    arguments = json.loads((folder / "status.json").read_text())["command"]
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent)}

    def run(*more):
        line = [sys.executable, "-c", AS_0_1, *arguments, *more]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)

    process = run()
    if name == "vcd_unfinished":
        assert process.returncode == 1 and "degradation._target_ is Compose there, here Soft" in process.stderr
        process = run("degradation=black_blur")
    assert process.returncode == 0, process.stderr
    assert "resuming at step 1" in process.stdout
    end = torch.load(folder / "last.ckpt", weights_only=True)
    expected = torch.load(unpack(HERE / name / "final.pt.xz", tmp_path / "final.pt"), weights_only=True)
    for part, weights in expected.items():
        weights = migrate_state(weights)
        assert end[part].keys() == weights.keys()
        for key, value in weights.items():
            if not key.startswith("prior."):  # is fitted afterwards, otherwise since 0.2
                torch.testing.assert_close(
                    end[part][key], value, rtol=0, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
                )
    assert end[checkpoints.VERSION] == __version__
    steps = [int(row.split(",")[0]) for row in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert sorted(set(steps)) == [4, 9, 14, 19, 24, 29, 34, 39]


# --- the tables -------------------------------------------------------------------------------------------------------


def config_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)[checkpoints.CONFIG]


def test_configs_are_migrated_without_touching_them(old):
    config = config_of(old("vcd"))
    before = copy.deepcopy(config)
    migrated = migrate_config(config)
    assert config == before and migrated != before
    assert migrate_config(migrated) == migrated


@pytest.mark.parametrize("model", ["vcd", "vwd", "plain", "ddpm", "bansal", "rissanen"])
def test_configs_of_today_pass_unchanged(compose, model):
    cfg = compose(f"model={model}", "run_dir=run")
    today = OmegaConf.to_container(cfg, resolve=True)
    assert migrate_config(today) == today


def test_what_moved_is_found_where_it_is_now(old):
    migrated = migrate_config(config_of(old("vcd")))
    for place in (migrated, migrated["model"]):
        assert place["sampler"]["delta"] == 0.1 and place["perturbation"]["longest"] == 2
        assert not {"delta", "most"} & place["perturbation"].keys()
        assert place["start"]["_target_"] == "vcd.starts.natural" and place["start"]["_partial_"] is True
    unet = migrated["model"]["network"]
    assert unet["injection"]["_partial_"] is True and "_partial_" not in unet
    assert migrated["model"]["encoder"]["width"] == migrated["network"]["encoder"]["width"] == 0.5


@pytest.mark.parametrize("target", RENAMED)
def test_renamed_parts_exist_under_their_new_names_alone(target):
    module, _, name = target.rpartition(".")
    assert not hasattr(importlib.import_module(module), name)
    assert callable(get_object(RENAMED[target]))


def test_only_the_buffers_of_noise_are_renamed():
    names = ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar", "alpha_bar")
    state = {f"degradation.{name}": name for name in names} | {"mine.alpha_bar": 1, "network.out.weight": 2}
    expected = {"degradation.signal": "sqrt_alpha_bar", "degradation.noise": "sqrt_one_minus_alpha_bar"}
    assert migrate_state(state) == expected | {"mine.alpha_bar": 1, "network.out.weight": 2}


# --- versions ---------------------------------------------------------------------------------------------------------


def written_by(version: object, old: Path) -> Path:
    checkpoint = torch.load(old, weights_only=True)
    torch.save({**checkpoint, checkpoints.VERSION: version}, old)
    return old


@pytest.mark.parametrize("version", ["0.3.0", "1.0.0", "0.10.0.dev1"])
def test_a_later_version_is_refused_in_a_sentence(old, version):
    with pytest.raises(
        UserError, match=rf"vcd.ckpt was written by vcd {version}, and this is {__version__}: update vcd"
    ):
        checkpoints.read(written_by(version, old("vcd")))


@pytest.mark.parametrize("version", ["", "two", "0.x", 2, ["0", "2"]])
def test_a_version_that_makes_no_sense_is_refused_in_a_sentence(old, version):
    with pytest.raises(UserError, match=r"vcd.ckpt was not written by vcd.train"):
        checkpoints.read(written_by(version, old("vcd")))


def test_an_old_checkpoint_written_again_is_one_of_today(old):
    path = old("ddpm_x0")
    model, _ = checkpoints.load(path)
    checkpoints.store_buffers(path, model)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint[checkpoints.VERSION] == __version__
    assert checkpoint[checkpoints.CONFIG] == migrate_config(checkpoint[checkpoints.CONFIG])
    again, _ = checkpoints.load(path)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
