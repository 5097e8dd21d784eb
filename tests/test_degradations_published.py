"""Degradations of the literature: every published formula a second time by other means, and what each is known to keep."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hydra.utils import instantiate

from vcd.cli import explain
from vcd.data.digits import Digits
from vcd.degradations.blur_noise import BlurNoise
from vcd.degradations.compose import Compose
from vcd.degradations.decolour import Decolour, DecolourLab
from vcd.degradations.downsample import Downsample
from vcd.degradations.inpaint import Inpaint
from vcd.degradations.morph import Morph
from vcd.degradations.noise import Noise
from vcd.degradations.quantise import Quantise
from vcd.degradations.snow import Snow
from vcd.errors import UserError
from vcd.randomness import PerImage
from vcd.schedules import Cosine, Tangent
from vcd.spaces import to_float, to_uint8

HOLE = dict(first=0.1, last=5.0, centre="random", fill=0.0, closes=False)
pytestmark = pytest.mark.usefixtures("seed")


def images(n: int, channels: int, size: int) -> torch.Tensor:
    return torch.rand(n, channels, size, size) * 2 - 1


def every_level(T: int, each: int = 1) -> torch.Tensor:
    return torch.arange(T + 1).repeat_interleave(each)


# Inpainting


def mask(size: int, centre: tuple[float, float], std: list[float]) -> np.ndarray:
    """The product of 1 - G, G scaled to a maximum of 1 over the pixels, as the paper's code makes it."""
    i, j = np.mgrid[:size, :size]
    r = (i - centre[0]) ** 2 + (j - centre[1]) ** 2
    return np.prod([1 - np.exp(-r / (2 * s**2)) / np.exp(-r / (2 * s**2)).max() for s in std], axis=0)


@pytest.mark.parametrize("centre", [(0, 0), (3, 12), (15, 9)])
def test_the_hole_is_a_product_of_gaussians_around_its_centre(centre):
    D, x0 = Inpaint(T=7, size=16, **HOLE), images(8, 2, 16)
    eps = torch.tensor(centre, dtype=torch.float32).expand(8, 1, 1, 2)
    x_t = D(x0, every_level(7), eps)
    for t in range(8):
        m = mask(16, centre, np.linspace(0.1, 5, 7)[:t].tolist()) if t else np.ones((16, 16))
        torch.testing.assert_close(x_t[t], torch.from_numpy(m).float() * x0[t], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [9, 16])
def test_a_fixed_hole_is_in_the_middle_and_deterministic(size):
    D = Inpaint(T=5, size=size, first=0.2, last=3.0, centre="fixed", fill=-1.0, closes=False)
    assert not D.stochastic and D.draw(images(2, 1, size)) is None
    white = torch.ones(6, 1, size, size)
    m = (D(white, every_level(5)) + 1) / 2
    middle = ((size - 1) / 2,) * 2
    for t in range(1, 6):
        expected = mask(size, middle, np.linspace(0.2, 3, 5)[:t].tolist())
        torch.testing.assert_close(m[t, 0], torch.from_numpy(expected).float(), rtol=0, atol=1e-6)


def test_published_holes_leave_the_border():
    """In the middle of the image .60 of MNIST's and CIFAR-10's at 32 pixels survives, .53 of CelebA's at 128."""
    for size, T, first, last, left in ((32, 50, 0.1, 5.0, 0.60), (128, 100, 0.2, 20.0, 0.53)):
        D = Inpaint(T=T, size=size, first=first, last=last, centre="fixed", fill=0.0, closes=False)
        assert D(torch.ones(1, 1, size, size), torch.tensor([T])).mean() == pytest.approx(left, abs=0.005)


