"""Every conf/degradation is held to the laws of D(x0, t); each formula is computed a second time by other means."""

import copy
import math
from collections.abc import Iterator
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from conftest import composition
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.nn.functional import conv2d, pad

from vcd import schedules
from vcd.cli import CONF, explain
from vcd.degradations.base import Degradation
from vcd.degradations.blur import Blur, heat_table
from vcd.degradations.compose import Compose
from vcd.degradations.decolour import Decolour, DecolourLab
from vcd.degradations.downsample import Downsample
from vcd.degradations.fade import Fade
from vcd.degradations.gaussian_blur import GaussianBlur, kernel_table
from vcd.degradations.inpaint import Inpaint
from vcd.degradations.noise import Noise
from vcd.degradations.pixelate import Pixelate, block_mean_table
from vcd.degradations.quantise import Quantise
from vcd.degradations.separable import SeparableLinear
from vcd.degradations.severity import measure
from vcd.degradations.snow import Snow
from vcd.errors import UserError
from vcd.randomness import PerImage
from vcd.spaces import BLACK

NAMES = sorted(path.stem for path in (CONF / "degradation").glob("*.yaml"))
SETTINGS = [(8, 1, 1), (8, 3, 6), (28, 1, 6), (32, 3, 8)]  # size, channels, T
PARTIAL = (Inpaint, Decolour)  # for restoration: level T holds much of x0
NOT_LINEAR = (DecolourLab, Downsample, Snow, Quantise)  # or not free of aliasing
N = 18  # images, twice every level of the largest T


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def config(name: str, *overrides: str) -> DictConfig:
    given = [f"+degradation={name}", "+schedule=cosine", "+space=pixels", "+T=6", "+dataset=digits"]
    given = ["+sampler=sequential", "+prediction=xt", *given]  # whose defaults a degradation may set
    return composition(*given, *overrides, config=None)


def build(name: str, size: int = 28, T: int = 6, *overrides: str) -> Degradation:
    cfg = config(name, *overrides).copy()
    cfg.T, cfg.dataset.size = T, size
    return instantiate(cfg.degradation)


@cache
def smooth_images(n: int, channels: int, size: int) -> torch.Tensor:
    """Random, correlated over a few pixels as photographs are, in [-1, 1]."""
    rough = np.random.default_rng(0).normal(size=(n, channels, size, size))
    x = scipy.ndimage.gaussian_filter(rough, (0, 0, size / 12, size / 12), mode="wrap")
    return torch.from_numpy(np.tanh(x / x.std())).float()


def levels(n: int, T: int) -> torch.Tensor:
    return torch.arange(n) % (T + 1)


@pytest.fixture(scope="module", params=NAMES)
def built(request) -> list[tuple[Degradation, torch.Tensor]]:
    """A degradation and images, in every setting; grey has no colour to lose."""
    settings = [s for s in SETTINGS if s[1] == 3 or not request.param.startswith("decolour")]
    return [
        (build(request.param, size, T, f"dataset.channels={channels}"), smooth_images(N, channels, size))
        for size, channels, T in settings
    ]


@pytest.fixture
def cases(built) -> Iterator[tuple[Degradation, torch.Tensor]]:
    """These, one after the other; where one fails, pytest shows what was printed last."""

    def said() -> Iterator[tuple[Degradation, torch.Tensor]]:
        for D, x0 in built:
            print(f"T={D.T}, images {tuple(x0.shape)}")
            yield D, x0

    return said()


def test_all_of_them_are_there():
    parts = {"noise", "blur", "pixelate", "gaussian_blur"}
    assert parts | {"black"} | {f"black_{part}" for part in parts} <= set(NAMES)


# The laws


def test_level_0_is_the_image_itself(cases):
    for D, x0 in cases:
        assert torch.equal(D(x0, torch.zeros(N, dtype=torch.long), D.draw(x0)), x0)


def test_shape_dtype_and_values(cases):
    for D, x0 in cases:
        x_t = D(x0, levels(N, D.T), D.draw(x0))
        assert x_t.shape == x0.shape and x_t.dtype == torch.float32 and x_t.isfinite().all()


def test_a_row_does_not_depend_on_its_batch(cases):
    for D, x0 in cases:
        t, eps = levels(N, D.T), D.draw(x0)
        x_t = D(x0, t, eps)
        for i in range(N):
            solo = D(x0[i : i + 1], t[i : i + 1], None if eps is None else eps[i : i + 1])
            torch.testing.assert_close(solo[0], x_t[i], rtol=0, atol=1e-6)


