"""What a network is told besides the state: it stays with its image, in batches, rollouts and the U-Net."""

from contextlib import contextmanager
from dataclasses import fields
from functools import partial

import pytest
import torch
from conftest import scramble
from test_perturbations import SHAPE, Ramp, T, Teacher, batch_of, rollout
from torch import nn

from vcd.batch import UNCONDITIONAL, Condition, Degraded
from vcd.errors import UserError
from vcd.networks.injection import EmbConcat
from vcd.networks.unet import UNet
from vcd.randomness import PerImage
from vcd.samplers import Cold, Sequential

pytestmark = pytest.mark.usefixtures("seed")


# --- batches ----------------------------------------------------------------------------------------------------------


def numbered(n: int = 5) -> Degraded:
    """Every field says which row it is of."""
    rows = torch.arange(n)
    x = rows[:, None, None, None].float().expand(-1, 1, 2, 2)
    return Degraded(
        x, rows + 10, rows, x + 1, x + 2, x + 3, rows + 100, z=x[:, 0, 0] + 4, image=x + 5, weight=rows + 6.0
    )


@pytest.mark.parametrize(
    "rows", [[3, 0, 0], torch.tensor([3, 0, 0]), slice(1, 4), torch.tensor([True, False, True, False, True])]
)
def test_taking_rows_takes_them_of_every_field(rows):
    batch = numbered()
    expected = torch.arange(5)[rows]
    taken = batch.take(rows)
    for field in fields(batch):
        assert torch.equal(getattr(taken, field.name), getattr(batch, field.name)[rows]), field.name
    assert torch.equal(taken.label - 100, expected)
    image = torch.arange(5.0).view(5, 1, 1, 1)
    condition = Condition(torch.arange(5.0)[:, None], torch.arange(5), image, image)
    taken = condition.take(rows)
    for field in fields(condition):
        assert torch.equal(getattr(taken, field.name).flatten().long(), expected), field.name


def test_what_is_not_there_stays_away():
    assert UNCONDITIONAL.take([0, 1]) == UNCONDITIONAL == Condition(None, None, None)
    label = Condition(label=torch.arange(3))
    assert label.take([2]).z is None and label.take([2]).image is None and label.take([2]).label.tolist() == [2]
    batch = numbered()
    assert Degraded(**{**vars(batch), "eps": None}).take([1]).eps is None


def test_a_latent_joins_the_rest_of_the_condition():
    z, batch = torch.randn(5, 3), numbered()
    condition = batch.condition
    assert torch.equal(condition.label, batch.label) and condition.z is batch.z and condition.image is batch.image
    with_z = condition.given(z)
    assert with_z.z is z and with_z.label is condition.label and condition.z is batch.z
    assert with_z.given(None).z is None


# --- rollouts ---------------------------------------------------------------------------------------------------------


class Labelled(Teacher):
    """Wrong, at every step, by a function of the label alone."""

    def estimate(self, x_t, t, s, condition):
        way = x_t - (t - s)[:, None, None, None] * self.degradation.e
        return way + 0.1 * condition.label[:, None, None, None]


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_a_rollout_tells_the_teacher_of_each_image_its_own_label(p):
    model = Labelled(Ramp(T=T), Sequential())
    batch = batch_of(model.degradation, 300)
    batch = Degraded(**{**vars(batch), "label": torch.randperm(300) % 10})
    away = (rollout(p=p)(batch, model).network - batch.x_t).mean((1, 2, 3))
    steps = (T - batch.t).float()
    if p == 0:
        torch.testing.assert_close(away, 0.1 * steps * batch.label, rtol=0, atol=1e-5)
    else:  # fewer steps, but whole ones of the size that the label says
        taken = away[batch.label > 0] / (0.1 * batch.label[batch.label > 0])
        torch.testing.assert_close(taken, taken.round(), rtol=0, atol=1e-4)
        assert ((taken.round() >= 0) & (taken.round() <= steps[batch.label > 0])).all() and taken.max() > 1
    assert (away[batch.label == 0].abs() < 1e-5).all()


def test_a_sampler_hands_the_condition_on_whole():
    seen = []

    class Watching(Teacher):
        def estimate(self, x_t, t, s, condition):
            seen.append(condition)
            return x_t

    condition = Condition(label=torch.tensor([4, 2]), image=torch.randn(2, 1, 8, 8))
    latents = torch.randn(T, 2, 3)
    for sampler in (Sequential(), Cold()):
        seen.clear()
        sampler(
            Watching(Ramp(T=T), sampler),
            torch.zeros(2, *SHAPE),
            PerImage(0, range(2)),
            latents=latents,
            condition=condition,
        )
        assert len(seen) == T
        for t, c in zip(range(T, 0, -1), seen, strict=True):
            assert c.label is condition.label and c.image is condition.image and torch.equal(c.z, latents[t - 1])