@pytest.mark.parametrize("first", [0.3, 1.0])
def test_a_closing_hole_ends_in_its_colour_everywhere(first):
    D = Inpaint(T=30, size=16, first=first, last=5.0, centre="fixed", fill="random", closes=True)
    x0 = images(31, 3, 16)
    colour = D.draw(x0, PerImage(0, range(31)))
    assert colour.shape == (31, 3, 1, 1) and colour.abs().max() <= 0.5 and colour.std() > 0.2
    assert torch.equal(D(x0, torch.full((31,), 30), colour), colour.expand_as(x0))
    m = D.mask(every_level(30), colour)
    assert (m.diff(dim=0) <= 1e-6).all()


@pytest.mark.parametrize("rounded", [False, True])
def test_the_centre_is_read_from_the_image(rounded):
    D, x0 = Inpaint(T=20, size=16, **HOLE), images(80, 3, 16)
    D = Compose(parts={"hole": D, "quantise": Quantise(T=20)}) if rounded else D
    t, eps = every_level(20)[1:].repeat(4), D.draw(x0)
    assert D.readable and torch.equal(D.infer(D(x0, t, eps), x0, t), eps)


def test_the_colour_is_read_from_the_image():
    D = Inpaint(T=20, size=16, first=1.0, last=5.0, centre="fixed", fill="random", closes=True)
    x0 = images(20, 3, 16)
    t, eps = every_level(20)[1:], D.draw(x0)
    torch.testing.assert_close(D.infer(D(x0, t, eps), x0, t), eps, rtol=0, atol=1e-5)


# Lower resolution


@pytest.mark.parametrize(("size", "T", "factor", "sides"), [(32, 3, 8, [16, 8, 4]), (64, 4, 16, [32, 16, 8, 4])])
def test_downsampling_is_torchs_interpolation_repeated(size, T, factor, sides):
    D, x0 = Downsample(T=T, size=size, factor=factor).double(), images(2, 3, size).double()
    x = x0
    for t, small in enumerate(sides, start=1):
        x = F.interpolate(F.interpolate(x, (small, small), mode="bicubic", align_corners=False), (size, size))
        torch.testing.assert_close(D(x0, torch.full((2,), t)), x, rtol=0, atol=1e-6)


# Colour


def walk(D, x0: torch.Tensor, restorer) -> torch.Tensor:
    """Algorithm 2 of cold diffusion, written out."""
    x = D(x0, torch.full((len(x0),), D.T))
    for level in range(D.T, 0, -1):
        t, s = (torch.full((len(x0),), at) for at in (level, level - 1))
        guess = restorer(x)
        x = x - D(guess, t) + D(guess, s)
    return x


def test_decolouring_keeps_the_channel_mean_whatever_the_restorer():
    D, x0 = Decolour(T=20, channels=3), images(4, 3, 8)
    x = walk(D, x0, torch.randn_like)
    torch.testing.assert_close(x.mean(1), x0.mean(1), rtol=0, atol=1e-5)
    assert (x - x0).abs().max() > 0.5  # the restorer was wrong


def test_one_step_of_decolouring_errs_by_its_share_of_the_restorers_error():
    D, x0, guess = Decolour(T=20, channels=3), images(4, 3, 8), images(4, 3, 8)
    t, s = torch.full((4,), 13), torch.full((4,), 8)
    error = D(x0, t) - D(guess, t) + D(guess, s) - D(x0, s)
    wrong = guess - x0
    torch.testing.assert_close(error, 5 / 20 * (wrong - wrong.mean(1, keepdim=True)), rtol=0, atol=1e-6)


def test_colour_by_a_ratio():
    D, x0 = Decolour(T=20, channels=3, ratio=0.9), images(1, 3, 8)
    mean = x0.mean(1, keepdim=True)
    torch.testing.assert_close(D(x0, torch.tensor([7])), mean + 0.9**7 * (x0 - mean), rtol=0, atol=1e-6)