def test_deterministic_where_it_says_so(cases):
    for D, x0 in cases:
        t, eps = levels(N, D.T), D.draw(x0)
        assert (eps is not None) == D.stochastic
        assert torch.equal(D(x0, t, eps), D(x0, t, eps))
        if D.stochastic:
            with pytest.raises(ValueError, match=r"eps=degradation.draw"):
                D(x0, t)
            seeded = [D.draw(x0, PerImage(3, range(N))) for _ in range(2)]
            assert torch.equal(*seeded) and len(seeded[0]) == N and seeded[0].ndim == 4
        else:
            assert torch.equal(D(x0, t), D(x0, t, torch.randn_like(x0)))
            assert D.infer(D(x0, t), x0, t) is None


def test_no_parameter_and_every_tensor_a_buffer(cases):
    for D, _ in cases:
        assert not list(D.parameters())
        for module in D.modules():
            assert not [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not any(buffer.requires_grad for buffer in D.buffers())


def test_it_moves_to_another_device_as_a_whole(cases):
    """On the meta device a tensor left behind on the CPU is an error."""
    for D, x0 in cases:
        x, eps = x0.to("meta"), D.draw(x0)
        x_t = copy.deepcopy(D).to("meta")(x, levels(N, D.T).to("meta"), None if eps is None else eps.to("meta"))
        assert x_t.device.type == "meta" and x_t.shape == x0.shape and x_t.dtype == torch.float32


def test_float32_under_autocast_and_from_half(cases):
    for D, x0 in cases:
        t, eps = levels(N, D.T), D.draw(x0)
        with torch.autocast("cpu", torch.bfloat16):
            x_t = D(x0, t, eps)
            assert torch.is_autocast_enabled("cpu")  # restored for what follows
        assert torch.equal(x_t, D(x0, t, eps))
        half = D(x0.bfloat16(), t, eps)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, D(x0.bfloat16().float(), t, eps), rtol=0, atol=0)


def test_severity_never_decreases(cases):
    for D, x0 in cases:
        severity = measure(D, x0, PerImage(0, range(N)))
        assert severity.distance[0] == 0 and severity.kept[0] == 1
        odd = any(isinstance(part, NOT_LINEAR) for part in D.modules())  # these may sharpen a contrast on the way
        if not odd:
            assert (severity.kept.diff() <= 1e-6).all()
            assert severity.kept[-1] < (1 if isinstance(D, PARTIAL) else 0.5)
        if odd or not D.stochastic:
            assert (severity.distance.diff() >= -1e-6).all()
        if isinstance(D, Pixelate):
            assert (severity.distance.diff() > 1e-3).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("black")])
def test_black_ones_end_exactly_black(name):
    D, x0 = build(name), smooth_images(4, 1, 28)
    assert (D(x0, torch.full((4,), D.T), D.draw(x0)) == BLACK).all()


@pytest.mark.parametrize("name", ["pixelate", "gaussian_blur"])
def test_the_channel_mean_ends_the_others(name):
    D, x0 = build(name, 32), smooth_images(4, 3, 32)
    mean = x0.mean((2, 3), keepdim=True).expand_as(x0)
    torch.testing.assert_close(D(x0, torch.full((4,), D.T)), mean, rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_computes_the_same_whatever_its_precision_is_set_to(name):
    D, x0 = build(name), smooth_images(N, 1, 28)
    t, eps = levels(N, D.T), D.draw(x0)
    expected = D(x0, t, eps)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cuda", torch.bfloat16):
            x_t = D.cuda()(x0.cuda(), t.cuda(), None if eps is None else eps.cuda())
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(x_t.cpu(), expected, rtol=0, atol=2e-6)


# Closed forms, in float64


def linear(table: torch.Tensor, x: torch.Tensor, t: int) -> torch.Tensor:
    return table[t] @ x @ table[t].T


@pytest.mark.parametrize("size", [8, 28, 32])
def test_blur_is_the_heat_equation_in_dct_space(size):
    sigma = schedules.log_sigma(6, sigma_min=1, sigma_max=size, repeat_last=True)
    table, x = heat_table(sigma, size), smooth_images(3, 2, size).double()
    f = math.pi * np.arange(size) / size
    for t in range(7):
        kept = np.exp(-(f[:, None] ** 2 + f**2) * sigma[t].item() ** 2 / 2)
        expected = scipy.fft.idctn(kept * scipy.fft.dctn(x, axes=(2, 3), norm="ortho"), axes=(2, 3), norm="ortho")
        np.testing.assert_allclose(linear(table, x, t), expected, atol=1e-13)
    D = Blur(T=6, size=size, sigma_min=1, sigma_max=size, repeat_last=True)
    torch.testing.assert_close(D(x, torch.tensor([6, 6, 6])), torch.from_numpy(expected).float(), rtol=0, atol=2e-6)


def test_published_blur_keeps_a_trace_of_the_first_wave():
    """exp(-pi^2/2) = 0.72 % at sigma = N."""
    wave = torch.cos(math.pi * (torch.arange(28) + 0.5) / 28).expand(1, 1, 28, 28)
    D = build("blur")
    torch.testing.assert_close(D(wave, torch.tensor([6])), 0.0072 * wave, rtol=0, atol=1e-5)


def block_means(x: torch.Tensor, edges: list[int]) -> torch.Tensor:
    out = torch.empty_like(x)
    for i, i_end in pairwise(edges):
        for j, j_end in pairwise(edges):
            out[:, :, i:i_end, j:j_end] = x[:, :, i:i_end, j:j_end].mean((2, 3), keepdim=True)
    return out


@pytest.mark.parametrize("size", [8, 28, 32])
def test_pixelate_takes_block_means(size):
    x = smooth_images(3, 2, size).double()
    D = Pixelate(T=6, size=size, published=False).double()
    for t in range(7):
        n = int(schedules.pixel_blocks(6, size=size)[t])
        edges = [math.ceil(k * size / n) for k in range(n + 1)]
        assert {b - a for a, b in pairwise(edges)} <= {size // n, -(-size // n)}
        torch.testing.assert_close(D(x, torch.full((3,), t)), block_means(x, edges), rtol=0, atol=1e-6)


def test_block_means_in_float64():
    x = smooth_images(3, 2, 8).double()
    table = block_mean_table(torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]]))
    torch.testing.assert_close(linear(table, x, 0), block_means(x, [0, 3, 6, 8]), rtol=0, atol=1e-15)


