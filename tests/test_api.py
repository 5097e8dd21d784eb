"""The front door: what `import vcd` offers, against the commands that do the same."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from PIL import Image

import vcd
from vcd import restoring, steering, training
from vcd.randomness import PerImage
from vcd.samplers import Sequential


@pytest.fixture(scope="module")
def model(trained) -> vcd.Trained:
    return vcd.load(trained.last, device="cpu")


class Curtain(vcd.Degradation):
    """A black curtain falls: at level t the upper t/T of the image is hidden."""

    def forward(self, x0, t, eps=None):
        hidden = torch.arange(x0.shape[2]) < (t * x0.shape[2] / self.T)[:, None]
        return torch.where(hidden[:, None, :, None], -1.0, x0)


def own(**parts) -> vcd.VCD:
    adam = partial(torch.optim.Adam, lr=3e-3)
    return vcd.VCD(degradation=Curtain(T=4), start=vcd.Black(size=8, channels=1), optimizer=adam, **parts)


def test_the_import_is_lazy_and_its_names_are_those_of_the_stub():
    code = "import sys, vcd; dir(vcd); print([m for m in ('torch', 'hydra', 'numpy') if m in sys.modules]); vcd.nothing"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout == "[]\n" and "module 'vcd' has no attribute 'nothing'" in said.stderr
    stub = Path(vcd.__file__).with_suffix(".pyi").read_text()
    assert {name for name in vcd.__all__ if f"as {name}\n" in stub or f"{name}:" in stub} == set(dir(vcd))
    assert all(getattr(vcd, name) is not None for name in vcd.__all__)


def test_samples_are_those_of_the_command(model, trained, here, tmp_path):
    assert here("sample", f"ckpt={trained.last}", "n=5", "seed=3", "device=cpu", f"out={tmp_path}/s").code == 0
    images = model.sample(5, seed=3)
    assert images.dtype == torch.uint8 and images.shape == (5, 1, 8, 8)
    assert np.array_equal(images.permute(0, 2, 3, 1), np.load(tmp_path / "s" / "samples.npy"))
    assert not torch.equal(images, model.sample(5, seed=4))
    assert (model.sample([4, 1], seed=3).int() - images[[4, 1]].int()).abs().max() <= 1  # up to rounding


def test_steps_are_for_this_call_and_are_checked(model):
    before = model.model.sampler
    with pytest.raises(
        vcd.UserError, match="sampler=sequential in 1 step asks for levels that prediction=xt does not give"
    ):
        model.sample(2, steps=1)
    with pytest.raises(vcd.UserError, match="steps=0"):
        model.sample(2, steps=0)
    assert model.model.sampler is before
    calm = model.sample(2, sampler=Sequential())
    assert not torch.equal(calm, model.sample(2)) and model.model.sampler is before  # the run's has noise


def test_temperature_is_for_this_call(model):
    cool = model.sample(4, temperature=0.5)
    assert torch.equal(cool, model.decode(model.draw(4, temperature=0.5)))
    assert model.model.temperature == 1 and not torch.equal(cool, model.sample(4))


def test_sequences_end_in_the_samples(model):
    levels, states = model.sequences(3, seed=1)
    assert levels == [3, 2, 1, 0] and states.shape == (3, 4, 1, 8, 8)
    assert torch.equal(states[:, -1], model.sample(3, seed=1))


def test_paths_decode_to_samples_and_exchange_is_that_of_steering(model):
    assert torch.equal(model.decode(model.draw(4, seed=2)), model.sample(4, seed=2))
    images, T = model.sample(4), model.T
    a, b = model.encode(images[:2]), model.encode(images[2:])
    assert torch.equal(model.exchange(images[:2], images[2:], range(1, T + 1)), model.decode(b))  # all of the source
    assert torch.equal(model.exchange(a, b, []), model.decode(a))
    mixed = steering.decode(steering.variational(model.model), steering.exchange(a, b, [2])).x0
    assert torch.equal(model.exchange(a, b, 2), model.model.space.decode(mixed))
    with pytest.raises(vcd.UserError, match="no level 4; choose from 1 to T=3"):
        model.exchange(a, b, 4)
    with pytest.raises(vcd.UserError, match="2 targets and 1 sources"):
        model.exchange(a, images[:1], 1)


def test_restoration_is_that_of_the_command(model, trained, here, tmp_path):
    clean = model.sample(1, seed=5)
    Image.fromarray(model.degrade(clean, 2)[0, 0].numpy()).save(tmp_path / "x.png")
    arguments = ["degraded=true", "level=2", "samples=1", "seed=6", "device=cpu", f"out={tmp_path}/r"]
    assert here("restore", f"ckpt={trained.last}", f"images={tmp_path}/x.png", *arguments).code == 0
    written = np.asarray(Image.open(tmp_path / "r" / "png" / "own-000.png"))
    assert model.ways == list(restoring.ways(model.model)) == ["own"]
    assert np.array_equal(model.restore(tmp_path / "x.png", 2, seed=7)[0, 0], written)  # its k-th is of seed + 1 + k
    with pytest.raises(vcd.UserError, match="way=direct: this VCD cannot restore so; it has own"):
        model.restore(clean, way="direct")
    for wrong in (clean.float(), clean[0], clean[..., :4]):
        with pytest.raises(vcd.UserError, match=r"this model takes torch.uint8 of shape \(n, 1, 8, 8\), or files"):
            model.restore(wrong)


def test_lightnings_way_to_load(trained, model):
    again = vcd.VCD.load_from_checkpoint(trained.last)
    assert type(again) is vcd.VCD and not again.training
    assert torch.equal(vcd.Trained(again).sample(2), model.sample(2))
    with pytest.raises(vcd.UserError, match="holds a VCD, not a VWD: take vcd.load"):
        vcd.VWD.load_from_checkpoint(trained.last)


def test_a_model_of_ones_own_trains_with_lightning_and_is_found_again(tmp_path, seed):
    model = own()
    data = vcd.DegradationDataModule(dataset=vcd.Digits(), degradation=model.degradation, prediction=model.prediction,
                                     batch_size=8, val_images=20)  # fmt: skip
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    with pytest.raises(vcd.UserError, match=r"Trainer\(max_steps=...\)"):
        L.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(model, data)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = L.Trainer(max_steps=3, accelerator="cpu", **quiet)
    trainer.fit(model, data)
    assert trainer.global_step == 3
    assert any(not torch.equal(before[name], value) for name, value in model.named_parameters())
    images = vcd.Trained(model).sample(2)
    assert images.shape == (2, 1, 8, 8)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    again = vcd.VCD.load_from_checkpoint(
        tmp_path / "mine.ckpt", degradation=model.degradation, start=vcd.Black(size=8, channels=1)
    )
    assert torch.equal(vcd.Trained(again).sample(2), images)
    with pytest.raises(vcd.UserError, match="was not written by vcd.train"):
        vcd.VCD.load_from_checkpoint(tmp_path / "mine.ckpt")


def test_what_constructors_take_for_granted_is_what_the_command_trains(compose):
    cfg = compose("model=vcd", "degradation=black_blur", "dataset=digits", "prior=independent", "T=4")
    built, mine = training.build(cfg), own()
    assert {k: v.shape for k, v in mine.network.state_dict().items()} == {
        k: v.shape for k, v in built.network.state_dict().items()
    }
    assert {k: v.shape for k, v in mine.encoder.state_dict().items()} == {
        k: v.shape for k, v in built.encoder.state_dict().items()
    }
    for part in ("perturbation", "sampler", "prediction"):
        assert type(getattr(mine, part)) is type(getattr(built, part))
        assert vars(getattr(mine, part)) == vars(getattr(built, part))
    assert (mine.beta, mine.annealing) == (built.beta, built.annealing)
    randomness = PerImage(0, range(2))
    assert torch.equal(mine.prior.sample(4, randomness.take()), built.prior.sample(4, randomness.take()))