def test_lab_keeps_the_lightness():
    """L* of the sRGB primaries is 53.24, 87.73 and 32.30 (CIE); a grey of that lightness has all channels alike."""
    D = DecolourLab(T=20, channels=3)
    primaries = 2 * torch.eye(3)[:, :, None, None] - 1
    grey = (D(primaries, torch.full((3,), 20)) + 1) / 2
    assert grey.std(1).max() < 1e-3
    light = ((grey.mean((1, 2, 3)) + 0.055) / 1.055) ** 2.4
    torch.testing.assert_close(116 * light ** (1 / 3) - 16, torch.tensor([53.24, 87.73, 32.30]), rtol=0, atol=0.05)
    half = D(primaries, torch.full((3,), 10))
    assert (half[0, 0] > half[0, 1] + 0.2).all()  # still red


def test_grey_images_have_no_colour_to_lose(compose):
    for name in ("decolour", "decolour_lab"):
        with pytest.raises(Exception) as caught:
            instantiate(compose(f"degradation={name}", "dataset=digits").degradation)
        assert explain(caught.value, "train").startswith("degradation=decolour needs images with colour")


# Snow


@pytest.mark.parametrize("strength", [1, 2, 3, 4])
def test_snow_by_other_means(strength):
    D, x0, T = Snow(T=9, strength=strength), images(10, 3, 20), 9
    eps = D.draw(x0, PerImage(0, range(10)))
    assert set(eps[:, 1].unique().tolist()) == {0.0, 1.0}
    x_t, flakes = D(x0, every_level(T), eps), D.flakes
    for t in range(1, T + 1):
        share = (t - 1) / (T - 1)
        threshold, fall, clear = (a + share * (b - a) for a, b in (flakes.threshold, flakes.fall, flakes.clear))
        field = eps[t, 0].double().numpy()
        layer = np.clip(np.where(field >= threshold, field, 0), 0, 1)
        offset = np.arange(flakes.kernel) - flakes.kernel // 2
        taps = np.exp(-(offset**2) / (2 * fall**2))
        layer = scipy.ndimage.convolve1d(
            layer, taps / taps.sum(), axis=0 if eps[t, 1, 0, 0] > 0.5 else 1, mode="nearest"
        )
        x = (x0[t].double().numpy() + 1) / 2
        bright = np.maximum(x, 1.5 * x.mean(0) + 0.5)
        expected = np.clip(clear * x + (1 - clear) * bright + layer + np.rot90(layer, 2), 0, 1)
        torch.testing.assert_close(x_t[t].double(), torch.from_numpy(2 * expected - 1), rtol=0, atol=1e-5)


def test_snow_is_a_draw_of_every_image_and_cannot_be_read():
    D, x0 = Snow(T=9, strength=3), images(4, 3, 20)
    eps = D.draw(x0, PerImage(0, range(4)))
    assert torch.equal(eps[1:2], D.draw(x0[1:2], PerImage(0, [1]))) and not torch.equal(eps[0], eps[1])
    assert not D.readable
    with pytest.raises(UserError, match="cannot be read"):
        D.infer(x0, x0, torch.full((4,), 3))
    flakes_alone = Snow(T=9, strength=3, brighten=False)(x0, torch.full((4,), 9), eps)
    assert (flakes_alone >= x0 - 1e-6).all()


# Animorphosis


def digits() -> Digits:
    return Digits(size=8, channels=1)


def test_morphing_ends_in_images_of_the_other_set_at_any_size():
    D = Morph(T=5, size=12, channels=3, schedule=Cosine(), source=digits(), images=50)
    x0 = images(6, 3, 12)
    y = D.draw(x0, PerImage(0, range(6)))
    assert all(any(torch.equal(image, other) for other in D.others) for image in y)
    kept = Cosine().alpha_bar(5).float()
    x_t = D(x0, torch.arange(6), y)
    for t in range(6):
        torch.testing.assert_close(x_t[t], kept[t].sqrt() * x0[t] + (1 - kept[t]).sqrt() * y[t], rtol=0, atol=1e-6)
    torch.testing.assert_close(D.infer(x_t, x0, torch.arange(6))[1:], y[1:], rtol=0, atol=1e-5)


