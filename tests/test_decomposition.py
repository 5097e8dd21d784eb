"""`vcd.evaluate metrics=[decomposition]`: each row is what it says, on a tiny untrained model."""

import logging

import pytest
import torch
from conftest import TINY, scramble
from test_metrics import Given, evaluation, labelled, noise_images

from vcd import steering, training
from vcd.batch import Degraded
from vcd.images import to_float
from vcd.metrics import samples
from vcd.metrics.families import decomposition, distribution, truncation
from vcd.randomness import PerImage

N = 24


@pytest.fixture(scope="module")
def data():
    return Given(labelled(noise_images(40)), labelled(noise_images(30, seed=1)))


def built(compose, data, *overrides: str):
    torch.manual_seed(0)
    model = scramble(training.build(compose(*TINY, *overrides)), std=0.1).eval()
    model.start.fit([to_float(data.load("train").images)], model.degradation)
    return model


@pytest.fixture(scope="module")
def model(compose, data):
    return built(compose, data, "model=vwd", "degradation=black_blur", "prior=independent")


@pytest.fixture(scope="module")
def measured(model, data, tmp_path_factory):
    images, _ = samples.draw(model, 0, range(N), N, show=False)
    e = evaluation(data, images, tmp_path_factory.mktemp("d"), model=model)
    return e, {name: number.value for name, number in decomposition.measure(e).numbers.items()}


def test_it_has_a_row_for_every_source_of_latents_against_either_split(measured):
    _, numbers = measured
    rows = ("normal", "prior", "true_path", "own_path", "real")
    distances = [f"{row}_fcd_{N}{ending}" for ending in ("_heldout", "") for row in rows]
    assert list(numbers) == [*distances, "own_path_bits", "own_path_psnr"]


def test_the_prior_row_is_that_of_the_samples_and_with_standard_normal_latents_that_of_normal(measured):
    e, numbers = measured
    of_samples = {name: number.value for name, number in distribution.measure(e).numbers.items()}
    for ending in ("", "_heldout"):
        assert numbers[f"prior_fcd_{N}{ending}"] == of_samples[f"fcd_{N}{ending}"]
        assert numbers[f"normal_fcd_{N}{ending}"] == pytest.approx(of_samples[f"fcd_{N}{ending}"], abs=1e-6)


def test_the_real_row_is_of_other_images_than_the_reference(measured):
    e, numbers = measured
    a, b = (e.extractor.features(e.of(split).images, "all")[0] for split in ("train", "val"))
    heldout, train = e.comparisons[1], e.comparisons[0]
    assert numbers[f"real_fcd_{N}_heldout"] == pytest.approx(distribution.frechet(a[heldout.stand_ins], b), abs=1e-6)
    assert numbers[f"real_fcd_{N}"] == pytest.approx(distribution.frechet(b[train.stand_ins], a), abs=1e-6)


def test_the_own_path_decodes_to_what_encoding_arrives_at(model, data):
    images = data.load("train").images[:5]
    made, kl = decomposition._made(model, images, seed=3)
    path, nats = steering.encode(model, to_float(images), PerImage(3, range(5)), temperature=1.0)
    assert torch.equal(made["own_path"], model.space.decode(steering.decode(model, path).x0))
    torch.testing.assert_close(kl, nats)


@torch.no_grad()
def test_latents_of_the_true_path_are_asked_for_at_true_states(model, data, monkeypatch):
    """With no noise on the states, the encoder is shown D(x0, t) and D(x0, t - 1) and nothing else."""
    monkeypatch.setattr(model.sampler, "delta", 0.0)
    asked = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *a: asked.append(a) or encode(*a))
    x0, D = to_float(data.load("train").images[:4]), model.degradation
    z = decomposition._on_true_path(model, x0, PerImage(0, range(4)))
    assert [int(t[0]) for _, _, t, *_ in asked] == [3, 2, 1]
    for v, x_s, t, s, x0hat in asked:
        assert x0hat is None  # without self-conditioning
        batch = Degraded(x0, t, s, D(x0, t), D(x0, s), None, torch.zeros(4, dtype=torch.int64))
        assert torch.equal(v, batch.x_t) and torch.equal(x_s, batch.x_s)
    assert z.shape == (3, 4, model.prior.latent) and (z != 0).all()


def test_a_model_without_latents_has_nothing_to_decompose(compose, data, tmp_path, caplog):
    e = evaluation(data, noise_images(N), tmp_path, model=built(compose, data, "model=bansal"))
    with caplog.at_level(logging.WARNING):
        assert decomposition.measure(e).numbers == {}
    assert "Bansal has no latents" in caplog.text


def test_truncation_draws_the_same_images_at_every_temperature(measured):
    e, _ = measured
    drawn = truncation._drawn(e.model, e, 1.0)
    assert torch.equal(drawn, e.images) and not torch.equal(truncation._drawn(e.model, e, 0.5), e.images)


def test_truncation_has_a_row_for_every_temperature_and_the_one_of_the_samples_is_theirs(measured):
    e, _ = measured
    found = truncation.measure(e)
    rows = {row["temperature"]: row for row in found.curves["truncation"]}
    of_samples = {name: number.value for name, number in distribution.measure(e).numbers.items()}
    assert list(rows) == list(truncation.TEMPERATURES)
    assert rows[1.0]["precision"] == of_samples[f"precision_{N}"]
    assert (rows[1.0]["train"], rows[1.0]["val"]) == (of_samples[f"fcd_{N}"], of_samples[f"fcd_{N}_heldout"])
    best = rows[found.numbers[f"best_temperature_{N}"].value]
    assert best["val"] == min(row["val"] for row in rows.values())
    assert found.numbers[f"best_temperature_fcd_{N}"].value == best["train"]
