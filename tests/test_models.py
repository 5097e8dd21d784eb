"""A model says what it is, refuses what is another's, and a new one is one file and one yaml."""

import pytest
import torch
from conftest import SHORT, TINY

from vcd import checkpoints, training
from vcd.cli import explain
from vcd.randomness import PerImage

OWN = {"vcd": "rollout", "vwd": "gaussian", "plain": "none"}
BY = {"rollout": "vcd", "rollout_published": "vcd", "gaussian": "vwd", "gaussian_published": "vwd", "none": "plain"}


@pytest.mark.parametrize("perturbation", BY)
@pytest.mark.parametrize("model", OWN)
def test_a_model_takes_its_own_perturbation_and_names_whose_another_is(compose, model, perturbation):
    cfg = compose(*TINY, f"model={model}", f"perturbation={perturbation}")
    if BY[perturbation] == model:
        assert type(training.build(cfg)).__name__.lower() == model
        return
    with pytest.raises(Exception) as caught:
        training.build(cfg)
    sentence = explain(caught.value, "train")
    assert sentence.startswith(f"model={model} is trained on ") and f"perturbation={OWN[model]}" in sentence
    assert f"model={BY[perturbation]}" in sentence


@pytest.mark.parametrize("model", OWN)
def test_a_model_brings_its_own_perturbation(compose, model):
    built = training.build(compose(*TINY, f"model={model}"))
    assert type(built).__name__.lower() == model and built.has_latents
    assert built.sampler.delta == (0.0 if model == "plain" else compose(f"model={model}").perturbation.sigma)


@pytest.mark.parametrize("model", ["vcd", "vwd"])
def test_sampling_has_the_noise_of_training_unless_told(compose, model):
    assert training.build(compose(*TINY, f"model={model}", "perturbation.sigma=0.05")).sampler.delta == 0.05
    told = training.build(compose(*TINY, f"model={model}", "perturbation.sigma=0.05", "sampler.delta=0.08"))
    assert (told.perturbation.sigma, told.sampler.delta) == (0.05, 0.08)


MINE = '''
"""The mean squared error on the clean image: a model of one's own."""
from vcd.models.base import Diffusion, Losses

class Plainest(Diffusion):
    def losses(self, batch):
        out = self.network(batch.x_t, batch.t, batch.s, batch.condition)
        mse = (out - batch.x0).square().flatten(1).mean(1)
        return Losses(mse.mean(), {"loss": mse})
'''
YAML = """# @package _global_
# Mine.
defaults:
  - _parts@model
  - override /prediction: x0
  - override /sampler: cold
network:
  unet:
    injection: null
model:
  _target_: models_of_mine.Plainest
"""


@pytest.mark.long
def test_one_file_and_one_yaml_add_a_model(command, tmp_path, monkeypatch):
    (tmp_path / "models_of_mine.py").write_text(MINE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "plainest.yaml").write_text(YAML)
    short = [option for option in SHORT if not option.startswith("prior")]
    process = command("train", "--config-dir", str(tmp_path), *short, "model=plainest", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    ckpt = process.stdout.splitlines()[-1].split(maxsplit=1)[1]
    assert "digits-plainest-" in ckpt  # the run's folder says what was trained
    process = command("sample", f"ckpt={ckpt}", "n=4", "out=out", "trust=[models_of_mine]", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "out" / "samples.png").exists() and (tmp_path / "out" / "sequences.png").exists()
    monkeypatch.syspath_prepend(tmp_path)
    model, _ = checkpoints.load(ckpt, trust=["models_of_mine"])
    assert not model.has_latents and model.bound(torch.zeros(2, 1, 8, 8), PerImage(0, range(2))) is None
