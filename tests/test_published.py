"""Published settings: what every experiment composes to, the encoder's size, the pixels VCD keeps, Bansal's averaging."""

import math

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from vcd.callbacks.ema import EMA
from vcd.degradations.pixelate import Pixelate
from vcd.errors import UserError
from vcd.predictions import Xt
from vcd.schedules import pixel_factors
from vcd.starts import GMM

# beta, sigma and delta are in units of images in [-1, 1]: 4, 2 and 2 times the published ones.
FEUCHT = {
    "prediction._target_": "vcd.predictions.Xt", "degradation._target_": "vcd.degradations.compose.Compose",
    "schedule._target_": "vcd.schedules.Cosine", "injection._target_": "vcd.networks.injection.EmbConcat",
    "injection.nonlinear": False, "prior._target_": "vcd.priors.Shared", "optimizer.lr": 1e-4, "optimizer.betas": [0.9, 0.99],
    "scheduler.factor": 0.75, "ema_decay": 0.998, "callbacks.ema.every": 1, "callbacks.ema.start": 0, "dataset.flip": False,
    "trainer.gradient_clip_val": None, "sampler._target_": "vcd.samplers.Sequential", "sampler.delta": 0.0,
    "network.unet.film": False, "network.unet.heads": 1, "network.encoder.width": 0.5,
}  # fmt: skip
MNIST = {
    "T": 6, "batch_size": 64, "model.beta": 0.016, "model.annealing": 0, "network.unet.dim": 64, "network.unet.mults": [1, 2, 2],
    "network.unet.attention": [2], "network.unet.blocks": 2, "network.unet.dropout": 0.1, "network.encoder.latent": 128,
    "network.encoder.mults": [1, 1, 1], "scheduler.every": 60_000 // 64 * 500, "trainer.max_steps": 936_000,
}  # fmt: skip
CIFAR10 = {
    "T": 6, "batch_size": 64, "model.beta": 0.016, "model.annealing": 20_000, "network.unet.dim": 64,
    "network.unet.mults": [1, 2, 2, 2], "network.unet.attention": [2, 3], "network.unet.blocks": 4,
    "network.unet.dropout": 0.1, "network.encoder.latent": 256, "network.encoder.mults": [1, 1, 1, 1],
}  # fmt: skip
AFHQ = {
    "T": 8, "batch_size": 32, "model.beta": 0.02, "model.annealing": 30_000, "network.unet.dim": 128,
    "network.unet.mults": [1, 2, 3, 4], "network.unet.attention": [2, 3], "network.unet.blocks": 2,
    "network.unet.dropout": 0.2, "network.encoder.latent": 512, "network.encoder.mults": [1, 1, 2, 2],
}  # fmt: skip
ROLLOUT = {"perturbation.p": 0.125, "perturbation.p_warmup": 0.3, "perturbation.warmup": 500, "perturbation.sigma": 0.0}
NOISE = {"perturbation.coherent": False}
RISSANEN = {
    "prediction._target_": "vcd.predictions.Xt", "perturbation.sigma": 0.02, "sampler.delta": 0.025, "optimizer.betas": [0.9, 0.999],
    "scheduler._target_": "vcd.learning_rates.constant", "scheduler.warmup": 5000, "trainer.gradient_clip_val": 1.0,
    "ema_decay": 0.999, "batch_size": 128, "trainer.max_steps": 1_300_000, "dataset.flip": False,
    "start._target_": "vcd.starts.TrainSet",
}  # fmt: skip
DDPM = {
    "model._target_": "vcd.models.ddpm.DDPM", "T": 1000, "optimizer.lr": 2e-4, "optimizer.betas": [0.9, 0.999],
    "scheduler.warmup": 5000, "trainer.gradient_clip_val": 1.0, "ema_decay": 0.9999, "batch_size": 128,
    "trainer.max_steps": 800_000, "dataset.flip": True,
}  # fmt: skip
BANSAL = {
    "model._target_": "vcd.models.bansal.Bansal", "sampler._target_": "vcd.samplers.Cold", "optimizer.lr": 2e-5,
    "optimizer.betas": [0.9, 0.999], "batch_size": 32, "trainer.accumulate_grad_batches": 2, "trainer.max_steps": 700_000,
    "trainer.gradient_clip_val": None, "ema_decay": 0.995, "callbacks.ema.every": 10, "callbacks.ema.start": 2000,
}  # fmt: skip
COLD = BANSAL | {"network.unet.dim": 64, "network.unet.mults": [1, 2, 4, 8]}
CELEBA = COLD | {"dataset.name": "celeba", "dataset.size": 128}
BLUR = "degradation._target_", "vcd.degradations.gaussian_blur.GaussianBlur"
EXPONENTIAL = {"kernel.sigma._target_": "vcd.schedules.exponential_sigma", "kernel.sigma.rate": 0.01}
HOLE = {
    "T": 50, "degradation.parts.inpaint.first": 0.1, "degradation.parts.inpaint.last": 5.0, "degradation.parts.quantise.bits": 8,
    "degradation.parts.inpaint.centre": "random", "degradation.parts.inpaint.fill": 0.0, "degradation.parts.inpaint.closes": False,
    "dataset.size": 32,
}  # fmt: skip
ENLARGED = {
    "degradation._target_": "vcd.degradations.downsample.Downsample",
    "T": 3,
    "degradation.factor": 8,
    "dataset.size": 32,
}
SNOW = {"degradation._target_": "vcd.degradations.snow.Snow", "T": 200, "sampler._target_": "vcd.samplers.Naive"}
PUBLISHED = {
    "vcd_mnist": FEUCHT | MNIST | ROLLOUT,
    "vcd_cifar10": FEUCHT | CIFAR10 | ROLLOUT,
    "vcd_afhq": FEUCHT | AFHQ | ROLLOUT,
    "vwd_mnist": FEUCHT | MNIST | NOISE | {"perturbation.sigma": 0.004},
    "vwd_cifar10": FEUCHT | CIFAR10 | NOISE | {"perturbation.sigma": 0.008},
    "vwd_afhq": FEUCHT | AFHQ | NOISE | {"perturbation.sigma": 0.01},
    "rissanen_mnist": RISSANEN | {"T": 100, "ihd.sigma_max": 20, "optimizer.lr": 2e-4},
    "rissanen_cifar10": RISSANEN | {"T": 200, "ihd.sigma_max": 24, "optimizer.lr": 2e-4},
    "rissanen_afhq": RISSANEN | {"T": 200, "ihd.sigma_max": 32, "optimizer.lr": 1e-4},  # of its 64-pixel model
    "bansal_afhq": BANSAL | EXPONENTIAL | {
        "T": 300, "kernel.size": 27, "kernel.padding": "circular", "start.noise": 0.004, "dataset.flip": True,
        "degradation.parts.quantise.bits": 8,
    },
    "bansal_celeba_blur": CELEBA | EXPONENTIAL | {
        "T": 300, "kernel.size": 27, "kernel.padding": "circular", "start.noise": 0.004, "degradation.parts.quantise.bits": 8,
    },
    "bansal_celeba_generate": CELEBA | {
        "T": 750, "degradation.first": 1.0, "degradation.last": pytest.approx(1 + 749 * 0.05), "degradation.closes": True,
        "degradation.fill": "random", "degradation.centre": "fixed", "start.noise": 1e-6,
    },
    "bansal_celeba_morph": CELEBA | {
        "T": 200, "degradation._target_": "vcd.degradations.morph.Morph", "degradation.source._target_": "vcd.data.afhq.AFHQ",
        "degradation.source.size": 128, "schedule._target_": "vcd.schedules.Cosine",
    },
    "bansal_mnist_deblur": COLD | dict([BLUR]) | {
        "T": 20, "kernel.size": 11, "kernel.padding": "circular", "kernel.sigma._target_": "vcd.schedules.constant_sigma",
        "kernel.sigma.value": 7, "dataset.size": 32,
    },
    "bansal_cifar10_deblur": COLD | dict([BLUR]) | {
        "T": 50, "kernel.size": 11, "kernel.padding": "reflect", "kernel.sigma._target_": "vcd.schedules.linear_sigma",
        "kernel.sigma.slope": 0.01, "kernel.sigma.offset": 0.35,
    },
    "bansal_celeba_deblur": CELEBA | dict([BLUR]) | EXPONENTIAL | {"T": 200, "kernel.size": 15, "kernel.padding": "reflect"},
    "bansal_mnist_inpaint": COLD | HOLE,
    "bansal_cifar10_inpaint": COLD | HOLE,
    "bansal_celeba_inpaint": CELEBA | {
        "T": 100, "degradation.first": 0.2, "degradation.last": 20.0, "degradation.centre": "fixed", "degradation.fill": 0.0,
        "degradation.closes": False,
    },
    "bansal_mnist_superres": COLD | ENLARGED,
    "bansal_cifar10_superres": COLD | ENLARGED,
    "bansal_celeba_superres": CELEBA | ENLARGED | {"T": 4, "degradation.factor": 16, "dataset.size": 128},
    "bansal_cifar10_snow": COLD | SNOW | {"degradation.strength": 3},
    "bansal_celeba_snow": CELEBA | SNOW | {"degradation.strength": 4},
    "bansal_cifar10_decolour": COLD | {
        "T": 20, "degradation._target_": "vcd.degradations.decolour.Decolour", "degradation.ratio": None,
    },
    "ddpm_cifar10": DDPM | {
        "prediction._target_": "vcd.predictions.Eps", "schedule._target_": "vcd.schedules.Linear", "sampler.eta": 1.0,
        "schedule.beta_start": 1e-4, "schedule.beta_end": 0.02,
    },
    "blurring_cifar10": DDPM | {
        "prediction._target_": "vcd.predictions.Eps", "schedule._target_": "vcd.schedules.Tangent", "schedule.limit": 10,
        "degradation._target_": "vcd.degradations.blur_noise.BlurNoise", "degradation.sigma_max": 20,
        "degradation.floor": 0.001, "weight": None, "sampler._target_": "vcd.samplers.DDIM", "sampler.eta": 1.0,
        "sampler.steps": None,
    },
    "soft_cifar10": DDPM | {
        "prediction._target_": "vcd.predictions.Difference", "degradation._target_": "vcd.degradations.soft.Soft",
        "degradation.noise_min": 0.01, "degradation.noise_max": 0.1, "degradation.rise": 0.25, "degradation.blur": 23.0,
        "weight._target_": "vcd.weights.Simple", "sampler._target_": "vcd.exact_steps.Momentum", "sampler.published": True,
    },
    "improved_ddpm_cifar10": {
        "T": 4000, "prediction._target_": "vcd.predictions.WithVariance", "prediction.weight": 0.001,
        "prediction.mean._target_": "vcd.predictions.Eps", "schedule._target_": "vcd.schedules.Cosine", "schedule.s": 0.008,
        "network.unet.dim": 128, "network.unet.blocks": 3, "network.unet.heads": 4, "network.unet.dropout": 0.3,
        "network.unet.mults": [1, 2, 2, 2], "network.unet.attention": [1, 2], "network.unet.film": True,
        "network.unet.outputs": 2, "optimizer.lr": 1e-4, "scheduler.warmup": 0, "batch_size": 128, "ema_decay": 0.9999,
        "dataset.flip": False, "trainer.gradient_clip_val": None,
        "trainer.max_steps": 500_000, "sampler._target_": "vcd.samplers.Ancestral", "sampler.v": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_a_published_experiment_composes_to_what_was_published(compose, experiment):
    cfg, absent = compose(f"experiment={experiment}"), object()
    for key, value in PUBLISHED[experiment].items():
        found = OmegaConf.select(cfg, key, default=absent)
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        assert found == value, f"{key}: {found}, published {value}"


def test_levels_are_drawn_as_the_originals_code_draws_them(compose):
    """The paper's vxt, in its code: s = t - 1 at every level."""
    prediction = instantiate(compose("experiment=vcd_mnist").prediction)
    t = torch.arange(1, 7)
    assert isinstance(prediction, Xt) and torch.equal(prediction.level(t), t - 1)


# --- the encoder -------------------------------------------------------------------------------------------------------


def published_encoder(
    size: int, channels: int, dim: int, mults: list[int], attention: list[int], blocks: int, latent: int
) -> int:
    """Weights of the original's encoder but for the embeddings: half the width, and half the multipliers, rounded up."""
    half = [(m + 1) // 2 * dim // 2 for m in mults]

    def conv(a: int, b: int, kernel: int = 3) -> int:
        return a * b * kernel**2 + b

    total, c = conv(2 * channels, half[0]), half[0]
    for resolution, width in enumerate(half):
        for _ in range(blocks):
            total += 2 * c + conv(c, width) + 2 * width + conv(width, width)  # norm, conv, norm, conv
            total += conv(c, width, 1) if c != width else 0
            c = width
            if resolution in attention:
                total += 2 * c + conv(c, 3 * c, 1) + conv(c, c, 1)
        if resolution < len(half) - 1:
            total, size = total + conv(c, c), (size + 1) // 2
    return total + 2 * (c * size**2 * latent + latent)


@pytest.mark.parametrize(("name", "size", "channels"), [("mnist", 28, 1), ("cifar10", 32, 3), ("afhq", 64, 3)])
def test_the_encoder_has_the_published_size(compose, name, size, channels):
    cfg = compose(f"experiment=vwd_{name}").network
    with torch.device("meta"):
        encoder: nn.Module = instantiate(cfg.encoder, _convert_="all")
    own = sum(p.numel() for n, p in encoder.named_parameters() if "embedding" not in n and ".emb." not in n)
    u = cfg.unet
    assert own == published_encoder(size, channels, u.dim, u.mults, u.attention, u.blocks, cfg.encoder.latent)


# --- pixelation --------------------------------------------------------------------------------------------------------


def original(x: torch.Tensor, factor: int) -> torch.Tensor:
    """By torch's own resizing: down by the factor, up to the size."""
    return F.interpolate(F.interpolate(x, scale_factor=1 / factor, mode="nearest"), size=x.shape[2:], mode="nearest")


@pytest.mark.parametrize(("T", "size"), [(6, 28), (6, 32), (8, 64), (27, 28)])
def test_published_pixelation_is_torchs_nearest_resizing_down_and_up(T, size):
    x = torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    D = Pixelate(T=T, size=size, published=True)
    for t, factor in enumerate(pixel_factors(T, size=size).tolist()):
        assert torch.equal(D(x, torch.full((3,), t)), original(x, factor)), (t, factor)


@pytest.mark.parametrize(
    ("T", "size", "sizes"),
    [
        (6, 28, {4: [7] * 4, 5: [14, 14], 6: [28]}),
        (6, 32, {3: [4] * 8, 4: [8] * 4, 5: [16] * 2, 6: [32]}),
        (8, 64, {3: [4] + [3] * 20, 4: [6, 5, 5] * 4, 6: [16] * 4, 7: [32] * 2, 8: [64]}),
    ],
)
def test_the_originals_blocks_are_as_equal_as_they_can_be(T, size, sizes):
    ramp = torch.arange(size).float() / size * 2 - 1
    x = ramp.expand(1, 1, size, size)  # a block shows one value, and two blocks never the same
    D = Pixelate(T=T, size=size, published=True)
    for t, expected in sizes.items():
        _, counts = D(x, torch.tensor([t]))[0, 0, 0].unique_consecutive(return_counts=True)
        assert counts.tolist() == expected


def test_images_smaller_than_the_factor_become_one_block():
    x = torch.rand(2, 1, 8, 8)
    D = Pixelate(T=6, size=8, published=True)  # its last factor is 8 / 2 + 5 = 9
    torch.testing.assert_close(D(x, torch.full((2,), 6)), x[:, :, :1, :1].expand_as(x), rtol=0, atol=1e-6)


def test_flat_starts_follow_what_the_degradation_leaves():
    """VCD's pixelation ends with the first pixel, not with the mean."""
    x = torch.rand(500, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    start = GMM(channels=1, size=28)
    start.fit(x.split(100), Pixelate(T=6, size=28, published=True))
    assert start.means.item() == pytest.approx(x[:, 0, 0, 0].mean().item(), abs=1e-5)
    assert start.factors.item() == pytest.approx(x[:, 0, 0, 0].std(correction=0).item(), abs=1e-4)


# --- averaging ---------------------------------------------------------------------------------------------------------


def follow(ema: EMA, weights: list[float]) -> float:
    """What the average is after these weights, one a step."""
    average = [torch.tensor([weights[0]])]
    for step, weight in enumerate(weights):
        ema._n = step + 1
        if ema.should_update(step_idx=step):
            ema._average(average, [torch.tensor([weight])], None)
    return average[0].item()


def test_every_and_start_average_as_cold_diffusion_did():
    """Steps 0, 10, 20, ... count; those before `start` copy the weights."""
    weights = [float(i) for i in range(2031)]
    expected = 1990.0  # the last copy
    for step in (2000, 2010, 2020, 2030):
        expected += 0.005 * (step - expected)
    assert follow(EMA(decay=0.995, every=10, start=2000), weights) == pytest.approx(expected, rel=1e-6)


def test_by_default_every_step_counts_from_the_first_on():
    weights, expected = [math.sin(i) for i in range(300)], math.sin(0)
    for n, weight in enumerate(weights, start=1):
        expected += (1 - min(0.9, (1 + n) / (10 + n))) * (weight - expected)
    assert follow(EMA(decay=0.9), weights) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"start": -1}])
def test_averaging_refuses_what_it_cannot_do(wrong):
    with pytest.raises(UserError, match="callbacks.ema"):
        EMA(decay=0.9, **wrong)