def test_a_checkpoint_of_morphing_needs_no_data():
    trained = Morph(T=5, size=8, channels=1, schedule=Cosine(), source=digits(), images=20)
    x0 = images(4, 1, 8)
    y = trained.draw(x0, PerImage(0, range(4)))
    source = digits()
    source.load = None  # calling it would raise
    loaded = Morph(T=5, size=8, channels=1, schedule=Cosine(), source=source, images=20)
    loaded.load_state_dict(trained.state_dict())
    assert torch.equal(loaded.draw(x0, PerImage(0, range(4))), y)


# Rounding


def test_rounding_is_that_of_files_and_idempotent():
    D, x, t = Quantise(T=3), images(64, 3, 8), torch.full((64,), 2)
    torch.testing.assert_close(D(x, t), to_float(to_uint8(x)), rtol=0, atol=1e-6)
    values = to_float(torch.arange(256, dtype=torch.uint8))[None, None, None]
    for some in (x, values):
        once = D(some, t[: len(some)])
        assert torch.equal(D(once, t[: len(some)]), once)
    assert len(Quantise(T=3, bits=1)(x, t[: len(x)]).unique()) == 2


# Blur and noise


def test_blur_noise_without_blur_is_noise_and_its_step_ddpms():
    hot = Noise(T=10, schedule=Cosine()).double()
    blurred = BlurNoise(T=10, size=8, schedule=Cosine(), sigma_max=0.0).double()
    x0, eps, t, s = images(9, 2, 8).double(), torch.randn(9, 2, 8, 8).double(), torch.arange(2, 11), torch.arange(1, 10)
    x_t = hot(x0, t, eps)
    torch.testing.assert_close(blurred(x0, t, eps), x_t, rtol=0, atol=1e-6)
    ours, theirs = blurred.posterior(x_t, x0, t, s), hot.posterior(x_t, x0, t, s)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.std.expand(9, 1, 8, 8), theirs.std.expand(9, 1, 8, 8), rtol=0, atol=1e-6)


def test_the_tangent_schedule_is_blurring_diffusions():
    u = np.arange(1, 101) / 100
    b = np.arctan(np.exp(-5))
    log_snr = -2 * np.log(np.tan((np.arctan(np.exp(5)) - b) * u + b))
    kept = Tangent().alpha_bar(100)
    np.testing.assert_allclose(kept[1:], 1 / (1 + np.exp(-log_snr)), rtol=1e-10)
    assert kept[0] == 1 and Tangent().fade(100)[-1] == 0


# Bad input


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Inpaint(T=5, size=8, **{**HOLE, "centre": "left"}), "degradation.centre=left: choose random or fixed"),
        (lambda: Inpaint(T=5, size=8, **{**HOLE, "fill": "red"}), "degradation.fill=red"),
        (lambda: Inpaint(T=5, size=8, **{**HOLE, "fill": "random"}), "cannot both be random"),
        (lambda: Inpaint(T=5, size=8, **{**HOLE, "first": 9.0}), "need 0 < first <= last"),
        (lambda: Downsample(T=5, size=8, factor=9), "degradation.factor=9"),
        (lambda: Decolour(T=5, channels=3, ratio=1.5), "degradation.ratio=1.5"),
        (lambda: Snow(T=5, strength=5), "degradation.strength=5: choose from 1, 2, 3, 4"),
        (lambda: Quantise(T=5, bits=0), "degradation.bits=0"),
        (lambda: Morph(T=5, size=8, channels=1, schedule=Cosine(), source=digits(), images=0), "degradation.images=0"),
    ],
)
def test_what_cannot_be_is_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.parametrize("sampler", ["cold", "naive"])
def test_snow_with_a_sampler_that_must_read_it_is_refused_before_training(compose, sampler):
    from vcd import training

    def build(sampler: str):
        return training.build(
            compose("model=bansal", "degradation=snow", "T=5", "dataset=digits", f"sampler={sampler}")
        )

    with pytest.raises(UserError, match=r"cannot be read from an image: take sampler=one_shot"):
        build(sampler)
    build("one_shot")
