"""Schedules against the published tables (METHODS.md, section 1) and independent computations."""

import math

import numpy as np
import pytest
import torch

from vcd import schedules
from vcd.errors import UserError

SCHEDULES = [schedules.Cosine(), schedules.Linear(), schedules.Sigmoid(), schedules.Exponential()]
named = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
MNIST_FADE = [0.9998, 0.8986, 0.6474, 0.3408, 0.0940, 0]
AFHQ_FADE = [0.9998, 0.9457, 0.8047, 0.6043, 0.3835, 0.1855, 0.0487, 0]


@named
@pytest.mark.parametrize("T", [1, 2, 6, 1000])
def test_a_schedule_falls_from_one(schedule, T):
    fade, alpha_bar = schedule.fade(T), schedule.alpha_bar(T)
    for kept in (fade, alpha_bar):
        assert kept.shape == (T + 1,) and kept.dtype == torch.float64
        assert kept[0] == 1 and (kept.diff() < 0).all()
    assert fade[-1] == 0
    assert alpha_bar[-1] > 0


@pytest.mark.parametrize(("T", "published"), [(6, MNIST_FADE), (8, AFHQ_FADE)])
def test_cosine_fade_is_the_published_table(T, published):
    np.testing.assert_allclose(schedules.Cosine().fade(T)[1:], published, atol=5.1e-5)
    assert schedules.Cosine().fade(T)[-1] == 0


def test_other_fades_have_their_closed_forms():
    u = np.arange(7) / 6
    np.testing.assert_allclose(schedules.Linear().fade(6), 1 - u, atol=1e-15)
    e = np.exp(-2 * u)
    np.testing.assert_allclose(schedules.Exponential(rate=4).fade(6), (e - e[-1]) / (1 - e[-1]), atol=1e-15)
    sigmoid = 0.5 * (1 + np.tanh((-3 + 6 * u) / 2))
    expected = (sigmoid[-1] - sigmoid) / (sigmoid[-1] - sigmoid[0])
    np.testing.assert_allclose(schedules.Sigmoid().fade(6), expected, atol=1e-15)


@pytest.mark.parametrize("T", [6, 50, 1000])
def test_alpha_bar_is_the_product_of_clipped_betas(T):
    """Step by step, in plain Python."""

    def cosine(t):
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    def sigmoid(t):
        return 1 / (1 + math.exp(-3)) - 1 / (1 + math.exp(-(-3 + 6 * t / T)))

    def linear_beta(t):
        return 1000 / T * (1e-4 + (0.02 - 1e-4) * (t - 1) / (T - 1))

    betas = {
        schedules.Cosine(): lambda t: 1 - cosine(t) / cosine(t - 1),
        schedules.Sigmoid(): lambda t: 1 - sigmoid(t) / sigmoid(t - 1),
        schedules.Linear(): linear_beta,
        schedules.Exponential(rate=7.0): lambda t: 1 - math.exp(-7 / T),
    }
    for schedule, beta in betas.items():
        product = 1.0
        for t, kept in enumerate(schedule.alpha_bar(T).tolist()):
            product *= 1 - min(beta(t), 0.999) if t else 1
            assert kept == pytest.approx(product, rel=1e-9)


def test_ddpm_reaches_its_known_end():
    """beta 1e-4..0.02 over 1000 levels: abar_T = 4.036e-5."""
    assert schedules.Linear().alpha_bar(1000)[-1].item() == pytest.approx(4.036e-5, rel=1e-4)


@pytest.mark.parametrize(
    ("T", "size", "published"),
    [
        (6, 28, [1, 2.300, 5.292, 12.17, 28, 28]),
        (6, 32, [1, 2.378, 5.657, 13.45, 32, 32]),
        (8, 64, [1, 2, 4, 8, 16, 32, 64, 64]),
    ],
)
def test_blur_sigmas_are_the_published_table(T, size, published):
    sigma = schedules.log_sigma(T, sigma_min=1, sigma_max=size, repeat_last=True)
    assert sigma[0] == 0
    np.testing.assert_allclose(sigma[1:], published, rtol=4e-4)