class Dropping(Teacher):
    """A teacher with dropout, whose mode is noted at every look."""

    def __init__(self, degradation, sampler):
        super().__init__(degradation, sampler)
        self.dropout, self.modes = nn.Dropout(0.5), []

    def estimate(self, x_t, t, s, condition):
        self.modes.append(self.training)
        return self.dropout(x_t)

    @contextmanager
    def evaluating(self):
        training = self.training
        self.eval()
        yield
        self.train(training)


@pytest.mark.parametrize("warmup", [0, 10**9])
def test_the_teacher_does_not_drop_out_and_the_student_goes_on_doing_so(warmup):
    model = Dropping(Ramp(T=T), Sequential()).train()
    rollout(p=0.0, p_warmup=0.0, warmup=warmup)(batch_of(model.degradation, 12), model)
    assert model.modes and not any(model.modes) and model.training and model.dropout.training


# --- the U-Net --------------------------------------------------------------------------------------------------------

CLASSES, CONTEXT, LATENT, N = 10, 2, 3, 4


def unet(seed: int = 0, **changes) -> UNet:
    torch.manual_seed(seed)
    options = {"size": 8, "channels": 1, "T": T, "dim": 8, "mults": [1, 2], "attention": [1], "blocks": 1,
               "injection": partial(EmbConcat, latent=LATENT), **changes}  # fmt: skip
    return UNet(**options).eval()


@pytest.fixture
def given():
    t = torch.arange(N) % T + 1
    condition = Condition(torch.randn(N, LATENT), torch.tensor([3, 0, 9, 3]), torch.randn(N, CONTEXT, 8, 8))
    return (torch.randn(N, 1, 8, 8), t, t - 1), condition


def test_a_network_without_classes_and_context_is_the_one_it_was(given):
    """Parameters, and with them checkpoints, stay; what it is not built for, it does not read."""
    plain, told = unet(), unet(classes=CLASSES)
    assert "label_embedding.weight" not in plain.state_dict()
    assert set(told.state_dict()) - set(plain.state_dict()) == {"label_embedding.weight"}
    for name, value in plain.state_dict().items():
        assert torch.equal(value, told.state_dict()[name]), name  # drawn in the same order, from the same seed
    (x, t, s), condition = given
    scramble(plain)
    assert torch.equal(plain(x, t, s, condition), plain(x, t, s, Condition(z=condition.z)))


def test_the_label_begins_at_zero_and_is_then_read(given):
    (x, t, s), condition = given
    scrambled = scramble(unet(classes=CLASSES))
    with torch.no_grad():
        scrambled.label_embedding.weight.zero_()
        unknown = scrambled(x, t, s, Condition(z=condition.z))
        assert torch.equal(scrambled(x, t, s, Condition(condition.z, condition.label)), unknown)
        scramble(scrambled.label_embedding, seed=2)
        known = scrambled(x, t, s, Condition(condition.z, condition.label))
        assert ((known - unknown).abs().amax((1, 2, 3)) > 1e-3).all()
        other = condition.label.clone()
        other[1] = 5
        moved = (scrambled(x, t, s, Condition(condition.z, other)) - known).abs().amax((1, 2, 3))
        assert moved[1] > 1e-3 and moved[[0, 2, 3]].max() < 1e-5
    assert (unet(classes=CLASSES).label_embedding.weight == 0).all()


def test_no_image_is_an_image_of_zeros_and_a_given_one_is_read(given):
    (x, t, s), condition = given
    network = scramble(unet(context=CONTEXT))
    with torch.no_grad():
        unknown = network(x, t, s)
        assert torch.equal(network(x, t, s, Condition(image=torch.zeros_like(condition.image))), unknown)
        known = network(x, t, s, Condition(image=condition.image))
        assert ((known - unknown).abs().amax((1, 2, 3)) > 1e-3).all()
    with pytest.raises(UserError, match="an image of 2 channels, not 1; set network.unet.context"):
        network(x, t, s, Condition(image=x))


def test_permuting_the_batch_permutes_the_output(given):
    (x, t, s), condition = given
    network, order = scramble(unet(classes=CLASSES, context=CONTEXT)), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        out = network(x, t, s, condition)
        permuted = network(x[order], t[order], s[order], condition.take(order))
    torch.testing.assert_close(permuted, out[order], rtol=0, atol=1e-4)
    assert not torch.allclose(permuted, out, atol=1e-2)


def test_every_parameter_takes_part_and_learns(given):
    (x, t, s), condition = given
    network = scramble(unet(classes=CLASSES, context=CONTEXT)).train()
    network(x, t, s, condition).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert set(network.label_embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()) == {0, 3, 9}
