"""What evaluation computes, against closed forms, naive loops and torch-fidelity; what it keeps; tables of runs; times."""

import csv
import functools
import io
import json
import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as L
import torch
import torch_fidelity
from conftest import TINY
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Normal
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from vcd import bounds, discovery, training
from vcd.callbacks import timing
from vcd.callbacks.timing import Timing
from vcd.comparison import table as tables
from vcd.data import own
from vcd.data.base import ImageData, Images
from vcd.data.digits import Digits
from vcd.degradations.noise import Noise
from vcd.errors import UserError
from vcd.images import to_float, to_uint8
from vcd.metrics import families, family
from vcd.metrics.cached import cached
from vcd.metrics.classifier import Classifier
from vcd.metrics.evaluation import Evaluation, Once
from vcd.metrics.extractor import Extractor
from vcd.metrics.families import distribution, memorisation, restoration, spectrum
from vcd.metrics.fidelity import CEILING, fidelity
from vcd.metrics.inception import FILE, Inception
from vcd.metrics.results import Number, not_finite
from vcd.models.ddpm import DDPM
from vcd.predictions import X0
from vcd.randomness import PerImage
from vcd.schedules import Cosine, Linear, Schedule

pytestmark = pytest.mark.usefixtures("seed")


def noise_images(n: int, channels: int = 1, size: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def labelled(images: Tensor, classes: int = 2) -> Images:
    names = tuple(f"class {i}" for i in range(classes))
    return Images(images, torch.arange(len(images)) % classes, names)


class Given(ImageData):
    """A data set of tensors."""

    def __init__(self, train: Images, val: Images, name: str = "given"):
        super().__init__(name=name, size=train.images.shape[-1], channels=train.images.shape[1])
        self.splits = {"train": train, "val": val}

    def _load(self, split):
        return self.splits[split]


class Random(Extractor):
    """A fixed random network: for what has to be the same on both sides, not for what has to mean something."""

    letter, own_classes = "c", True

    def __init__(self, pixels: int, features: int = 12, classes: int = 2):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.weight = nn.Parameter(torch.randn(pixels, features, generator=generator) / pixels**0.5)
        self.classes = nn.Parameter(torch.randn(features, classes, generator=generator))

    @property
    def protocol(self):
        return {"extractor": "random", "weights": "7"}

    def ready(self, data):
        return self

    def forward(self, images):
        features = torch.tanh(to_float(images).flatten(1) @ self.weight)
        return features, features @ self.classes


def evaluation(data: ImageData, images: Tensor, folder: Path, **changes) -> Evaluation:
    random = Random(images[0].numel(), classes=len(data.load("train").classes))
    parts = dict(images=images, model=None, data=data, split="train", make_extractor=lambda: random,
                 cache=folder / "cache", out=folder / "metrics.json", restored=8, levels=3, seed=0)  # fmt: skip
    return Evaluation(**(parts | changes))


# --- Frechet distance -------------------------------------------------------------------------------------------------


def with_moments(n: int, mean: Tensor, cov: Tensor) -> Tensor:
    """n points whose sample mean and sample covariance are exactly these."""
    x = torch.randn(n, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return mean + white @ torch.linalg.cholesky(cov).T


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T


def spread(d: int) -> Tensor:
    """A covariance with correlations."""
    a = torch.randn(d, 2 * d, dtype=torch.float64)
    return a @ a.T / (2 * d)


def test_the_frechet_distance_of_uncorrelated_gaussians_is_the_closed_form():
    """|mu_a - mu_b|^2 + sum (sigma_a - sigma_b)^2."""
    mean_a, mean_b = torch.randn(2, 6, dtype=torch.float64)
    std_a, std_b = torch.rand(2, 6, dtype=torch.float64) + 0.2
    a, b = with_moments(50, mean_a, std_a.square().diag()), with_moments(80, mean_b, std_b.square().diag())
    expected = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    assert distribution.frechet(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_the_frechet_distance_of_correlated_gaussians_is_the_closed_form():
    """The trace of the root, taken of the symmetric matrix that is similar to C_a C_b."""
    d = 8
    mean_a, mean_b = torch.randn(2, d, dtype=torch.float64)
    cov_a, cov_b = spread(d), spread(d)
    a, b = with_moments(40, mean_a, cov_a), with_moments(100, mean_b, cov_b)
    half = root(cov_a)
    trace = cov_a.trace() + cov_b.trace() - 2 * root(half @ cov_b @ half).trace()
    expected = (mean_a - mean_b).square().sum() + trace
    assert distribution.frechet(a, b) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(300, 16), (30, 64), (100, 128)])
def test_the_frechet_distance_of_a_set_from_itself_is_0(n, d):
    """Also with fewer images than features, where the covariance is singular."""
    x = torch.randn(n, d) @ torch.randn(d, d) + 3
    assert distribution.frechet(x, x) == pytest.approx(0, abs=1e-6 * x.double().T.cov().trace().item())


def test_the_frechet_distance_is_symmetric_and_does_not_know_the_order():
    a, b = torch.randn(60, 8), 1 + 2 * torch.rand(90, 8)
    value = distribution.frechet(a, b)
    assert value > 1
    assert distribution.frechet(b, a) == pytest.approx(value, rel=1e-9)
    assert distribution.frechet(a[torch.randperm(60)], b[torch.randperm(90)]) == pytest.approx(value, rel=1e-9)


# --- against torch-fidelity -------------------------------------------------------------------------------------------

N = 60


class OwnFeatures(FeatureExtractorBase):
    """The random network above, as torch-fidelity wants it."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.net = Random(3 * 16 * 16, features=12, classes=5)

    @staticmethod
    def get_provided_features_list():
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(2, 3, 16, 16, dtype=torch.uint8)

    def forward(self, images):
        found = dict(zip(("features", "logits"), self.net(images), strict=True))
        return tuple(found[name] for name in self.features_list)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Two folders of PNGs: smooth colour images, the second set darker and with less red."""
    generator, paths = torch.Generator().manual_seed(3), []
    for name, gain in (("one", torch.ones(3)), ("other", torch.tensor([0.6, 0.9, 0.8]))):
        paths.append(tmp_path_factory.mktemp(name))
        small = torch.rand(N, 3, 4, 4, generator=generator)
        smooth = nn.functional.interpolate(small, size=16, mode="bilinear") * gain[:, None, None]
        for i, image in enumerate((255 * smooth).round().byte()):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1] / f"{i:03d}.png")
    return tuple(paths)


@pytest.fixture(scope="module")
def theirs(folders) -> dict[str, float]:
    """What torch-fidelity says of the two folders."""
    torch_fidelity.register_feature_extractor("vcd-tests", OwnFeatures)
    return torch_fidelity.calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), feature_extractor="vcd-tests", cuda=False, cache=False,
        verbose=False, save_cpu_ram=True, isc=True, isc_splits=1, fid=True, kid=True, kid_subset_size=N, kid_subsets=1,
        prc=True, prc_neighborhood=5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def both(folders) -> list[tuple[Tensor, Tensor]]:
    """Features and logits of the two folders, as vcd reads them."""
    images = [own.read(str(folder), size=16, channels=3, key="images") for folder in folders]
    extractor = Random(3 * 16 * 16, features=12, classes=5).eval()
    return [extractor.features(x, "images", batch=17) for x in images]


def test_the_distances_are_those_of_torch_fidelity(both, theirs):
    (a, logits), (b, _) = both
    near = {"rel": 1e-3}
    assert distribution.frechet(a, b) == pytest.approx(theirs["frechet_inception_distance"], **near)
    assert distribution.kernel_distance(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], **near)
    assert distribution.inception_score(logits) == pytest.approx(theirs["inception_score_mean"], **near)
    assert theirs["frechet_inception_distance"] > 0.05 and theirs["kernel_inception_distance_mean"] > 0.01


