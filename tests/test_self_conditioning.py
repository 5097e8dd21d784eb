"""Self-conditioning: network and encoder read the xhat_0 of the step before; without it nothing is as much as carried."""

import pytest
import torch
from conftest import TINY, scramble

from vcd import steering, training
from vcd.batch import Condition, Degraded
from vcd.errors import UserError
from vcd.randomness import PerImage
from vcd.self_conditioning import SEEN

pytestmark = pytest.mark.usefixtures("seed")
ON = "network.unet.self_conditioning=true"


@pytest.fixture
def build(compose):
    return lambda *overrides: scramble(training.build(compose(*TINY, *overrides)).eval(), 0.1)


def batch_at(model, t: list[int]) -> Degraded:
    x0, levels = torch.rand(len(t), 1, 8, 8) * 2 - 1, torch.tensor(t)
    D, s = model.degradation, torch.zeros(len(t), dtype=torch.long)
    eps = D.draw(x0)
    return Degraded(x0, levels, s, D(x0, levels, eps), x0, eps, torch.zeros_like(s))


def watched(monkeypatch, part) -> list[torch.Tensor | None]:
    """The estimate that each call of the network, or of the encoder, reads."""
    seen, forward = [], part.forward

    def watching(x_t, *others):
        last = others[-1]
        seen.append(last.x0hat if isinstance(last, Condition) else last if len(others) > 3 else None)
        return forward(x_t, *others)

    monkeypatch.setattr(part, "forward", watching)
    return seen


@pytest.mark.parametrize("model", ["vwd", "vcd", "plain"])
def test_every_step_reads_what_the_step_before_saw(build, monkeypatch, model):
    ours = build(f"model={model}", ON, "T=4")
    network, encoder = watched(monkeypatch, ours.network), watched(monkeypatch, ours.encoder)
    path = ours.sample(PerImage(0, range(3)))
    assert network[0] is None and len(network) == 4
    # x0hat[i] is seen from levels[i + 1]; the step at level t reads that of t + 1
    for i, read in enumerate(network[1:]):
        torch.testing.assert_close(read, path.x0hat[3 - i], rtol=0, atol=0)
    network.clear()
    ours.encode_path(torch.rand(3, 1, 8, 8), PerImage(0, range(3)))
    assert [a is b for a, b in zip(network, encoder, strict=True)] == [True] * 4


def test_what_it_reads_matters_and_an_image_is_still_its_own_randomness(build):
    ours = build("model=vwd", ON)
    t, x = torch.tensor([2, 2]), torch.randn(2, 1, 8, 8)
    outs = [
        ours.restore(x, t, 0 * t, Condition(x0hat=seen)) for seen in (None, torch.zeros_like(x), torch.ones_like(x))
    ]
    assert torch.equal(outs[0], outs[1]) and (outs[0] - outs[2]).abs().mean() > 1e-3
    some, alone = ours.sample(PerImage(0, range(5))).x0, ours.sample(PerImage(0, [3])).x0
    torch.testing.assert_close(some[3:4], alone, rtol=0, atol=1e-5)


def test_a_path_that_was_encoded_is_decoded_to_the_same_image(build):
    ours = build("model=vwd", ON)
    path, _ = steering.encode(ours, torch.rand(4, 1, 8, 8) * 2 - 1, PerImage(0, range(4)), 1.0)
    encoded = ours.encode_path(torch.rand(4, 1, 8, 8) * 2 - 1, PerImage(0, range(4)))
    again = ours.walk(encoded.x_T, encoded.noise, latents=encoded.z).x0
    torch.testing.assert_close(again, encoded.x_0, rtol=0, atol=1e-5)
    assert steering.decode(ours, path, keep=2).x0.isfinite().all()


def test_training_shows_the_estimate_from_the_level_above_to_most_images(build, monkeypatch):
    ours = build("model=plain", ON).train()
    assert ours.degradation.T == 3
    batch = batch_at(ours, [1, 2, 3] * 400)
    network = watched(monkeypatch, ours.network)
    ours.losses(batch).total.backward()
    assert len(network) == 2 and network[0] is None  # what makes the estimate reads none itself
    shown = network[1].flatten(1).abs().sum(1) > 0
    assert not shown[batch.t == 3].any()  # there is no step before
    assert shown[batch.t < 3].float().mean().item() == pytest.approx(SEEN, abs=0.05)
    assert not network[1].requires_grad and ours.training
    network.clear()
    ours.eval()
    with torch.no_grad():
        ours.losses(batch)
    assert (network[1].flatten(1).abs().sum(1) > 0).equal(batch.t < 3)


def test_without_it_nothing_is_carried(build, monkeypatch):
    ours = build("model=vwd")
    network, encoder = watched(monkeypatch, ours.network), watched(monkeypatch, ours.encoder)
    ours.sample(PerImage(0, range(2)))
    ours.encode_path(torch.rand(2, 1, 8, 8), PerImage(0, range(2)))
    ours.losses(batch_at(ours, [1, 2, 3]))
    assert set(network) == set(encoder) == {None} and len(network) == 7


@pytest.mark.parametrize(("overrides", "sentence"), [
    (["model=ddpm", "sampler.steps=3"], "model=ddpm is not trained with it"),
    (["model=vcd", "degradation=black_blur"], "take prediction=x0 and sampler=cold"),
])  # fmt: skip
def test_it_is_refused_where_no_step_sees_the_clean_image(compose, overrides, sentence):
    with pytest.raises(Exception, match="self_conditioning=true") as caught:
        training.build(compose(*TINY, *overrides, ON))
    assert sentence in str(caught.value) and (isinstance(caught.value, UserError) or caught.value.__cause__ is not None)


@pytest.mark.parametrize(("overrides", "on"), [
    (["model=vcd", "dataset=cifar10"], True),
    (["model=vcd", "dataset=cifar10", "sampler.steps=4"], True),
    (["model=vwd", "dataset=cifar10"], False),
    (["model=vwd", "dataset=cifar10", "network.unet.self_conditioning=true"], True),
    (["model=vcd", "dataset=mnist"], False),
    (["model=vcd", "dataset=cifar10", "network.unet.self_conditioning=false"], False),
    (["model=vcd", "dataset=cifar10", "degradation=black_blur"], False),
    (["model=vcd", "dataset=cifar10", "prediction=xt"], False),
    (["model=vcd", "dataset=cifar10", "experiment=hot"], False),
    (["model=ddpm", "dataset=cifar10"], False),
    (["model=bansal", "dataset=cifar10", "degradation=warm"], False),
    (["experiment=vcd_cifar10"], False),
])  # fmt: skip
def test_in_colour_it_is_the_default_of_warm_vcd(compose, overrides, on):
    cfg = compose(*overrides, "network.unet.dim=8", "network.encoder.latent=4", "run_dir=nowhere")
    assert (cfg.model.network.self_conditioning, cfg.network.encoder.self_conditioning) == (on, on)
    assert training.build(cfg).self_conditioning is on
