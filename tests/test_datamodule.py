"""The order of the images, the levels and the degraded batches; resuming and sharing out."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from vcd.data.base import ImageData, Images
from vcd.data.datamodule import DegradationDataModule, Degraded
from vcd.data.draws import flipped
from vcd.data.stream import TrainStream, ValidationPairs
from vcd.degradations.fade import Fade
from vcd.degradations.noise import Noise
from vcd.errors import UserError
from vcd.levels import Stratified
from vcd.predictions import X0, VXt, Xt
from vcd.schedules import Cosine
from vcd.seeds import seeded
from vcd.spaces import to_float

T = 6
FADE = Fade(T=T, size=4, schedule=Cosine())
NOISE = Noise(T=T, schedule=Cosine())


def numbered(n: int) -> Images:
    """Images that carry their own number in every pixel but one column, so that a flip shows."""
    pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).repeat(1, 1, 4, 4)
    pixels[..., 0] = 255
    return Images(pixels, torch.arange(n) % 3, ("a", "b", "c"))


class Numbered(ImageData):
    def __init__(self, *, train: int, val: int) -> None:
        super().__init__(name="numbered", size=4, channels=1)
        self.sizes = {"train": train, "val": val}
        self.loaded: list[str] = []

    def _load(self, split):
        self.loaded.append(split)
        return numbered(self.sizes[split])


def module(train=50, val=20, degradation=FADE, prediction=None, **changes) -> DegradationDataModule:
    options = {"batch_size": 8, "steps": 10, "flip": False, "seed": 3, **changes}
    data = Numbered(train=train, val=val)
    return DegradationDataModule(dataset=data, degradation=degradation, prediction=prediction or VXt(), **options)


def validate(data: DegradationDataModule) -> list[Degraded]:
    return [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]


# --- the training stream --------------------------------------------------------------------------------------------


def stream(n: int, batch_size: int, steps: int = 10, seed: int = 3, **ranks: int) -> TrainStream:
    return TrainStream(numbered(n), batch_size=batch_size, steps=steps, seed=seed, **ranks)


@pytest.mark.parametrize(("n", "batch_size"), [(50, 8), (3, 8), (8, 8), (1, 4), (7, 50)])
def test_epochs_are_whole_permutations_and_no_batch_is_partial(n, batch_size):
    batches = list(stream(n, batch_size, steps=20))
    assert len(batches) == 20 and all(len(batch["images"]) == batch_size for batch in batches)
    order = torch.cat([batch["images"][:, 0, 0, 1] for batch in batches]).numpy()
    epochs = [order[i : i + n] for i in range(0, len(order) - n + 1, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert n < 7 or any((a != b).any() for a, b in pairwise(epochs))
    labels = torch.cat([batch["label"] for batch in batches]).numpy()
    assert np.array_equal(labels, order % 3)


def test_a_batch_depends_on_seed_and_position_alone():
    one, other = stream(50, 8), stream(50, 8, steps=1000)
    backwards = [other.index(k) for k in reversed(range(10))]
    assert all(np.array_equal(one.index(k), backwards[9 - k]) for k in range(10))
    assert not np.array_equal(one.index(0), stream(50, 8, seed=4).index(0))
    assert not np.array_equal(stream(50, 50, seed=3).index(1), stream(50, 50, seed=4).index(0))  # no seed + epoch


def test_the_state_is_the_position():
    straight = [batch["images"] for batch in stream(50, 8)]
    first = stream(50, 8)
    walk = iter(first)
    for _ in range(4):
        next(walk)
    second = stream(50, 8)
    second.load_state_dict(first.state_dict())
    assert len(second) == 10
    rest = [batch["images"] for batch in second]
    assert len(rest) == 6 and all(torch.equal(a, b) for a, b in zip(straight[4:], rest, strict=True))
    longer = stream(50, 8, steps=12)  # resumed with more steps
    longer.load_state_dict(second.state_dict())
    assert len(list(longer)) == 2
    assert len(list(second)) == 10 and second.position == 20  # asked again, it goes on


@pytest.mark.parametrize("other", [{"n": 51}, {"batch_size": 4}, {"seed": 4}])
def test_resuming_another_order_is_refused(other):
    with pytest.raises(UserError, match="cannot resume: the checkpoint was trained with"):
        stream(**{"n": 50, "batch_size": 8, "seed": 3, **other}).load_state_dict(stream(50, 8).state_dict())


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batch_of_one(world_size):
    whole = list(stream(50, 8))
    parts = [list(stream(50, 8, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for k, batch in enumerate(whole):
        for key in ("images", "label"):
            assert torch.equal(torch.cat([part[k][key] for part in parts]), batch[key])
    with pytest.raises(UserError, match="batch_size=8 .* multiple of 3"):
        stream(50, 8, rank=0, world_size=3)


# --- the validation pairs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 6, 20, 100])
@pytest.mark.parametrize("pairs", [1, 40, 10**6])
def test_levels_have_equal_shares_and_pairs_come_once(n, pairs):
    batches = list(ValidationPairs(numbered(n), T=T, batch_size=8, pairs=pairs))
    t = torch.cat([batch["t"] for batch in batches]).tolist()
    images = torch.cat([batch["images"][:, 0, 0, 1] for batch in batches]).tolist()
    counts = [t.count(level) for level in range(1, T + 1)]
    assert len(set(counts)) == 1 and sum(counts) == len(t) == T * math.ceil(min(pairs, n * T) / T)
    assert len(set(zip(images, t, strict=True))) == len(t)
    assert len({batch["seed"] for batch in batches}) == len(batches)
    assert len(batches) == len(ValidationPairs(numbered(n), T=T, batch_size=8, pairs=pairs))


def test_processes_share_the_validation():
    whole = list(ValidationPairs(numbered(20), T=T, batch_size=8, pairs=50))
    parts = [list(ValidationPairs(numbered(20), T=T, batch_size=8, pairs=50, rank=r, world_size=4)) for r in range(4)]
    assert {len(part) for part in parts} == {len(whole) + 1}  # 60 pairs instead of 54: equal shares for all
    assert len({part[0]["seed"] for part in parts}) == 4
    t = torch.cat([batch["t"] for part in parts for batch in part])
    assert torch.bincount(t)[1:].tolist() == [10] * T
    assert torch.equal(torch.cat([part[0]["images"] for part in parts]), whole[0]["images"])


# --- random choices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "levels"), [(64, 6), (12, 6), (4, 6), (1, 6), (16, 1000)])
def test_levels_are_spread_evenly_and_uniform(n, levels):
    torch.manual_seed(0)
    D = SimpleNamespace(T=levels, continuous=False)
    draws = torch.stack([Stratified().draw(n, D) for _ in range(2000)])
    assert draws.min() >= 1 and draws.max() <= levels
    for row in draws[:50]:
        counts = torch.bincount(row, minlength=levels + 1)[1:]
        assert counts.min() >= n // levels - 1 and counts.max() <= n // levels + 1
    mean, sd = (levels + 1) / 2, math.sqrt((levels**2 - 1) / 12)
    assert ((draws.double().mean(0) - mean).abs() < 5 * sd / math.sqrt(2000)).all()  # at every place of the batch
    if levels == 6:
        shares = torch.stack([(draws == level).double().mean(0) for level in range(1, 7)])
        assert ((shares - 1 / 6).abs() < 5 * math.sqrt(5 / 36 / 2000)).all()


def test_half_of_the_images_are_flipped():
    torch.manual_seed(0)
    x = to_float(numbered(200).images)
    y = flipped(x)
    same = (y == x).flatten(1).all(1)
    assert 60 < same.sum() < 140
    assert torch.equal(y[~same], x[~same].flip(-1))


def test_seeded_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    with seeded(5, torch.device("cpu")):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(5, torch.device("cpu")):
        assert torch.equal(torch.rand(3), first)


# --- the data module ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degradation", [FADE, NOISE], ids=["fade", "noise"])
@pytest.mark.parametrize("prediction", [X0(), Xt(), VXt()], ids=["x0", "xt", "vxt"])
def test_a_training_batch_is_degraded(degradation, prediction):
    data = module(degradation=degradation, prediction=prediction, batch_size=32)
    raw = next(iter(data.train_dataloader()))
    with torch.autocast("cpu", torch.bfloat16):
        batch = data.on_after_batch_transfer(raw, 0)
    assert torch.equal(batch.x0, to_float(raw["images"])) and torch.equal(batch.label, raw["label"])
    for image in (batch.x0, batch.x_t, batch.x_s):
        assert image.shape == (32, 1, 4, 4) and image.dtype == torch.float32 and not image.requires_grad
    assert ((batch.s >= 0) & (batch.s < batch.t) & (batch.t <= T)).all()
    assert (batch.eps is None) == (not degradation.stochastic)
    assert torch.equal(batch.x_t, degradation(batch.x0, batch.t, batch.eps))
    assert torch.equal(batch.x_s, degradation(batch.x0, batch.s, batch.eps))
    torch.testing.assert_close(batch.x_s[batch.s == 0], batch.x0[batch.s == 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("degradation", [FADE, NOISE], ids=["fade", "noise"])
def test_validation_repeats_itself_and_leaves_training_alone(degradation):
    data = module(degradation=degradation, flip=True, val_images=100)
    before = torch.get_rng_state()
    first = validate(data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    for a, b in zip(first, validate(data), strict=True):
        for key in ("x0", "t", "s", "x_t", "x_s", "label"):
            assert torch.equal(getattr(a, key), getattr(b, key))
        assert degradation is FADE or torch.equal(a.eps, b.eps)
    assert torch.bincount(torch.cat([batch.t for batch in first])).tolist() == [0] + [17] * T
    assert len(torch.unique(torch.cat([batch.s for batch in first]))) == T  # random s, not always the same
    assert all((batch.x0[..., 0] == 1).all() for batch in first)  # never flipped
    noise = [batch.eps for batch in first if batch.eps is not None]
    assert all(not torch.equal(a, b) for a, b in pairwise(noise))


def test_flips_are_for_training_and_only_if_asked():
    def flips(data):
        return sum(int((data.on_after_batch_transfer(b, 0).x0[..., 0] != 1).any()) for b in data.train_dataloader())

    assert flips(module(train=20, flip=True)) > 0 and flips(module(train=20, flip=False)) == 0


def test_images_are_loaded_once_and_pictures_are_balanced():
    data = module()
    data.prepare_data()
    data.setup("fit")
    data.setup("validate")
    _ = data.train_dataloader(), data.val_dataloader()
    assert sorted(data.dataset.loaded) == ["train", "val"]
    assert (len(data.train_images), len(data.val_images)) == (50, 20)
    pictures = data.picture_batch(6)
    assert torch.equal(pictures, to_float(numbered(20).images[:6]))  # labels 0 1 2 0 1 2


def test_numbers_that_cannot_be():
    for changes, match in (({"batch_size": 0}, "batch_size=0"), ({"steps": 0}, "steps is 0")):
        with pytest.raises(UserError, match=match):
            module(**changes).train_dataloader()
    with pytest.raises(UserError, match="val_images=0"):
        module(val_images=0).val_dataloader()


# --- under Lightning ------------------------------------------------------------------------------------------------


class Witness(L.LightningModule):
    """Trains one number, and writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.levels: list[int] = []

    def training_step(self, batch: Degraded, batch_idx: int):
        assert isinstance(batch, Degraded)
        self.seen.append(((batch.x0[:, 0, 0, 1] + 1) * 127.5).round().int().tolist())
        return (batch.x_t - self.weight).square().mean()

    def validation_step(self, batch: Degraded, batch_idx: int):
        self.levels += batch.t.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, steps: int, resume=None) -> Witness:
    """Train on 13 images, checkpoint every 4 steps, validate every 3."""
    witness = Witness()
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=3,
        check_val_every_n_epoch=None,
    )
    trainer.fit(witness, datamodule=module(train=13, steps=steps, val_images=12), ckpt_path=resume)
    assert trainer.global_step == steps
    return witness


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_in_the_middle_and_sees_the_same_images(tmp_path):
    straight = fit(tmp_path, steps=10)
    expected = [stream(13, 8).index(k).tolist() for k in range(10)]
    assert straight.seen == expected
    assert straight.levels == [*range(1, T + 1)] * 2 * 3  # three validations of twelve pairs
    assert fit(tmp_path, steps=10, resume=tmp_path / "step=4.ckpt").seen == expected[4:]
    assert fit(tmp_path, steps=12, resume=tmp_path / "step=8.ckpt").seen[:2] == expected[8:]