def test_precision_and_recall_are_those_of_torch_fidelity(both, theirs):
    ours = distribution.manifolds(both[0][0], both[1][0])
    assert ours["precision"] == pytest.approx(theirs["precision"], rel=1e-3)
    assert ours["recall"] == pytest.approx(theirs["recall"], rel=1e-3)
    assert 0 < theirs["precision"] < 1 and 0 < theirs["recall"] < 1 and theirs["precision"] != theirs["recall"]


# --- inception score --------------------------------------------------------------------------------------------------


def test_the_inception_score_is_the_exponential_of_the_mutual_information():
    logits = 2 * torch.randn(40, 5)
    p = logits.double().softmax(1)
    marginal = p.mean(0)
    information = -(marginal * marginal.log()).sum() + (p * p.log()).sum(1).mean()  # H(y) - H(y | x)
    assert distribution.inception_score(logits) == pytest.approx(information.exp().item(), rel=1e-6)


@pytest.mark.parametrize("k", [2, 7])
def test_the_inception_score_of_sure_and_balanced_classes_is_their_number(k):
    logits = 100 * nn.functional.one_hot(torch.arange(6 * k) % k, k).float()
    assert distribution.inception_score(logits) == pytest.approx(k, rel=1e-6)
    assert distribution.inception_score(torch.zeros(10, k)) == pytest.approx(1, rel=1e-6)


# --- kernel distance --------------------------------------------------------------------------------------------------


def test_the_kernel_distance_is_the_double_loop():
    a, b = torch.randn(12, 4), torch.rand(9, 4)

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x.double() @ y.double() / 4 + 1) ** 3)

    def mean(x: Tensor, y: Tensor, same: bool) -> float:
        pairs = [kernel(u, v) for i, u in enumerate(x) for j, v in enumerate(y) if not (same and i == j)]
        return statistics.fmean(pairs)

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert distribution.kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_is_unbiased():
    """Its mean over many pairs of sets of one distribution is 0; with the diagonals it would be far from that."""
    n, repeats = 10, 300
    values = torch.tensor([distribution.kernel_distance(*torch.randn(2, n, 3)) for _ in range(repeats)])
    error = (values.std() / repeats**0.5).item()
    assert values.mean().item() == pytest.approx(0, abs=4 * error)
    x = torch.randn(20_000, 3)
    diagonal = (x.square().sum(1) / 3 + 1).pow(3).mean().item()
    other = (torch.randn(20_000, 3).mul(x).sum(1) / 3 + 1).pow(3).mean().item()
    assert 2 * (diagonal - other) / n > 20 * error  # the bias of the V-statistic


@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_distances_do_not_depend_on_the_size_of_the_chunks(chunk):
    a, b = torch.randn(30, 6), torch.rand(41, 6)
    assert distribution.kernel_distance(a, b, chunk) == pytest.approx(distribution.kernel_distance(a, b), rel=1e-9)
    assert distribution.manifolds(a, b, chunk) == distribution.manifolds(a, b)
    train, some = noise_images(50), noise_images(9, seed=1)
    (distance, at), (expected, which) = (memorisation.nearest(some, train, chunk=c) for c in (chunk, 4096))
    assert torch.equal(at, which)
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=0)


# --- manifolds --------------------------------------------------------------------------------------------------------


def test_identical_sets_cover_each_other_and_far_ones_do_not():
    x = torch.randn(50, 8)
    same = distribution.manifolds(x, x)
    assert same["precision"] == same["recall"] == same["coverage"] == 1.0
    assert distribution.manifolds(x, x + 1000) == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}


def test_manifolds_are_their_definitions():
    """Kynkaanniemi et al. 2019, eq. 1 to 3; Naeem et al. 2020, eq. 3 and 4: point by point."""
    a, b, k = torch.randn(60, 5), 0.8 * torch.randn(45, 5) + 0.4, distribution.NEIGHBOURS

    def distance(x: Tensor, y: Tensor) -> float:
        return (x.double() - y.double()).norm().item()

    def reach(points: Tensor) -> list[float]:
        return [sorted(distance(x, y) for j, y in enumerate(points) if j != i)[k - 1] for i, x in enumerate(points)]

    radius_a, radius_b = reach(a), reach(b)
    inside_b = [[distance(x, y) <= r for y, r in zip(b, radius_b, strict=True)] for x in a]  # x in the ball of y
    inside_a = [[distance(x, y) <= r for x, r in zip(a, radius_a, strict=True)] for y in b]
    expected = {
        "precision": statistics.fmean(any(row) for row in inside_b),
        "recall": statistics.fmean(any(row) for row in inside_a),
        "density": sum(map(sum, inside_b)) / (k * len(a)),
        "coverage": statistics.fmean(any(row[j] for row in inside_b) for j in range(len(b))),
    }
    assert distribution.manifolds(a, b) == pytest.approx(expected, rel=1e-9)
    assert all(0.05 < value < 1 for value in expected.values())


# --- two splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "other", "ending"), [("train", "val", "_heldout"), ("val", "train", "_train")])
def test_distances_from_the_other_split_stand_beside_those_from_the_reference(tmp_path, split, other, ending):
    """Each with its own floor: as many real images of the one split, compared with the other."""
    data = Given(labelled(noise_images(60)), labelled(noise_images(40, seed=1) // 2))
    e = evaluation(data, noise_images(30, seed=2), tmp_path, split=split)
    numbers = distribution.measure(e).numbers | spectrum.measure(e).numbers
    (a, _), (b, _), (h, _) = (e.extractor.features(x, "x") for x in (e.images, e.of(split).images, e.of(other).images))
    for name, to, others in (("fcd_30", b, h), (f"fcd_30{ending}", h, b)):
        rows = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:30]
        assert numbers[name].value == pytest.approx(distribution.frechet(a, to), rel=1e-6)
        assert numbers[name].floor == pytest.approx(distribution.frechet(others[rows], to), rel=1e-6)
    for name in ("fcd_30", "kcd_30", "log_spectral_distance_30"):
        one, two = (numbers[key].protocol for key in (name, name + ending))
        assert (one["split"], two["split"]) == (split, other) and one["n"] == two["n"] == 30
        assert one["reference"] == e.of(split).fingerprint and two["reference"] == e.of(other).fingerprint
        assert one["reference_n"] == len(e.of(split)) and two["floor_n"] == 30


def test_memorised_samples_are_near_the_training_images_only(tmp_path):
    """What the reference alone would not tell."""
    data = Given(labelled(noise_images(60)), labelled(noise_images(60, seed=1)))
    numbers = distribution.measure(evaluation(data, data.load("train").images, tmp_path)).numbers
    near, far = numbers["fcd_60"], numbers["fcd_60_heldout"]
    assert near.value == pytest.approx(0, abs=1e-6) and near.value < near.floor
    assert far.value == pytest.approx(far.floor, rel=1e-6) and far.value > 1e-3


def test_what_a_split_looks_like_is_found_out_once(tmp_path, caplog):
    """For any n, and whichever split is the reference."""
    data, looked = Given(labelled(noise_images(60)), labelled(noise_images(40, seed=1))), []

    class Looking(Random):
        def features(self, images, what, batch=256):
            looked.append(what)
            return super().features(images, what, batch)

    for n, split in ((30, "train"), (20, "train"), (30, "val")):
        parts = dict(split=split, make_extractor=lambda: Looking(64))
        distribution.measure(evaluation(data, noise_images(n, seed=2), tmp_path, **parts))
    assert sorted(looked) == sorted(["the samples"] * 3 + ["the train split", "the val split"])


def test_the_spectrum_needs_no_extractor(tmp_path):
    def fail():
        raise AssertionError("a classifier would be trained for nothing")

    data = Given(labelled(noise_images(60)), labelled(noise_images(40, seed=1)))
    e = evaluation(data, noise_images(30, seed=2), tmp_path, make_extractor=fail)
    assert spectrum.measure(e).numbers


def test_a_data_set_is_read_once(tmp_path):
    reads = []

    class Read(Given):
        def _load(self, split):
            reads.append(split)
            return super()._load(split)

    data = Once(Read(labelled(noise_images(60)), labelled(noise_images(40, seed=1))))
    e = evaluation(data, noise_images(30, seed=2), tmp_path)
    for name in ("distribution", "spectrum", "memorisation"):
        family.find(name).measure(e)
    quick(tmp_path).ready(data)
    assert sorted(reads) == ["train", "val"]
    assert (data.name, data.size, data.channels) == ("given", 8, 1)


# --- families that are found ------------------------------------------------------------------------------------------

MINE = """
from vcd.metrics.results import Number, Result

NEEDS_A_MODEL, LEAST_IMAGES = True, 4


def measure(evaluation):
    return Result({"brightness": Number(evaluation.images.float().mean().item(), "neither")})


def darkness(evaluation):
    return Result({"darkness": Number(255 - evaluation.images.float().mean().item(), "neither")})
"""


def test_a_family_of_ones_own_is_a_module_or_a_function(tmp_path, monkeypatch):
    (tmp_path / "owned").mkdir()
    (tmp_path / "owned" / "light.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    module, function = family.find("owned.light"), family.find("owned.light.darkness")
    assert module.needs_a_model and module.least_images == 4 and not module.needs_features
    assert not function.needs_a_model and function.least_images == 2
    data = Given(labelled(noise_images(60)), labelled(noise_images(40, seed=1)))
    e = evaluation(data, torch.full((3, 1, 8, 8), 100, dtype=torch.uint8), tmp_path)
    assert module.measure(e).numbers["brightness"].value == 100
    assert function.measure(e).numbers["darkness"].value == 155


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("spectra", ["metrics=spectra", ", ".join(discovery.names(families)), "mine.spectra"]),
        ("nowhere.at_all", ["metrics=nowhere.at_all", "No module named 'nowhere'"]),
        ("broken.module", ["metrics=broken.module", "ZeroDivisionError"]),
        ("vcd.metrics.samples", ["metrics=vcd.metrics.samples", "measure(evaluation)"]),
        ("vcd.metrics.families.spectrum.nothing", ["nothing"]),
        ("a..b", ["metrics=a..b"]),
    ],
)
def test_a_family_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, name, words):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        family.find(name)
    sentence = str(caught.value)
    assert all(word in sentence for word in words) and "\n" not in sentence, sentence


