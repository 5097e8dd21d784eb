"""Sampling by label: what a model is told in training and in sampling, and whether it does as it is told."""

import json

import pytest
import torch
from conftest import ROLLOUT, SHORT, TINY, scramble
from omegaconf import OmegaConf

import vcd
from vcd import __version__, checkpoints, identity, training
from vcd.batch import UNCONDITIONAL, UNTOLD, Condition, Degraded
from vcd.data.digits import Digits


@pytest.fixture(scope="module")
def told(compose, tmp_path_factory):
    """The checkpoint of a model with 10 classes, all weights random."""
    cfg = compose(
        "model=ddpm",
        *TINY[:1],
        "T=3",
        "network.unet.dim=8",
        "sampler.steps=3",
        "network.unet.classes=10",
        "run_dir=run",
    )
    model = scramble(training.build(cfg), std=0.2)
    path = tmp_path_factory.mktemp("told") / "last.ckpt"
    stored = {"state_dict": model.state_dict(), checkpoints.CONFIG: OmegaConf.to_container(cfg, resolve=True)}
    checkpoints.AtomicCheckpointIO().save_checkpoint({**stored, checkpoints.VERSION: __version__}, path)
    return path


def test_an_untold_label_is_no_label(told):
    network = vcd.load(told, device="cpu").model.network
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([3, 2, 1])
    nothing, untold = (network(x, t, t - 1, c) for c in (UNCONDITIONAL, Condition(label=torch.full((3,), UNTOLD))))
    torch.testing.assert_close(untold, nothing)
    mixed = network(x, t, t - 1, Condition(label=torch.tensor([4, UNTOLD, 4])))
    torch.testing.assert_close(mixed[1], nothing[1])
    assert (mixed[[0, 2]] - nothing[[0, 2]]).abs().amax((1, 2, 3)).min() > 1e-3


def test_a_share_of_the_images_is_trained_without_its_label(told):
    model = vcd.load(told, device="cpu").model.train()
    n, x = 4000, torch.zeros(4000, 1, 1, 1)
    t = torch.ones(n, dtype=torch.long)
    batch = Degraded(x, t, t - 1, x, x, None, torch.arange(n) % 10)
    for share in (0.1, 0.5, 0.0, 1.0):
        model.unlabelled = share
        found = model.told(batch).label
        dropped = found == UNTOLD
        assert abs(dropped.double().mean().item() - share) < 4 * (share * (1 - share) / n) ** 0.5 + 1e-9
        assert torch.equal(found[~dropped], batch.label[~dropped])
    assert torch.equal(model.eval().told(batch).label, batch.label)  # validation is told all
    model.train().network.classes = None
    assert model.told(batch) is batch


def test_labels_are_asked_for_by_image(told):
    model = vcd.load(told, device="cpu")
    threes, none = model.sample(4, label=3), model.sample(4)
    assert not torch.equal(threes, none) and torch.equal(threes, model.sample(4, label=[3, 3]))
    turns = model.sample(4, label=[3, 7])
    assert torch.equal(turns[[0, 2]], threes[[0, 2]]) and not torch.equal(turns[1], threes[1])
    close = (model.sample(4, label=[3, 7], batch=3).int() - turns.int()).abs().max()  # in turn over batches
    assert close <= 1
    assert torch.equal(model.sequences(2, label=[3, 7])[1][:, -1], model.sample(2, label=[3, 7]))
    for wrong in (10, -1, [3, 12]):
        with pytest.raises(vcd.UserError, match=r"label=(10|-1|12): this model knows the classes 0 to 9"):
            model.sample(2, label=wrong)
    with pytest.raises(vcd.UserError, match=r"label=\[\] is empty"):
        model.sample(2, label=[])


def test_a_model_without_labels_says_so(trained, here):
    sentence = r"label=...: this model knows no labels: train with network.unet.classes=10, the classes of the data"
    with pytest.raises(vcd.UserError, match=sentence):
        vcd.load(trained.last, device="cpu").sample(2, label=3)
    assert here("sample", f"ckpt={trained.last}", "label=3", "device=cpu").sentence == sentence


def test_latents_win_against_labels_and_that_is_said(compose):
    """Of VCD's digits after 500 steps with labels, 19 % were what was asked for; 10 % is chance."""
    model = training.build(compose("model=vcd", *TINY, "network.unet.classes=10", "prior=independent", "run_dir=run"))
    with pytest.raises(vcd.UserError, match="the latents of a VCD decide what an image shows"):
        vcd.Trained(model).sample(2, label=3)
    assert vcd.Trained(model).sample(2).shape == (2, 1, 8, 8)


def test_the_command_takes_labels(told, here, tmp_path):
    import numpy as np

    assert here("sample", f"ckpt={told}", "n=3", "label=[3,7]", "device=cpu", f"out={tmp_path}/s").code == 0
    images = vcd.load(told, device="cpu").sample(3, label=[3, 7])
    assert np.array_equal(images.permute(0, 2, 3, 1), np.load(tmp_path / "s" / "samples.npy"))
    assert json.loads((tmp_path / "s" / "sample.json").read_text())["label"] == [3, 7]
    assert "label=-1: it must be a class" in here("sample", f"ckpt={told}", "label=-1").sentence


def test_too_few_classes_are_said_before_training(here):
    said = here("train", *SHORT, *ROLLOUT, "network.unet.classes=7")
    assert said.sentence == "network.unet.classes=7, and the data has 10 classes: set network.unet.classes=10"


def test_runs_without_labels_stay_what_they_were(compose):
    """The key is younger than they are."""
    with_key = OmegaConf.to_container(compose("model=vcd", "run_dir=x"), resolve=True)
    before = {**with_key, "model": {k: v for k, v in with_key["model"].items() if k != "unlabelled"}}
    assert identity.digest(with_key) == identity.digest(before)
    assert identity.digest(compose("model=vcd", "run_dir=x", "model.unlabelled=0.3")) != identity.digest(before)


@pytest.mark.long
def test_a_model_that_was_trained_with_labels_does_as_it_is_told(command, tmp_path):
    arguments = ["dataset=digits", "model=ddpm", "network.unet.classes=10", "trainer.max_steps=500",
                 "trainer.accelerator=cpu", "trainer.val_check_interval=500", "run_dir=run"]  # fmt: skip
    process = command("train", *arguments, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    told = vcd.load(tmp_path / "run" / "last.ckpt", device="cpu")
    asked = list(range(10))
    images = told.sample(200, label=asked)
    classifier = _classifier()
    assert (classifier(Digits().load("val").images) == Digits().load("val").labels).double().mean() > 0.9
    right = (classifier(images) == torch.arange(200) % 10).double().mean().item()
    print(f"{right:.3f} of the images are what was asked for")
    assert right > 0.6  # chance is 0.1
    counts = classifier(told.sample(200)).bincount(minlength=10)
    assert (counts > 0).sum() >= 7  # without a label: all kinds


def _classifier():
    """A linear one, by scikit-learn: another network could share the model's mistakes."""
    from sklearn.linear_model import LogisticRegression

    train = Digits().load("train")
    fitted = LogisticRegression(max_iter=300).fit(train.images.flatten(1).numpy() / 255, train.labels.numpy())
    return lambda images: torch.from_numpy(fitted.predict(images.flatten(1).numpy() / 255))