def test_pixelating_real_digits_grows_more_severe_at_every_level():
    """Centred drawings are not stationary: with remainders at the edge the distance fell from level 3 to 5."""
    from sklearn.datasets import load_digits

    x = torch.from_numpy(load_digits().images[:300, None] / 8 - 1).float()
    for T in range(1, 8):
        severity = measure(Pixelate(T=T, size=8, published=False), x)
        assert (severity.distance.diff() > 0.05).all() and (severity.kept.diff() < -0.02).all()


@pytest.mark.parametrize("padding", ["circular", "reflect"])
@pytest.mark.parametrize(("size", "kernel_size"), [(8, 5), (28, 11), (32, 27)])
def test_gaussian_blur_is_torchs_padded_convolution_repeated(size, kernel_size, padding):
    sigma = schedules.linear_sigma(6, slope=0.4, offset=0.35)
    table, x0 = kernel_table(sigma, size, kernel_size, padding), smooth_images(3, 1, size).double()
    x, half = x0, kernel_size // 2
    tap = torch.arange(kernel_size, dtype=torch.float64) - half
    for t in range(1, 6):
        kernel = torch.exp(-(tap[:, None] ** 2 + tap**2) / (2 * sigma[t] ** 2))
        x = conv2d(pad(x, (half,) * 4, mode=padding), (kernel / kernel.sum())[None, None])
        torch.testing.assert_close(linear(table, x0, t), x, rtol=0, atol=1e-13)
    mean = x0.mean((2, 3), keepdim=True).expand_as(x0)
    torch.testing.assert_close(linear(table, x0, 6), mean, rtol=0, atol=1e-14)


def test_fade_scales_towards_black():
    D, x0 = build("black"), smooth_images(7, 1, 28)
    c = schedules.Cosine().fade(6).float()[:, None, None, None]
    torch.testing.assert_close(D(x0, torch.arange(7)), c * x0 + (1 - c) * -1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", ["blur", "pixelate", "noise", "gaussian_blur"])
def test_composing_is_applying_one_after_the_other(part):
    D, first, fade, x0 = build(f"black_{part}"), build(part), build("black"), smooth_images(14, 1, 28)
    t, eps = levels(14, 6), D.draw(x0)
    torch.testing.assert_close(D(x0, t, eps), fade(first(x0, t, eps), t), rtol=0, atol=2e-6)


def test_a_multiple_of_the_identity_is_a_product_with_a_number():
    assert build("black").scalar and not build("blur").scalar and not build("black_blur").stages[0].scalar
    assert not SeparableLinear(torch.rand(7, 8, dtype=torch.float64).diag_embed()).scalar
    D, t, x = build("black", 8), torch.arange(7), smooth_images(7, 2, 8)
    A = D.table[t][:, None]
    torch.testing.assert_close(D.linear(x, t), A @ x @ A.mT, rtol=1e-6, atol=1e-6)


def test_separable_parts_are_fused_and_keep_their_order():
    T, size, x0 = 3, 8, smooth_images(4, 1, 8)
    pixels = Pixelate(T=T, size=size, published=False)
    blur = Blur(T=T, size=size, sigma_min=1, sigma_max=8, repeat_last=True)
    t = torch.arange(4)
    both = Compose(parts={"pixels": pixels, "blur": blur})
    assert [isinstance(stage, SeparableLinear) for stage in both.stages] == [True]
    torch.testing.assert_close(both(x0, t), blur(pixels(x0, t), t), rtol=0, atol=2e-6)
    assert (both(x0, t) - pixels(blur(x0, t), t)).abs().max() > 1e-2


def test_noise_has_the_moments_of_ddpm():
    D, n = build("noise"), 20000
    x0 = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4).expand(n, 1, 4, 4)
    eps = D.draw(x0, PerImage(0, range(len(x0))))
    for t, kept in enumerate(schedules.Cosine().alpha_bar(6).tolist()):
        x_t = D(x0, torch.full((n,), t), eps).double()
        torch.testing.assert_close(x_t.mean(0), math.sqrt(kept) * x0[0].double(), rtol=0, atol=0.04)
        torch.testing.assert_close(x_t.var(0), torch.full((1, 4, 4), 1 - kept, dtype=torch.float64), rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["noise", "black_noise"])