# --- the spectrum -----------------------------------------------------------------------------------------------------


def spectral_distance(images: Tensor, data: ImageData, folder: Path) -> float:
    result = spectrum.measure(evaluation(data, images, folder))
    curve = result.curves["spectrum"]
    assert len(curve["cycles_per_image"]) == len(curve["samples"]) == len(curve["data"]) == 8 // 2 + 1
    return result.numbers[f"log_spectral_distance_{len(images)}"].value


def test_a_set_has_its_own_spectrum(tmp_path):
    images = noise_images(40)
    data = Given(labelled(images), labelled(noise_images(20, seed=1)))
    assert spectral_distance(images[torch.randperm(40)], data, tmp_path) == pytest.approx(0, abs=1e-6)


def test_three_times_the_contrast_is_nine_times_the_power(tmp_path):
    """127.5 + a and 127.5 + 3 a, both whole numbers: 20 log10(3) dB in every band."""
    images = (noise_images(40) // 4 + 96).clamp(86, 169)
    data = Given(labelled(images), labelled(noise_images(20, seed=1)))
    more = (127.5 + 3 * (images.double() - 127.5)).round().byte()
    assert spectral_distance(more, data, tmp_path) == pytest.approx(20 * math.log10(3), rel=1e-5)


# --- memorisation -----------------------------------------------------------------------------------------------------


def test_the_nearest_training_image_is_that_of_all_pairs():
    images, train = noise_images(13, channels=3), noise_images(70, channels=3, seed=1)
    distance, which = memorisation.nearest(images, train)
    apart = [[(to_float(x) - to_float(y)).double().square().mean().sqrt().item() for y in train] for x in images]
    assert which.tolist() == [row.index(min(row)) for row in apart]
    assert distance.tolist() == pytest.approx([min(row) for row in apart], rel=1e-4)


def test_a_grey_level_is_a_distance_of_two_255ths():
    train = noise_images(30).clamp(max=200)
    distance, which = memorisation.nearest(train[10:15] + 10, train)
    assert which.tolist() == [10, 11, 12, 13, 14]
    torch.testing.assert_close(distance, torch.full((5,), 20 / 255), rtol=1e-3, atol=0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_copies_of_training_images_are_found(tmp_path, split):
    """Whichever split the distributions are compared with: what is memorised is what was trained on."""
    train = noise_images(200)
    data = Given(labelled(train), labelled(noise_images(80, seed=1)))
    samples = torch.cat([train[50:80], noise_images(30, seed=2)])
    result = memorisation.measure(evaluation(data, samples, tmp_path, split=split))
    assert 0.5 <= result.numbers["copies_60"].value <= 0.55  # and of the new ones about 1 %
    assert result.numbers["nearest_train_60"].value < result.numbers["nearest_train_60"].floor
    with Image.open(result.pictures[0]) as picture:
        assert picture.width > picture.height  # ten pairs, side by side


def test_new_images_are_no_copies(tmp_path):
    data = Given(labelled(noise_images(300)), labelled(noise_images(300, seed=1)))
    numbers = memorisation.measure(evaluation(data, noise_images(300, seed=2), tmp_path)).numbers
    assert numbers["copies_300"].value <= 0.05
    assert numbers["nearest_train_300"].value == pytest.approx(numbers["nearest_train_300"].floor, rel=0.02)


def test_total_variation_is_half_the_distance_of_shares():
    def labels(*counts: int) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))

    assert memorisation.total_variation(labels(3, 5, 2), labels(30, 50, 20), 3) == pytest.approx(0)
    assert memorisation.total_variation(labels(4, 0, 0), labels(0, 1, 2), 3) == pytest.approx(1)
    assert memorisation.total_variation(labels(3, 1), labels(5, 5), 2) == pytest.approx(0.25)
    assert memorisation.total_variation(labels(1, 1), labels(1, 1, 1, 1), 4) == pytest.approx(0.5)


# --- restoration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 100])
def test_psnr_and_mse_of_an_error_of_k_grey_levels(k):
    x = noise_images(5, channels=3).clamp(max=255 - k)
    quality = fidelity(x + k, x)
    torch.testing.assert_close(quality["psnr"], torch.full((5,), 20 * math.log10(255 / k)), rtol=1e-4, atol=0)
    torch.testing.assert_close(quality["mse"], torch.full((5,), (2 * k / 255) ** 2), rtol=1e-3, atol=0)


def test_equal_images_have_the_highest_psnr_there_is():
    """Not infinity, which would be the mean of any number of images."""
    x = noise_images(5)
    quality = fidelity(x, x)
    assert quality["mse"].max() == 0 and quality["psnr"].tolist() == [CEILING] * 5
    torch.testing.assert_close(quality["ssim"], torch.ones(5), rtol=0, atol=1e-5)
    worse = fidelity(noise_images(5, seed=1), x)
    assert worse["ssim"].max() < 0.5 and worse["mse"].min() > 0.1 and worse["psnr"].max() < 10


class Exact(nn.Module):
    """The network of a model that knows x_0: what it is asked for, whatever it is shown."""

    def __init__(self, model, x0: Tensor):
        super().__init__()
        self.__dict__["model"] = model  # not as a part of it
        self.x0 = x0

    def forward(self, x, t, s, z):
        x_s = self.x0 if (s == 0).all() else self.model.degradation(self.x0, s)
        return x_s if isinstance(self.model.prediction, X0) else x_s - x


@pytest.fixture(scope="module")
def exact(compose) -> Callable:
    """exact(x0, "model=bansal", ...): a real model but for its network, which knows x0."""

    @functools.cache
    def build(*overrides: str):
        return training.build(compose(*(o for o in TINY if o != "T=3"), "T=4", *overrides)).eval()

    def exact(x0: Tensor, *overrides: str):
        model = build(*overrides)
        model.network = Exact(model, x0)
        return model

    return exact


