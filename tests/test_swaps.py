"""Every sampler on every trained model: it samples, or is refused with the reason."""

import pytest
from hydra.utils import instantiate

from vcd import training
from vcd.cli import CONF
from vcd.errors import UserError
from vcd.mistakes import explain
from vcd.randomness import PerImage

SAMPLERS = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))
COLD = {"cold", "naive", "one_shot"}  # they ask for the clean image and nothing else
ANY_NOISE = COLD | {"ddim", "ancestral", "large", "momentum"}  # also with a signal per frequency
NOISE = ANY_NOISE | {"euler", "heun", "dpm", "reverse_sde", "pc", "langevin"}
SERVED = {  # overrides of the training -> samplers that serve
    ("model=vcd",): ANY_NOISE,
    ("model=vcd", "degradation=black_blur"): {"sequential", "exact"},
    ("model=vwd", "degradation=black_blur", "prediction=vxt"): {"sequential", "exact"} | COLD,
    ("model=vwd", "experiment=hot"): NOISE,
    ("model=rissanen", "start.images=4"): {"sequential", "exact"},
    ("model=bansal",): COLD,
    ("model=bansal", "degradation=snow", "dataset.channels=3", "sampler=one_shot"): {"one_shot"},
    ("model=bansal", "degradation=noise"): NOISE,
    ("model=ddpm", "prediction=eps"): NOISE,
    ("model=ddpm", "prediction=eps_variance"): NOISE | {"learned"},
    ("model=ddpm", "prediction=v", "degradation=blur_noise"): ANY_NOISE,
    ("model=ddpm", "prediction=edm", "schedule=edm", "degradation.continuous=true"): NOISE,
    ("model=ddpm", "prediction=eps", "schedule=ve"): NOISE,
    ("model=vdm",): NOISE,
}


@pytest.mark.parametrize("overrides", SERVED, ids=" ".join)
def test_every_sampler_serves_a_model_or_says_why_not(compose, overrides):
    few = ["sampler.steps=3"] if "model=ddpm" in overrides else []
    tiny = ["dataset=digits", "T=6", "network.unet.dim=8", "network.encoder.latent=4"]
    model, served = training.build(compose(*tiny, *overrides, *few)).eval(), set()
    for name in SAMPLERS:
        node = compose(f"sampler={name}", config="sample").sampler
        node.steps = node.steps and min(node.steps, 3)
        if "repeats" in node:
            node.repeats = 2
        model.sampler = instantiate(node)
        try:
            model.sampler.check(model.degradation, model.prediction)
        except UserError as error:
            assert "sampler=" in str(error) and "take" in str(error), error
            assert name in str(error) or name in ("one_shot", "pc", "ancestral"), (
                error
            )  # options of naive, reverse_sde, ddim
            continue
        assert model.sample(PerImage(0, range(2)), keep=2).x0.isfinite().all(), name
        served.add(name)
    assert served == SERVED[overrides]


def test_a_schedule_belongs_to_the_weights(compose):
    """What cannot be swapped for a trained checkpoint is refused with the reason."""
    with pytest.raises(Exception) as caught:
        compose("schedule=ve", config="sample")
    sentence = explain(caught.value, "sample")
    assert all(words in sentence for words in ("schedule was chosen", "vcd.train schedule=", "prior, sampler"))