def test_infer_finds_the_noise(name):
    D, x0 = build(name), smooth_images(70, 1, 28)
    t, eps = levels(70, 6), D.draw(x0, PerImage(0, range(len(x0))))
    found = D.infer(D(x0, t, eps), x0, t)
    inside = (t > 0) & (t < 6 if name == "black_noise" else True)
    torch.testing.assert_close(found[inside], eps[inside], rtol=0, atol=2e-5)
    assert (found[~inside] == 0).all()  # nothing of eps is in x_0, nor in black
    torch.testing.assert_close(D(x0, t, found), D(x0, t, eps), rtol=0, atol=2e-6)


def test_infer_behind_blur_leads_to_the_same_image():
    """Blur loses eps, so that another one is found; it must lead to the same x_t, up to what blur damps below 1e-3."""
    noise, blur = build("noise", 8), build("blur", 8)
    D, x0 = Compose(parts={"blur first": build("pixelate", 8), "noise": noise, "blur": blur}), smooth_images(14, 1, 8)
    t, eps = levels(14, 6), D.draw(x0, PerImage(0, range(len(x0))))
    x_t = D(x0, t, eps)
    torch.testing.assert_close(D(x0, t, D.infer(x_t, x0, t)), x_t, rtol=0, atol=2e-3)


# Bad input


@pytest.mark.parametrize("name", NAMES)
def test_T_below_one_is_one_sentence(name):
    with pytest.raises(Exception) as caught:
        build(name, 28, 0)
    assert explain(caught.value, "degrade").startswith("T=0: ")


@pytest.mark.parametrize(
    ("name", "override", "sentence"),
    [
        ("pixelate", "degradation.T=30", "T=30: 28x28 images can be pixelated to 27 levels only; set T=27 or less"),
        ("gaussian_blur", "kernel.size=57", "kernel_size=57: it does not fit into 28x28 images; "),
        ("gaussian_blur", "kernel.size=4", "kernel_size=4: "),
        ("gaussian_blur", "kernel.padding=zeros", "padding=zeros: choose circular or reflect"),
        ("blur", "degradation.sigma_min=0", "sigma_min=0"),
    ],
)
def test_values_that_do_not_fit_are_one_sentence(name, override, sentence):
    with pytest.raises(Exception) as caught:
        build(name, 28, 6, override)
    assert explain(caught.value, "degrade").startswith(sentence)


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"built for 28x28 images but got 32x32"):
        build("blur")(torch.zeros(1, 1, 32, 32), torch.tensor([1]))


def test_parts_that_do_not_fit_together_are_refused():
    fade, noise = partial(Fade, schedule=schedules.Cosine()), Noise(T=6, schedule=schedules.Cosine())
    with pytest.raises(UserError, match=r"same T, got {'a': 6, 'b': 8}"):
        Compose(parts={"a": fade(T=6, size=8), "b": fade(T=8, size=8)})
    with pytest.raises(UserError, match=r"same image size, got \[8, 28\]"):
        Compose(parts={"a": fade(T=6, size=8), "b": fade(T=6, size=28)})
    with pytest.raises(UserError, match=r"at most one part .* a and b"):
        Compose(parts={"a": noise, "b": noise})
    with pytest.raises(UserError, match=r"no part"):
        Compose(parts={})


def test_a_kernel_law_is_swapped_from_the_command_line():
    law = "{_target_: vcd.schedules.exponential_sigma, _partial_: true, rate: 0.1}"
    D = build("gaussian_blur", 28, 6, f"degradation.sigma={law}", "kernel.padding=reflect")
    sigma = partial(schedules.exponential_sigma, rate=0.1)
    expected = GaussianBlur(T=6, size=28, kernel_size=5, sigma=sigma, padding="reflect")
    assert torch.equal(D.table, expected.table)
