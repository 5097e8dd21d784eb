"""Per-image random numbers: a function of (seed, index) alone, and random."""

import numpy as np
import pytest
import torch
from scipy import stats

from vcd.randomness import PerImage

N, M = 400, 500


@pytest.fixture(scope="module")
def z() -> np.ndarray:
    return PerImage(7, range(N)).normal(M).double().numpy()


# --- whose they are ---------------------------------------------------------------------------------------------------


def drawn(randomness: PerImage) -> list[torch.Tensor]:
    return [
        randomness.normal(3, 2),
        randomness.uniform(),
        randomness.normal(1),
        randomness.normal(17),
        randomness.uniform(),
    ]


def test_an_images_numbers_do_not_depend_on_the_others():
    whole = drawn(PerImage(3, range(100)))
    for rows in ([5], [99, 0], range(40, 60), range(0, 100, 7)):
        for one, all_of_them in zip(drawn(PerImage(3, rows)), whole, strict=True):
            assert torch.equal(one, all_of_them[list(rows)])


def test_other_seeds_and_indices_give_other_numbers():
    values = torch.cat([PerImage(seed, [*range(5), 2**40, 2**63]).normal(1)[:, 0] for seed in (0, 1, 2**32, 2**63)])
    assert len(values.unique()) == 28


def test_two_images_that_were_one_in_version_0_1_are_two():
    """torch keeps 32 bits of a seed."""
    a, b = PerImage(0, [50_699, 55_170]).normal(64)
    assert not (a == b).any()


def test_no_two_of_a_million_images_have_one_key():
    assert len({key for seed in (0, 2**64 - 1) for key in PerImage(seed, range(500_000))._keys}) == 10**6


@pytest.mark.long
def test_no_two_of_many_images_begin_alike():
    """With the 32 bits of version 0.1, about five pairs would."""
    parts = [PerImage(0, range(i, i + 10_000))._words(slice(None), 1)[:, 0] for i in range(0, 200_000, 10_000)]
    assert len(np.unique(np.concatenate(parts))) == 200_000


def test_the_streams_are_numpys_philox():
    """Whose raw output does not change from one version of NumPy to the next (NEP 19)."""
    words = PerImage(5, [9])._words(slice(None), 2)
    assert np.array_equal(words[0], np.random.Philox(key=[5, 9]).random_raw(8))
    assert PerImage(0, [0])._words(slice(None), 1)[0].tolist() == [
        0x02F4BA6408E4D89B, 0x3DD62B0B9CA8C5B2, 0x1C8667A55D902E79, 0x907D7A052FD5B4DC,
    ]  # fmt: skip


# --- copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_goes_on_from_where_the_original_was():
    original = PerImage(1, range(6))
    original.normal(5)
    copy, undrawn = original.take(), original.take([4, 4, 1])
    ahead = drawn(original)
    assert all(torch.equal(a, b) for a, b in zip(drawn(copy), ahead, strict=True))
    for a, b in zip(drawn(undrawn), ahead, strict=True):
        assert torch.equal(a, b[[4, 4, 1]])
    assert torch.equal(copy.take([2]).normal(3), original.normal(3)[2:3])


def test_what_is_drawn_from_a_copy_leaves_the_original_as_it_was():
    original, untouched = PerImage(1, range(6)), PerImage(1, range(6))
    original.uniform(), untouched.uniform()
    original.take().normal(100)
    assert torch.equal(original.normal(4), untouched.normal(4))


def test_shapes():
    randomness = PerImage(0, range(4))
    assert randomness.normal(2, 3).shape == (4, 2, 3) and randomness.normal().shape == (4,)
    assert randomness.normal(0).shape == (4, 0) and randomness.uniform().shape == (4,)
    assert PerImage(0, []).normal(2).shape == (0, 2) and PerImage(0, []).uniform().shape == (0,)
    assert randomness.normal(2).dtype == randomness.uniform().dtype == torch.float32
    assert len(randomness) == 4 and len(randomness.take([1, 1])) == 2


# --- how they are distributed -----------------------------------------------------------------------------------------


def test_normals_are_normal(z):
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    count = z.size
    assert abs(z.mean()) < 4 / count**0.5 and abs(z.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((z**3).mean()) < 4 * (15 / count) ** 0.5 and abs((z**4).mean() - 3) < 4 * (96 / count) ** 0.5
    tail = 2 * stats.norm.sf(3) * count
    assert abs((np.abs(z) > 3).sum() - tail) < 4 * tail**0.5


def test_normals_of_an_image_and_of_neighbours_are_independent(z):
    """Also the two of one word, which share a radius: neither they nor their squares are correlated."""
    half = 4 * -(-M // 8)  # the partner of value j is value j + half
    pairs = {"neighbours": (z[:-1], z[1:]), "next": (z[:, :-1], z[:, 1:]), "partners": (z[:, : M - half], z[:, half:])}
    for name, (a, b) in pairs.items():
        for power in (1, 2):
            r = np.corrcoef((a**power).ravel(), (b**power).ravel())[0, 1]
            assert abs(r) < 4 / a.size**0.5, (name, power)
    sums = z.sum(0) / N**0.5  # over images
    assert stats.kstest(sums, "norm").pvalue > 1e-3


def test_uniforms_are_uniform():
    u = torch.cat([PerImage(seed, range(5000)).uniform() for seed in range(4)]).numpy()
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_draws_one_after_the_other_do_not_overlap():
    randomness = PerImage(2, range(50))
    values = torch.cat(
        [randomness.normal(7), randomness.normal(30), randomness.uniform()[:, None], randomness.normal(1)], 1
    )
    assert len(values.unique()) == values.numel()