def test_rissanen_sigmas_are_log_spaced_over_all_levels():
    sigma = schedules.log_sigma(100, sigma_min=0.5, sigma_max=20, repeat_last=False).numpy()
    assert sigma[0] == 0
    np.testing.assert_allclose(sigma[1:], np.geomspace(0.5, 20, 100), rtol=1e-12)


@pytest.mark.parametrize("repeat_last", [True, False])
def test_one_level_is_blurred_fully(repeat_last):
    assert schedules.log_sigma(1, sigma_min=1, sigma_max=28, repeat_last=repeat_last).tolist() == [0, 28]


@pytest.mark.parametrize(
    ("T", "size", "published", "blocks"),
    [
        (6, 28, [1, 2, 4, 6, 11, 18], [14, 10, 7, 5, 3, 1]),  # factors 2, 3, 4, 6, 11, 28
        (6, 32, [1, 2, 4, 7, 12, 21], [16, 11, 8, 5, 3, 1]),  # 2, 3, 4, 7, 12, 32
        (8, 64, [1, 2, 3, 5, 9, 14, 23, 37], [32, 22, 16, 13, 8, 5, 3, 1]),  # 2, 3, 4, 5, 9, 14, 23, 64
    ],
)
def test_pixel_factors_are_the_published_table_and_blocks_its_repair(T, size, published, blocks):
    assert schedules.pixel_factors(T, size=size).tolist() == [1, *published]
    assert schedules.pixel_blocks(T, size=size).tolist() == [size, *blocks]


@pytest.mark.parametrize("size", [2, 3, 8, 28])
def test_every_level_has_fewer_pixel_blocks_down_to_one(size):
    for T in range(1, size):
        blocks = schedules.pixel_blocks(T, size=size)
        assert len(blocks) == T + 1 and (blocks.diff() < 0).all()
        assert blocks[0] == size and blocks[-1] == 1
    with pytest.raises(UserError, match=rf"T={size}: .* set T={size - 1} or less"):
        schedules.pixel_blocks(size, size=size)


def test_kernel_sigmas_follow_bansal():
    i = np.arange(300)
    np.testing.assert_allclose(schedules.constant_sigma(300, value=7)[1:], np.full(300, 7.0))
    np.testing.assert_allclose(schedules.linear_sigma(300, slope=0.01, offset=0.35)[1:], i / 100 + 0.35, rtol=1e-12)
    np.testing.assert_allclose(schedules.exponential_sigma(300, rate=0.01)[1:], np.exp(0.01 * i), rtol=1e-12)


@pytest.mark.parametrize("T", [0, -3])
def test_T_must_be_a_whole_number_of_at_least_one(T):
    calls = [
        *(s.fade for s in SCHEDULES),
        *(s.alpha_bar for s in SCHEDULES),
        lambda T: schedules.log_sigma(T, sigma_min=1, sigma_max=8, repeat_last=True),
        lambda T: schedules.constant_sigma(T, value=1),
        lambda T: schedules.linear_sigma(T, slope=1, offset=1),
        lambda T: schedules.exponential_sigma(T, rate=1),
        lambda T: schedules.pixel_factors(T, size=8),
        lambda T: schedules.pixel_blocks(T, size=8),
    ]
    for call in calls:
        with pytest.raises(UserError, match=rf"^T={T}: .*for example T=6$"):
            call(T)


@pytest.mark.parametrize("T", [2.5, "six", None])
def test_T_of_another_kind_is_the_same_mistake(T):
    with pytest.raises(UserError, match=rf"^T={T}: .*for example T=6$"):
        schedules.check_levels(T)


def test_parameters_out_of_range_are_named():
    with pytest.raises(UserError, match=r"sigma_min=0, sigma_max=8"):
        schedules.log_sigma(6, sigma_min=0, sigma_max=8, repeat_last=True)
    with pytest.raises(UserError, match=r"sigma_min=9, sigma_max=8"):
        schedules.log_sigma(6, sigma_min=9, sigma_max=8, repeat_last=True)
    with pytest.raises(UserError, match=r"kernel sigma=-0.5"):
        schedules.linear_sigma(6, slope=1, offset=-0.5)
    with pytest.raises(UserError, match=r"schedule.tau=0"):
        schedules.Sigmoid(tau=0)
    with pytest.raises(UserError, match=r"schedule.rate=-1"):
        schedules.Exponential(rate=-1)