COLD = {"algorithm_1", "algorithm_2", "direct"}


@pytest.mark.parametrize(
    ("overrides", "ways"),
    [
        (["model=bansal"], COLD),
        (["model=bansal", "sampler=naive", "degradation=pixelate"], COLD),
        (["model=bansal", "degradation=inpaint"], COLD),
        (["model=rissanen"], {"own"}),
        (["model=rissanen", "degradation=black_blur"], {"own"}),
        (["model=rissanen", "prediction=vxt", "sampler.steps=2"], {"own", *COLD}),
        (["model=vcd", "degradation=black_blur"], {"own", "posterior"}),
        (["model=plain", "prediction=x0"], {"posterior", *COLD}),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
@pytest.mark.parametrize("level", [4, 3, 1])
def test_an_exact_network_restores_perfectly_from_every_level(exact, overrides, ways, level):
    x0 = to_float(noise_images(3))
    restored = restoration.restored(exact(x0, *overrides), x0, level, PerImage(0, range(3)))
    assert restored.keys() == ways | {"degraded"}
    assert restored.pop("degraded").sub(x0).abs().max() > 1e-3
    for way, images in restored.items():
        torch.testing.assert_close(images, x0, rtol=0, atol=1e-5, msg=lambda m, way=way: f"{way}: {m}")
        assert torch.equal(to_uint8(images), to_uint8(x0))


def test_one_exact_image_does_not_make_the_mean_infinite(exact, tmp_path):
    """Nor all of them: the protocol says where PSNR ends."""
    test = noise_images(8, seed=1)
    data = Given(labelled(noise_images(20)), labelled(test))
    shown = data.load("val").balanced(8)
    expected = []
    for known in (shown, torch.cat([shown[:3], shown[3:] // 2])):
        e = evaluation(data, test, tmp_path, model=exact(to_float(known), "model=bansal"))
        numbers = restoration.measure(e).numbers
        expected.append(fidelity(known, shown)["psnr"].mean().item())
        assert numbers["psnr_direct"].value == pytest.approx(expected[-1], rel=1e-5)
        assert f"at most {CEILING:g} dB" in numbers["psnr_direct"].protocol["psnr"]
        assert "psnr" not in numbers["rmse_direct"].protocol
    assert expected[0] == CEILING and 20 < expected[1] < 40


def test_restoration_starts_from_the_degraded_image_and_belongs_to_the_image(compose):
    model = training.build(compose(*TINY, "model=vwd", "degradation=black_blur")).eval()
    nn.init.normal_(next(p for p in reversed(list(model.network.parameters())) if p.ndim > 1), std=0.1)
    x0 = to_float(noise_images(4))
    whole = restoration.restored(model, x0, 2, PerImage(0, range(4)))
    again = restoration.restored(model, x0, 2, PerImage(0, range(4)))
    alone = restoration.restored(model, x0[2:3], 2, PerImage(0, [2]))
    assert whole.keys() == {"degraded", "own", "posterior"}
    for way, images in whole.items():
        assert torch.equal(images, again[way])
        torch.testing.assert_close(images[2:3], alone[way], rtol=0, atol=1e-5)
    other = restoration.restored(model, -x0, 2, PerImage(0, range(4)))
    assert (whole["own"] - other["own"]).abs().amax((1, 2, 3)).min() > 0.01


def test_the_published_table(exact, tmp_path):
    """From level T: a perfect restorer is at distance 0 and has no error; the degraded images are what they are."""
    test = noise_images(8, seed=1)
    data = Given(labelled(noise_images(20)), labelled(test))
    shown = data.load("val").balanced(8)
    model = exact(to_float(shown), "model=bansal", "degradation=pixelate")
    e = evaluation(data, test, tmp_path, model=model, levels=1)
    numbers = {name: number.value for name, number in restoration.measure(e).numbers.items()}
    assert numbers.keys() >= {
        f"{name}_{way}" for name in ("fcd_8", "psnr", "ssim", "rmse") for way in ("degraded", *COLD)
    }
    for way in COLD:
        assert numbers[f"fcd_8_{way}"] == pytest.approx(0, abs=1e-5) and numbers[f"rmse_{way}"] == 0
    flat = to_uint8(model.degradation(to_float(shown), torch.full((8,), 4)))
    a, b = (e.extractor.features(images, "")[0] for images in (flat, shown))
    assert numbers["fcd_8_degraded"] == pytest.approx(distribution.frechet(a, b), rel=1e-6)
    assert numbers["rmse_degraded"] == pytest.approx(((flat / 255 - shown / 255) ** 2).mean().sqrt().item(), rel=1e-5)


def test_noise_is_not_told(exact):
    """A restorer that knew eps would know the image: with a network that always says 0, nothing comes back."""
    x0 = to_float(noise_images(3))
    model = exact(torch.zeros_like(x0), "model=bansal", "degradation=noise")
    for way, back in restoration.restored(model, x0, 4, PerImage(0, range(3))).items():
        assert way == "degraded" or back.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["restoration", "bound"])
def test_what_needs_test_images_never_takes_training_images(compose, tmp_path, name):
    """split says what samples are compared with, not what is restored."""
    model = training.build(compose(*TINY, "model=vwd")).eval()
    test, values = noise_images(20, seed=1), []
    for split, train in (("train", noise_images(30)), ("val", noise_images(30)), ("val", noise_images(30) // 2)):
        e = evaluation(Given(labelled(train), labelled(test)), test, tmp_path, model=model, split=split)
        values.append({key: number.value for key, number in family.find(name).measure(e).numbers.items()})
    assert values[1] == values[2]
    assert values[0] == values[1]


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.02, 1.0])
def test_the_decoder_that_beta_implies_is_a_normal_density(beta):
    x, mean = torch.randn(2, 3, 4, 10, dtype=torch.float64)
    expected = -Normal(mean, (beta / 2) ** 0.5).log_prob(x).sum(-1) / math.log(2)
    found = bounds.gaussian_bits((x - mean).square().sum(-1), beta, 10)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


class Tenth(nn.Module):
    """A network that adds a tenth of what it sees, whatever the latent."""

    def forward(self, x, t, s, condition):
        return x / 10


@pytest.mark.parametrize(
    ("overrides", "steps"), [([], [(1, 0), (2, 1), (3, 2)]), (["prediction=vxt", "sampler.steps=2"], [(2, 0), (3, 2)])]
)
def test_rate_and_distortion_are_those_of_the_objective_at_the_steps_of_the_sampler(compose, overrides, steps):
    model = training.build(compose(*TINY, "model=plain", "degradation=black_blur", *overrides)).eval()
    model.network, x0 = Tenth(), to_float(noise_images(6))
    found = model.bound(x0, PerImage(0, range(6)))
    table = {row["t"]: row for row in found.curves["steps"]}
    assert found.protocol["levels"] == list(table) == [level for level, _ in steps]
    rate = distortion = 0.0
    for level, below in steps:
        t, s = torch.full((6,), level), torch.full((6,), below)
        x_t, x_s = model.degradation(x0, t), model.degradation(x0, s)
        q = model.encode(x_t, x_s, t, s)
        kl = (0.5 * (q.mean**2 + q.stddev**2 - 1 - (q.stddev**2).log()).sum(1) / math.log(2)).mean().item()
        mse = (1.1 * x_t - x_s).square().mean().item()
        assert table[level]["rate_bits"] == pytest.approx(kl, rel=1e-5)
        assert table[level]["distortion_mse"] == pytest.approx(mse, rel=1e-5)
        rate, distortion = rate + kl, distortion + mse
    assert found.numbers["rate_bits"].value == pytest.approx(rate, rel=1e-5)
    assert found.numbers["distortion_mse"].value == pytest.approx(distortion, rel=1e-5)
    density = distortion / model.beta + len(steps) / 2 * math.log(
        math.pi * model.beta
    )  # the decoder's variance: beta / 2
    bits = rate / 64 + density / math.log(2)
    assert found.numbers["path_bound_bits_per_dim"].value == pytest.approx(bits, rel=1e-5)


def test_steps_that_all_ask_for_the_clean_image_bound_no_density(compose):
    """They do not restore one another's states."""
    model = training.build(compose(*TINY, "model=plain", "prediction=x0")).eval()
    found = model.bound(to_float(noise_images(6)), PerImage(0, range(6)))
    assert found.numbers.keys() == {"rate_bits", "distortion_mse"}


class Geometric(Schedule):
    """The ratio of signal to noise falls by the same factor at every step: fine enough for the integral over it."""

    def __init__(self, first: float, last: float):
        self.first, self.last = first, last

    def fade(self, T):
        raise NotImplementedError

    def alpha_bar(self, T):
        snr = torch.linspace(math.log(self.first), math.log(self.last), T, dtype=torch.float64).exp()
        return torch.cat([torch.ones(1, dtype=torch.float64), snr / (1 + snr)])


STD = 0.3  # of the pixels: independent, N(0, STD^2), rounded to the 256 values
VALUES = to_float(torch.arange(256, dtype=torch.uint8)).double()
EDGES = torch.tensor([-torch.inf, *((VALUES[1:] + VALUES[:-1]) / 2).tolist(), torch.inf], dtype=torch.float64)
SHARE = Normal(0.0, torch.tensor(STD, dtype=torch.float64)).cdf(EDGES).diff()  # P(x_0) of every value
ENTROPY = 0.5 * math.log2(2 * math.pi * math.e * STD**2) + math.log2(127.5)  # in bits a dimension


def gaussian_pixels(n: int, size: int) -> Tensor:
    return VALUES[torch.multinomial(SHARE, n * size**2, replacement=True)].view(n, 1, size, size).float()


def own_bits(x0: Tensor) -> Tensor:
    """-log2 P(x_0) of every image, a dimension."""
    return -SHARE[to_uint8(x0).long()].log2().flatten(1).mean(1)


class PosteriorMean(nn.Module):
    """E[x_0 | x_t], the best that a network can say.

    rounded: whether it knows the 256 values, which matters where the noise is finer than they are.
    """

    def __init__(self, D: Noise, rounded: bool, wrong: float):
        super().__init__()
        self.rounded, self.wrong = rounded, wrong
        self.__dict__["degradation"] = D

    def forward(self, x, t, s, z):
        signal = self.degradation.signal[t[0]].double()
        variance = self.degradation.noise[t[0]].double() ** 2
        if self.rounded:
            log = SHARE.log() - (x.double()[..., None] - signal * VALUES).square() / (2 * variance)
            return (log.softmax(-1) @ VALUES).float()
        return (signal * STD**2 / (signal**2 * STD**2 + variance) * x.double()).float() + self.wrong


@pytest.fixture(scope="module")
def denoiser(compose) -> Callable:
    """denoiser(D): a real DDPM that asks for the clean image, but for its network, which is the posterior mean."""
    model = training.build(compose(*TINY, "model=ddpm", "prediction=x0", "sampler.steps=3")).eval()

    def denoiser(D: Noise, rounded: bool = False, wrong: float = 0.0) -> DDPM:
        model.degradation, model.network = D, PosteriorMean(D, rounded, wrong)
        return model

    return denoiser


def test_the_entropy_of_rounded_gaussian_pixels_is_the_closed_form():
    assert -(SHARE * SHARE.log2()).sum().item() == pytest.approx(ENTROPY, rel=1e-3)  # a little is cut off at -1 and 1
    assert own_bits(gaussian_pixels(200, 8)).mean().item() == pytest.approx(ENTROPY, rel=0.01)


def test_with_fine_steps_and_the_exact_posterior_mean_the_ddpm_bound_is_the_entropy(denoiser):
    model = denoiser(Noise(T=1200, schedule=Geometric(2e6, 1e-2)), rounded=True)
    x0 = gaussian_pixels(24, 4)
    parts = bounds.ddpm_bits(model, x0, PerImage(0, range(24)))
    assert parts.shape == (24, 3) and parts.min() > -1e-6
    gap = parts.sum(1).mean().item() / own_bits(x0).mean().item() - 1
    assert -0.01 < gap < 0.025  # 0.009 of 1,200 steps, with a deviation of 0.004 over draws
    assert parts.sum(1).mean().item() == pytest.approx(ENTROPY, rel=0.04)  # as near as these 384 pixels are


def expected_bits(D: Noise) -> Tensor:
    """Prior, steps and decoder in closed form: of Gaussian pixels the errors of the posterior mean are Gaussian."""
    abar = D.signal.double() ** 2
    snr = abar[1:] / (1 - abar[1:])
    mmse = 1 / (1 / STD**2 + snr)  # at t = 1..T
    end = 0.5 * (abar[-1] * STD**2 - abar[-1] - (1 - abar[-1]).log())
    steps = ((snr[:-1] - snr[1:]) / 2 * mmse[1:]).sum()
    posterior = (1 - abar[1]) / (1 - abar[2]) * (1 - abar[2] / abar[1])  # Ho et al. 2020, eq. 7, at t = 2
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    error, decoder = mmse[0].sqrt() * z, Normal(torch.zeros_like(z), posterior.sqrt())
    inside = decoder.cdf(1 / 255 - error) - decoder.cdf(-1 / 255 - error)
    last = -(weight * inside.clamp(min=1e-12).log()).sum()
    return torch.stack([end, steps, last]) / math.log(2)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_the_parts_of_the_ddpm_bound_are_their_expectations(denoiser, schedule):
    """1,000 steps are too few for the entropy: they are far apart where there is little noise."""
    D = Noise(T=1000, schedule=schedule)
    parts, expected = bounds.ddpm_bits(denoiser(D), gaussian_pixels(32, 8), PerImage(0, range(32))), expected_bits(D)
    error = parts.std(0) / 32**0.5
    assert ((parts.mean(0) - expected).abs() <= 4 * error + 1e-6).all()
    assert parts.sum(1).mean().item() == pytest.approx(expected.sum().item(), rel=0.01)
    assert ENTROPY < expected.sum() < 1.15 * ENTROPY


def test_some_levels_measure_what_all_levels_measure(denoiser):
    model, x0 = denoiser(Noise(T=200, schedule=Cosine())), gaussian_pixels(100, 4)
    whole, some = (bounds.ddpm_bits(model, x0, PerImage(0, range(100)), levels) for levels in (None, 80))
    difference = some.sum(1) - whole.sum(1)
    error = (difference.std() / 100**0.5).item()
    assert difference.mean().item() == pytest.approx(0, abs=4 * error)
    assert 0 < error < 0.02 * ENTROPY  # small enough to see a mistake
    assert torch.equal(some[:, 0], whole[:, 0])
    most = [bounds.ddpm_bits(model, x0[:3], PerImage(0, range(3)), levels) for levels in (None, 199, 5000)]
    assert torch.equal(most[0], most[1]) and torch.equal(most[0], most[2])


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_the_levels_that_are_measured_are_spread_by_what_they_contribute(denoiser, schedule):
    """As vcd.evaluate asks: 100 of 1,000 levels. Half of the bits come from the first ten."""
    model, x0 = denoiser(Noise(T=1000, schedule=schedule)), gaussian_pixels(40, 8)
    bits = bounds.ddpm_bits(model, x0, PerImage(0, range(40)), 100).sum(1)
    assert bits.std().item() / 256**0.5 < 0.03  # the error of the mean of 256 images, in bits a dimension


def test_the_bound_of_an_image_does_not_depend_on_its_batch(denoiser):
    model, x0 = denoiser(Noise(T=30, schedule=Cosine())), gaussian_pixels(6, 4)
    whole, one = (bounds.ddpm_bits(model, x0[rows], PerImage(5, rows), 29) for rows in (range(6), range(4, 5)))
    torch.testing.assert_close(whole[4:5], one, rtol=1e-5, atol=0)


def test_a_worse_restorer_needs_more_bits(denoiser):
    D, x0 = Noise(T=100, schedule=Linear()), gaussian_pixels(8, 8)
    bits = [bounds.ddpm_bits(denoiser(D, wrong=w), x0, PerImage(0, range(8))).sum(1).mean() for w in (0.0, 0.02, 0.05)]
    assert bits[0] + 0.1 < bits[1] and bits[1] + 0.1 < bits[2]


# --- files that are kept ----------------------------------------------------------------------------------------------

KEPT = {"a": torch.arange(6).view(2, 3), "b": torch.tensor([True, False]), "c": torch.linspace(0, 1, 50)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


class Maker:
    """Counts how often it had to make."""

    def __init__(self, tensors: dict[str, Tensor] = KEPT):
        self.tensors, self.calls = tensors, 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        return self.tensors


def test_what_was_made_is_kept_and_read_back(tmp_path, caplog):
    make, path = Maker(), tmp_path / "deep" / "x.pt"
    first, second = cached(path, make), cached(path, make)
    assert make.calls == 1 and same(first, KEPT) and same(second, KEPT)
    assert [p.name for p in path.parent.iterdir()] == ["x.pt"] and not caplog.records


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_file_is_made_anew_and_said_once(tmp_path, caplog):
    path = tmp_path / "x.pt"
    cached(path, Maker())
    whole = path.read_bytes()
    damages = {size: whole[:size] for size in (0, 1, len(whole) // 2, len(whole) - 1)}
    damages |= {-i: whole[:i] + bytes([whole[i] ^ 0x5A]) + whole[i + 1 :] for i in range(1, len(whole), 23)}
    seen = 0
    for damaged in damages.values():
        path.write_bytes(damaged)
        caplog.clear()
        make = Maker()
        assert same(cached(path, make), KEPT)  # what hits no value may do no harm
        said = [record.getMessage() for record in caplog.records]
        assert said == [f"{path} is damaged: it is made anew"] * make.calls
        assert same(cached(path, Maker({})), KEPT)
        assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]
        seen += make.calls
    assert seen > len(damages) / 4


def test_a_value_that_changed_is_noticed(tmp_path, caplog):
    path = tmp_path / "x.pt"
    cached(path, Maker())
    content = torch.load(path, weights_only=True)
    content["tensors"]["c"][7] += 1e-6
    torch.save(content, path)
    assert same(cached(path, Maker()), KEPT) and len(caplog.records) == 1


def test_what_could_not_be_made_leaves_nothing(tmp_path):
    def fail():
        raise UserError("no")

    with pytest.raises(UserError):
        cached(tmp_path / "x.pt", fail)
    assert not list(tmp_path.iterdir())


def test_features_that_are_kept_belong_to_their_images(tmp_path):
    """Two data sets of one name, size and number, such as two folders of one's own, or one folder whose files changed."""
    held = labelled(noise_images(12, seed=5))
    found = []
    for seed in (0, 1):
        data = Given(labelled(noise_images(20, seed=seed)), held, name="folder")
        found.append(evaluation(data, noise_images(6), tmp_path).features_of("train")[0])
    assert not torch.equal(*found)


# --- the classifier ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(size=8, channels=1)


def quick(root: Path, **changes) -> Classifier:
    return Classifier(**({"root": str(root), "steps": 4, "batch_size": 16} | changes))


def trained(caplog) -> bool:
    return any("training the classifier" in record.getMessage() for record in caplog.records)


def test_the_classifier_of_the_digits_knows_them(digits, tmp_path):
    classifier = Classifier(root=str(tmp_path), steps=200, batch_size=64).ready(digits)
    test = digits.load("val")
    features, logits = classifier.features(test.images, "test images")
    assert features.shape == (297, 128) and logits.shape == (297, 10)
    accuracy = (logits.argmax(1) == test.labels).double().mean().item()
    assert accuracy >= 0.95
    assert classifier.protocol["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    own = distribution.inception_score(logits)
    assert 7 < own <= 10  # ten digits, nearly balanced


def test_the_classifier_is_trained_once(digits, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first = quick(tmp_path).ready(digits)
    assert trained(caplog)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "classifiers").iterdir()}
    assert {path.suffix for path in before} == {".pt", ".json"} and len(before) == 2
    caplog.clear()
    second = quick(tmp_path).ready(digits)
    assert not trained(caplog) and second.protocol == first.protocol and not second.training
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "classifiers").iterdir()} == before
    images = digits.load("val").images[:20]
    assert all(torch.equal(a, b) for a, b in zip(first(images), second(images), strict=True))


def test_the_same_seed_gives_the_same_weights_and_other_settings_others(digits, tmp_path):
    torch.manual_seed(3)
    first = quick(tmp_path / "a").ready(digits).protocol
    torch.manual_seed(4)
    assert quick(tmp_path / "b").ready(digits).protocol == first
    hashes = {
        quick(tmp_path / "a", **change).ready(digits).protocol["weights"] for change in ({"seed": 1}, {"steps": 5}, {})
    }
    assert len(hashes) == 3


class Interrupted(ImageData):
    """The digits, whose images can be had so many times only: then somebody presses Ctrl-C."""

    def __init__(self, digits: Digits, times: int):
        super().__init__(name=digits.name, size=digits.size, channels=digits.channels)
        self.digits, self.left = digits, times

    def _load(self, split):
        whole, own = self.digits.load(split), self

        class Left(Images):
            def batch(self, index):
                own.left -= 1
                if own.left < 0:
                    raise KeyboardInterrupt
                return super().batch(index)

        return Left(whole.images, whole.labels, whole.classes)


def test_an_interrupted_training_goes_on_to_the_same_weights(digits, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    straight = quick(tmp_path / "a", steps=120).ready(digits).protocol
    for times in (70, 40):  # 0..69, kept at 50; 50..89, nothing new kept
        with pytest.raises(KeyboardInterrupt):
            quick(tmp_path / "b", steps=120).ready(Interrupted(digits, times))
        assert {path.suffix for path in (tmp_path / "b" / "classifiers").iterdir()} == {".unfinished"}
    rest = Interrupted(digits, 70)
    assert quick(tmp_path / "b", steps=120).ready(rest).protocol == straight
    assert rest.left == 0  # 50..119, nothing twice
    assert "the training goes on at step 50" in caplog.text
    assert {path.suffix for path in (tmp_path / "b" / "classifiers").iterdir()} == {".pt", ".json"}


def test_what_is_damaged_of_an_interrupted_training_is_left_out(digits, tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "b", steps=60).ready(Interrupted(digits, 55))
    (unfinished,) = (tmp_path / "b" / "classifiers").iterdir()
    unfinished.write_bytes(unfinished.read_bytes()[:1000])
    damaged = quick(tmp_path / "b", steps=60).ready(digits).protocol
    assert damaged == quick(tmp_path / "a", steps=60).ready(digits).protocol
    assert f"{unfinished} is damaged" in caplog.text


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_classifier_is_trained_anew_and_said(digits, tmp_path, caplog, damage):
    first = quick(tmp_path).ready(digits).protocol
    (weights,) = (tmp_path / "classifiers").glob("*.pt")
    whole = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        middle = len(whole) // 2
        weights.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
    else:
        weights.write_bytes(b"")
    caplog.clear()
    second = quick(tmp_path).ready(digits)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [f"{weights} is damaged: it is made anew"]
    assert second.protocol == first and not second.training
    caplog.clear()
    assert quick(tmp_path).ready(digits).protocol == first and not caplog.records


@pytest.mark.parametrize("text", ["{", "{}"])
def test_the_note_beside_the_classifier_is_written_anew_where_it_is_wrong(digits, tmp_path, text):
    first = quick(tmp_path).ready(digits).protocol
    (note,) = (tmp_path / "classifiers").glob("*.json")
    note.write_text(text)
    assert quick(tmp_path).ready(digits).protocol == first and json.loads(note.read_text()) == first


def test_other_test_images_are_measured_anew(digits, tmp_path):
    """The accuracy is part of the protocol: it belongs to the test images."""
    first = quick(tmp_path).ready(digits)

    class Other(ImageData):
        def _load(self, split):
            images = digits.load(split)
            return replace(images, labels=(images.labels + 1) % 10) if split == "val" else images

    other = quick(tmp_path).ready(Other(name=digits.name, size=8, channels=1))
    assert other.protocol["weights"] == first.protocol["weights"] and other.accuracy != first.accuracy


def test_a_single_class_cannot_be_classified(tmp_path):
    data = Given(labelled(noise_images(20), classes=1), labelled(noise_images(5), classes=1), name="mine")
    with pytest.raises(UserError) as caught:
        quick(tmp_path).ready(data)
    sentence = str(caught.value)
    assert "mine" in sentence and "extractor=inception" in sentence and "\n" not in sentence
    assert not (tmp_path / "classifiers").exists()


def test_a_classifier_belongs_to_its_images(tmp_path):
    """Not to the name and the number of images of a data set: every folder of one's own is called folder."""
    held = labelled(noise_images(8, seed=5))
    one, other = (Given(labelled(noise_images(20, seed=seed)), held, name="folder") for seed in (0, 1))
    assert quick(tmp_path).ready(one).protocol["weights"] != quick(tmp_path).ready(other).protocol["weights"]


# --- Inception --------------------------------------------------------------------------------------------------------


def test_inception_without_its_weights_says_where_they_belong(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        Inception().ready(digits)
    sentence = str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / FILE) in sentence and "prefetch=true" in sentence
    assert "\n" not in sentence
    with pytest.raises(UserError, match="there.pth"):
        Inception(weights=str(tmp_path / "there.pth"), prefetch=True).ready(digits)
    (tmp_path / "broken.pth").write_bytes(b"once upon a time")
    with pytest.raises(UserError, match=f"{FILE}.*broken.pth"):
        Inception(weights=str(tmp_path / "broken.pth")).ready(digits)


# --- tables of runs ---------------------------------------------------------------------------------------------------


def number(value: float | None, floor: float | None = None, **protocol) -> dict:
    return {
        "value": value,
        "better": "lower",
        "floor": floor,
        "unit": "",
        "protocol": {"n": 50, "weights": "w"} | protocol,
    }


def folder(root: Path, name: str, model: str, metrics: dict, seconds: float | None = 3.5, **facts) -> Path:
    path = root / name
    path.mkdir(parents=True)
    subject = {"model": model, "parameters": 1000, "images_seen": 640, "steps": 10, "training_seed": 0} | facts
    (path / "metrics.json").write_text(json.dumps({"subject": subject, "metrics": metrics, "curves": {}}))
    (path / "status.json").write_text(json.dumps({"identity": name, "state": "finished"}))
    if seconds is not None:
        (path / "times.csv").write_text(f"step,seconds\n5,1.0\n10,{seconds}\n")
    return path


@pytest.fixture
def three(tmp_path) -> list[Path]:
    """Two seeds of one variant, and one seed of another that has no bound."""
    own = {"seed0": (12.5, 3.25), "seed1": (13.75, 3.5)}
    paths = [
        folder(
            tmp_path,
            f"digits-vcd-blur-1234abcd-{seed}",
            "VCD",
            {"fcd_50": number(a, 1.5), "rate_bits": number(b)},
            3.0 + i,
        )
        for i, (seed, (a, b)) in enumerate(own.items())
    ]
    return [
        *paths,
        folder(tmp_path, "digits-ddpm-noise-9999ffff-seed0", "DDPM", {"fcd_50": number(43210.5, 1.5)}, None),
    ]


def table_of(paths: list[Path]) -> tables.Table:
    return tables.table(tables.group([tables.read(path) for path in paths]))


def test_seeds_of_one_configuration_are_one_variant(three):
    variants = tables.group([tables.read(path) for path in three])
    assert [(v.name, [run.folder.name[-5:] for run in v.runs]) for v in variants] == [
        ("VCD", ["seed0", "seed1"]),
        ("DDPM", ["seed0"]),
    ]


def test_two_variants_of_one_model_are_told_apart(tmp_path):
    paths = [folder(tmp_path, f"digits-vcd-{x}-seed0", "VCD", {"fcd_50": number(1.0)}) for x in ("blur-1", "black-2")]
    assert table_of(paths).rows == ["digits-vcd-blur-1", "digits-vcd-black-2"]
    called = {paths[1]: "to black"}  # by vcd.compare's `train`
    assert [v.name for v in tables.group([tables.read(path) for path in paths], called)] == [
        "digits-vcd-blur-1",
        "to black",
    ]


def test_seeds_of_one_configuration_are_one_variant_whatever_their_folders_are_called(three):
    paths = [three[0].rename(three[0].with_name("mine")), three[1].rename(three[1].with_name("yours")), three[2]]
    assert [(v.name, len(v.runs)) for v in tables.group([tables.read(path) for path in paths])] == [
        ("VCD", 2),
        ("DDPM", 1),
    ]


def test_a_run_that_is_named_twice_is_no_second_seed(three):
    table = table_of([three[0], three[0]])
    assert "±" not in table.cell("VCD", "fcd_50")


def test_mean_and_deviation_are_taken_over_seeds(three):
    table = table_of(three)
    assert table.values["VCD", "fcd_50"] == [12.5, 13.75] and table.values["DDPM", "fcd_50"] == [43210.5]
    deviation = math.sqrt(((12.5 - 13.125) ** 2 + (13.75 - 13.125) ** 2) / 1)
    mean, _, std = table.cell("VCD", "fcd_50").partition(" ± ")
    assert float(mean) == pytest.approx(13.125, rel=1e-3) and float(std) == pytest.approx(deviation, rel=1e-3)
    assert table.cell("DDPM", "rate_bits") == "" and table.cell("DDPM", "training s") == ""
    assert table.values["VCD", "training s"] == [3.0, 4.0]
    assert table.floors["fcd_50"] == 1.5 and table.floors["rate_bits"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"n": 60}, ["n: 50 and 60"]), ({"weights": "v", "split": "val"}, ["weights: w and v", "split: None and val"])],
)
def test_numbers_of_different_protocols_are_refused_with_what_differs(three, tmp_path, changes, words):
    other = folder(tmp_path, "digits-vwd-blur-5678-seed0", "VWD", {"fcd_50": number(3.0, **changes)})
    with pytest.raises(UserError) as caught:
        table_of([*three, other])
    sentence = str(caught.value)
    assert all(word in sentence for word in [*words, "fcd_50", three[0].name, other.name]) and "\n" not in sentence


def test_numbers_of_different_protocols_may_be_left_out(three, tmp_path):
    other = folder(
        tmp_path, "digits-vwd-blur-5678-seed0", "VWD", {"fcd_50": number(3.0), "rate_bits": number(1.0, levels=[3])}
    )
    with pytest.raises(UserError, match="rate_bits"):
        table_of([*three, other])
    found = tables.table(tables.group([tables.read(path, ["rate", "psnr"]) for path in (*three, other)]))
    assert "rate_bits" not in found.columns and found.cell("VWD", "fcd_50") == "3"


def test_numbers_of_version_0_1_compare_with_todays(tmp_path):
    """A key of the protocol has another name since."""
    old, new = (
        folder(tmp_path, f"digits-ddpm-noise-{i}-seed0", "DDPM", {"bits_per_dim": number(3.0 + i, **{key: 100})})
        for i, key in enumerate(("levels_an_image", "levels_per_image"))
    )
    assert table_of([old, new]).columns[0] == "bits_per_dim"


def test_metrics_that_only_some_have_do_not_matter(three, tmp_path):
    other = folder(tmp_path, "digits-vwd-blur-5678-seed0", "VWD", {"fcd_60": number(3.0, n=60)})
    table = table_of([*three, other])
    assert table.cell("VWD", "fcd_60") == "3" and table.cell("VWD", "fcd_50") == table.cell("VCD", "fcd_60") == ""


def test_a_number_that_was_not_finite_is_an_empty_cell(three, tmp_path):
    """null in metrics.json: JSON has no infinity."""
    other = folder(tmp_path, "digits-vwd-blur-5678-seed0", "VWD", {"fcd_50": number(None, 1.5)})
    table = table_of([*three, other])
    assert table.cell("VWD", "fcd_50") == "" and table.cell("DDPM", "fcd_50") != ""
    for written in (tables.markdown, tables.plain, tables.latex):
        assert "None" not in written(table)


def numbers_of(cell: str) -> list[float]:
    return [float(part.replace(",", "")) for part in cell.replace(r"$\pm$", "±").split("±") if part.strip()]


def check(cells: list[list[str]], table: tables.Table) -> None:
    """Rows of metrics and columns of variants say what the table holds, to four digits."""
    head, *rows = cells
    assert head[0] == "" and head[1 : 1 + len(table.rows)] == table.rows and head[-1] == "real images"
    assert [row[0] for row in rows] == table.columns
    for row in rows:
        for name, cell in zip(table.rows, row[1:], strict=False):
            values = table.values.get((name, row[0]), [])
            expected = [
                f(values) for f, least in ((statistics.fmean, 1), (statistics.stdev, 2)) if len(values) >= least
            ]
            assert numbers_of(cell) == pytest.approx(expected, rel=6e-4), row
        floor = table.floors.get(row[0])
        assert numbers_of(row[-1]) == pytest.approx([] if floor is None else [floor], rel=6e-4)


def test_markdown_can_be_read_back(three):
    table = table_of(three)
    lines = tables.markdown(table).strip().splitlines()
    assert (
        all(line.startswith("|") and line.endswith("|") for line in lines)
        and len({line.count("|") for line in lines}) == 1
    )
    assert set(lines[1].replace("|", " ").split()) == {"---"}
    check([[cell.strip() for cell in line[1:-1].split("|")] for line in (lines[0], *lines[2:])], table)


def test_latex_can_be_read_back(three):
    table = table_of(three)
    text = tables.latex(table)
    assert text.startswith("\\begin{tabular}{lrrr}\n\\toprule\n") and text.endswith("\\bottomrule\n\\end{tabular}\n")
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    check([[cell.strip().replace(r"\_", "_") for cell in line.split("&")] for line in lines], table)
    assert "_" not in text.replace(r"\_", "") and "±" not in text


def test_csv_has_every_digit(three):
    table = table_of(three)
    rows = list(csv.DictReader(io.StringIO(tables.plain(table))))
    assert len(rows) == len(table.values)
    for row in rows:
        values = table.values[row["variant"], row["metric"]]
        assert float(row["mean"]) == statistics.fmean(values) and int(row["seeds"]) == len(values)
        assert (float(row["std"]) == statistics.stdev(values)) if len(values) > 1 else row["std"] == ""
        floor = table.floors.get(row["metric"])
        assert row["floor"] == ("" if floor is None else str(floor))


def test_a_folder_without_metrics_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no metrics.json.*vcd.evaluate"):
        tables.read(tmp_path)


def test_a_run_too_short_for_a_row_of_times_is_compared_all_the_same(tmp_path):
    """log_every_n_steps is 50: a run of 20 steps has the header alone."""
    path = folder(tmp_path, "digits-vcd-blur-1-seed0", "VCD", {"fcd_50": number(1.0)})
    (path / "times.csv").write_text("step,seconds\n")
    assert table_of([path]).cell("VCD", "training s") == ""


def test_metrics_of_a_folder_of_images_are_refused_in_a_sentence_or_compared(tmp_path):
    """What evaluate images=DIR writes knows no model."""
    path = tmp_path / "pictures"
    path.mkdir()
    content = {"subject": {"images": "/somewhere", "n": 50}, "metrics": {"fcd_50": number(1.0)}, "curves": {}}
    (path / "metrics.json").write_text(json.dumps(content))
    try:
        assert table_of([path]).values
    except UserError as error:
        assert "\n" not in str(error)


def test_the_comparison_on_a_cpu_trains_what_can_be_trained(compose):
    cfg = compose("experiment=compare_mnist_cpu", config="compare")
    assert set(cfg.train) == {"vcd", "vwd", "ddpm", "bansal", "rissanen"}
    parameters = {}
    for name, overrides in cfg.train.items():
        one = compose(*cfg.common, *overrides)
        assert one.dataset.name == "mnist"
        parameters[name] = sum(p.numel() for p in training.build(one).network.parameters())
    assert max(parameters.values()) < 1.5 * min(parameters.values())
    for override in cfg.evaluate:
        compose(override, config="evaluate")


# --- times ------------------------------------------------------------------------------------------------------------


class Line(L.LightningModule):
    """y = w x: as little as can be trained."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        time.sleep(0.01)
        return (self.w * batch - batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(1000, 1), batch_size=1)


def fit(path: Path, steps: int, ckpt: Path | None = None, **changes) -> L.Trainer:
    parts = dict(max_steps=steps, log_every_n_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                 enable_progress_bar=False, enable_model_summary=False, callbacks=[Timing(path=path)])  # fmt: skip
    trainer = L.Trainer(**(parts | changes))
    trainer.fit(Line(), ckpt_path=ckpt)
    return trainer


def rising(rows: list[tuple[int, float]]) -> bool:
    return all(a[0] < b[0] and a[1] < b[1] for a, b in zip(rows, rows[1:], strict=False))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_times_rise_with_the_steps_and_over_a_resume(tmp_path):
    path, ckpt = tmp_path / "times.csv", tmp_path / "x.ckpt"
    fit(path, 6).save_checkpoint(ckpt, weights_only=False)
    first = timing.read(path)
    assert [step for step, _ in first] == [2, 4, 6] and rising(first) and 0.01 < first[0][1] < 5
    with open(path, "a") as file:
        file.write("8,99.0\n")  # of a run that went on and was lost
    time.sleep(1.0)  # nobody trains
    fit(path, 10, ckpt)
    rows = timing.read(path)
    assert rows[:3] == first and [step for step, _ in rows] == [2, 4, 6, 8, 10] and rising(rows)
    between = rows[3][1] - rows[2][1]
    assert 0.02 <= between < 0.9  # the pause does not count


def test_a_new_run_does_not_go_on_in_an_old_file(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("step,seconds\n2,77.0\n")
    fit(path, 4)
    assert [step for step, _ in timing.read(path)] == [2, 4] and timing.read(path)[0][1] < 10


def test_times_survive_in_the_state(tmp_path):
    path = tmp_path / "times.csv"
    trainer = fit(path, 4)
    (callback,) = (c for c in trainer.callbacks if isinstance(c, Timing))
    state = callback.state_dict()
    assert state["seconds"] >= timing.read(path)[-1][1] - 0.0005  # which is rounded to milliseconds
    other = Timing(path=tmp_path / "other.csv")
    other.load_state_dict(state)
    assert other.seconds == state["seconds"]


def test_what_has_not_begun_has_taken_no_time(tmp_path):
    assert Timing(path=tmp_path / "times.csv").state_dict()["seconds"] == pytest.approx(0, abs=0.1)


def test_a_step_of_several_batches_is_one_row(tmp_path):
    fit(tmp_path / "times.csv", 4, accumulate_grad_batches=3)
    assert [step for step, _ in timing.read(tmp_path / "times.csv")] == [2, 4]


# --- numbers that are not finite --------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_named():
    good = Number(1.0, "lower")
    numbers = {"a": good, "b": replace(good, value=math.nan), "c": replace(good, value=math.inf)}
    assert not_finite(numbers) == ["b", "c"]
