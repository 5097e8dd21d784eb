"""Every model with every degradation: a loss and a sampling of two steps, or one sentence that says why not."""

import re

import pytest
import torch
from conftest import TINY, composition
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from vcd.batch import Degraded
from vcd.cli import CONF
from vcd.degradations.base import Degradation
from vcd.degradations.noise import Noise
from vcd.errors import UserError
from vcd.predictions import Xt
from vcd.randomness import PerImage
from vcd.samplers import DDIM, Naive
from vcd.schedules import Cosine

N, SHAPE = 3, (3, 8, 8)
COMPOSED = {"diffusevae", "autoencoder"}  # of other models: they have tests of their own
MODELS, DEGRADATIONS = (
    sorted({path.stem for path in (CONF / group).glob("[!_]*.yaml")} - COMPOSED) for group in ("model", "degradation")
)
SMALL = [o for o in TINY if not o.startswith("T=")] + ["T=2", "dataset.channels=3", "network.unet.mults=[1]", "network.unet.attention=[]",
         "prior=independent", "sampler.steps=null"]  # fmt: skip
GAUSSIAN = {"noise", "blur_noise", "soft", "warm", "downsample_noise", "pixelate_noise"}
REFUSED = {  # by model: which degradations, and why
    "ddpm": (set(DEGRADATIONS) - GAUSSIAN, "model=ddpm needs Gaussian noise .* for [A-Z][A-Za-z]+ take model="),
    "vdm": (set(DEGRADATIONS) - {"noise"}, "model=vdm (needs Gaussian|predicts the noise of plain) noise"),
    "bansal": ({"snow"}, "cannot be read from an image: take sampler=one_shot"),
}
pytestmark = pytest.mark.usefixtures("seed")


def degradation(name: str) -> DictConfig:
    given = [
        "sampler=sequential",
        "prediction=xt",
        f"degradation={name}",
        "schedule=cosine",
        "space=pixels",
        "T=2",
        "dataset=digits",
    ]
    return composition(*(f"+{choice}" for choice in given), "dataset.channels=3", config=None).degradation


def batch_of(D: Degradation, prediction) -> Degraded:
    x0, t = torch.rand(N, *SHAPE) * 2 - 1, torch.tensor([1, 2, 2])
    s, eps = prediction.level(t), D.draw(x0)
    return Degraded(x0, t, s, D(x0, t, eps), D(x0, s, eps), eps, torch.zeros(N, dtype=torch.long))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_every_degradation_that_it_can(compose, model):
    cold = ["degradation=black_blur"] if model in ("vcd", "vwd", "plain") else []
    cfg = compose(*SMALL, f"model={model}", *cold)
    parts = {k: instantiate(v) if isinstance(v, DictConfig) else v for k, v in cfg.model.items() if k != "_target_"}
    refused, why = REFUSED.get(model, (set(), ""))
    for name in DEGRADATIONS:
        D = instantiate(degradation(name))
        try:
            diffusion = get_class(cfg.model._target_)(degradation=D, **parts)
        except UserError as error:
            assert name in refused and re.search(why, str(error)), (name, error)
            if D.readable or model != "bansal":
                continue
            diffusion = get_class(cfg.model._target_)(degradation=D, **{**parts, "sampler": Naive(steps=1)})
        else:
            assert name not in refused, name
        batch = batch_of(D, diffusion.prediction)
        losses = diffusion.train().losses(batch)
        losses.total.backward()
        assert losses.total.isfinite() and all(v.shape == (N,) for v in losses.terms.values()), name
        diffusion.eval().start.fit([batch.x0], D)
        path = diffusion.sample(PerImage(0, range(N)))
        assert path.x0.shape == (N, *SHAPE) and path.x0.isfinite().all(), name
        assert path.levels.tolist() == ([0, 2] if diffusion.sampler.steps == 1 else [0, 1, 2]), name


def test_the_increment_that_undoes_noise_is_ddims_step():
    """model=rissanen on noise: the mean of x_s given x_t, which share their eps, for data N(0, v)."""
    D, n, v = Noise(T=4, schedule=Cosine()), 200_000, 0.3
    x0, t, s = v**0.5 * torch.randn(n, 1, 1, 1), torch.full((n,), 3), torch.full((n,), 2)
    eps = D.draw(x0)
    x_t, x_s = D(x0, t, eps), D(x0, s, eps)
    batch = Degraded(x0, t, s, x_t, x_s, eps, t)
    slope = (Xt().target(batch, x_t, D) * x_t).mean() / x_t.square().mean()  # of the best increment
    signal, noise = D.signal[3], D.noise[3]
    x0hat = signal * v / (signal**2 * v + noise**2) * x_t
    step = DDIM(eta=0.0, clip=False).degrade(D, x_t, x0hat, t, s, lambda: eps)
    torch.testing.assert_close(x_t + slope * x_t, step, rtol=0, atol=0.02)
