"""`python -m vcd.evaluate` and `vcd.compare`: metrics.json by its schema, the same numbers by every way, one table."""

import csv
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROLLOUT, SHORT, TINY, scramble
from jsonschema import Draft202012Validator
from PIL import Image
from test_metrics import Exact, Given, evaluation, labelled, noise_images
from test_report import look
from test_sample import one_sentence
from torch import nn

from vcd import checkpoints, evaluate, figures, training
from vcd.comparison import making
from vcd.data.digits import Digits
from vcd.errors import UserError
from vcd.images import to_float, to_uint8
from vcd.metrics import family, samples
from vcd.metrics.classifier import Classifier
from vcd.metrics.families import restoration, spectrum
from vcd.metrics.inception import FILE
from vcd.metrics.results import Number, Result, not_finite
from vcd.randomness import PerImage
from vcd.report import render

pytestmark = pytest.mark.usefixtures("seed")

SCHEMA = Path(samples.__file__).with_name("metrics.schema.json")
FAMILIES = ["distribution", "spectrum", "memorisation", "restoration", "bound"]
QUICK = ["n=60", "extractor.steps=200", "extractor.batch_size=64", "restored=12", "device=cpu"]
HUGE = 3e38  # finite, and what the network makes of it is not
DISTRIBUTION = {f"{name}_60" for name in ("fcd", "kcd", "cs", "precision", "recall", "density", "coverage")}
DISTRIBUTION |= {"fcd_60_heldout", "kcd_60_heldout"}
SPECTRUM = {"log_spectral_distance_60", "log_spectral_distance_60_heldout"}
MEMORISATION = {f"{name}_60" for name in ("nearest_train", "copies", "classes_tv")}
OF_SAMPLES = {*DISTRIBUTION, *MEMORISATION, *SPECTRUM}


def strict(path: Path) -> dict:
    """A JSON file as every parser reads it."""

    def refuse(word: str):
        raise AssertionError(f"{path} holds {word}, which is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def fitting(path: Path) -> dict:
    """A metrics.json that fits the schema."""
    document = strict(path)
    wrong = [f"{error.json_path}: {error.message}" for error in schema().iter_errors(document)]
    assert not wrong, "\n".join(wrong)
    return document


def schema() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text()))


def values(document: dict) -> dict[str, float]:
    return {name: number["value"] for name, number in document["metrics"].items()}


# --- the schema -------------------------------------------------------------------------------------------------------


def number(value: float | None = 1.0, **changes) -> dict:
    return {"value": value, "better": "lower", "floor": None, "unit": "", "protocol": {"data": "digits"}} | changes


def test_the_schema_is_one_and_refuses_what_is_none():
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))
    versions = dict.fromkeys(("vcd", "python", "torch", "torchmetrics", "torch-fidelity", "scikit-learn"), "1.0")
    good = {"schema": "vcd-metrics-1", "date": "2026-11-22", "machine": "x", "versions": versions, "curves": {},
            "subject": {"images": "/x", "n": 60}, "metrics": {"new_metric": number()}}  # fmt: skip
    assert schema().is_valid(good)
    for key, other in (
        ("schema", "vcd-metrics-2"),
        ("date", "yesterday"),
        ("subject", {"n": 60}),
        ("metrics", {"fcd_60": number()}),  # without floor and protocol
        ("metrics", {"new_metric": number(better="less")}),
        ("metrics", {"new_metric": number(floor="1")}),
        ("curves", {"steps": [{"t": 0}]}),
    ):
        assert not schema().is_valid(good | {key: other}), (key, other)


# --- every model, in this process -------------------------------------------------------------------------------------

COLD = {"degraded", "algorithm_1", "algorithm_2", "direct"}
KINDS = {
    "vcd": (["model=vcd", "degradation=black_blur"], {"degraded", "own", "posterior"},
            {"rate_bits", "distortion_mse", "path_bound_bits_per_dim", "bits_per_dim"}),
    "warm": (["model=vcd"], {"degraded", "posterior", *COLD}, {"rate_bits", "distortion_mse"}),
    "jumps": (["model=vwd", "degradation=black_blur", "prediction=vxt", "sampler.steps=2"], {"own", "posterior", *COLD},
              {"rate_bits", "distortion_mse", "path_bound_bits_per_dim", "bits_per_dim"}),
    "ddpm": (["model=ddpm", "T=1000", "sampler.steps=3"], {"own", *COLD}, {"bits_per_dim"}),
    "vdm": (["model=vdm", "sampler.steps=3"], {"own", *COLD}, {"bits_per_dim"}),
    "bansal": (["model=bansal"], COLD, set()),
    "rissanen": (["model=rissanen", "start.images=20"], {"degraded", "own"}, {"bits_per_dim"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def build(compose) -> Callable:
    """build("model=ddpm", ...): a tiny model whose weights all matter, fitted to where it starts."""

    @functools.cache
    def build(*overrides: str):
        model = scramble(training.build(compose(*TINY, *overrides)), std=0.1).eval()
        model.start.fit([to_float(noise_images(40))], model.degradation)
        return model

    return build


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Classifier:
    root = tmp_path_factory.mktemp("classifier")
    return Classifier(root=str(root), steps=5, batch_size=16).ready(Digits(size=8, channels=1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_measures_every_model(build, classifier, tmp_path, kind):
    overrides, ways, bounds = KINDS[kind]
    model = build(*overrides)
    images, finite = samples.draw(model, 0, range(60), 25, show=False)
    assert finite.all()
    parts = dict(model=model, make_extractor=lambda: classifier, restored=6)
    e = evaluation(Digits(size=8, channels=1), images, tmp_path, **parts)
    result = Result()
    for name in FAMILIES:
        part = family.find(name).measure(e)
        assert not result.numbers.keys() & part.numbers.keys() and not result.curves.keys() & part.curves.keys()
        result.numbers |= part.numbers
        result.curves |= part.curves
    restored = {f"{name}_{way}" for name in ("fcd_6", "psnr", "ssim", "rmse") for way in ways}
    assert result.numbers.keys() - {f"lpips_{way}" for way in ways} == OF_SAMPLES | restored | bounds
    assert not_finite(result.numbers) == []
    evaluate.write(e.out, {"images": "drawn", "n": 60}, result.plain())
    document = fitting(e.out)
    with Image.open(figures.evaluation(tmp_path / "drawn.png", result.curves)) as drawn:
        assert drawn.width > 400
    assert document["metrics"]["fcd_60"]["value"] > document["metrics"]["fcd_60"]["floor"] > 0
    levels = [row["t"] for row in document["curves"]["restoration"]]
    assert levels == sorted(levels) and max(levels) == model.degradation.T
    assert sum(document["curves"]["classes"]["samples"]) == 60


def test_families_do_not_move_the_global_randomness(build, classifier, tmp_path):
    model = build("model=vwd")
    e = evaluation(
        Digits(size=8, channels=1), noise_images(60), tmp_path, model=model, make_extractor=lambda: classifier
    )
    before = torch.get_rng_state()
    for name in FAMILIES:
        family.find(name).measure(e)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_table_names_every_number_with_its_floor():
    numbers = {"fcd_60": Number(12.25, "lower", 3.5), "psnr_own": Number(20.0, "higher", None, "dB")}
    head, first, second = (line.split() for line in evaluate.table(numbers))
    assert head == ["metric", "value", "real", "data", "better"]
    assert first == ["fcd_60", "12.25", "3.5", "lower"] and second == ["psnr_own", "20", "higher", "dB"]


def test_what_is_not_finite_is_still_json(build, tmp_path):
    """Black samples have no power at all in most bands."""
    data = Given(labelled(noise_images(20)), labelled(noise_images(20, seed=1)))
    model = build("model=bansal")
    network, model.network = model.network, Exact(model, to_float(data.load("val").balanced(8)))
    try:
        e = evaluation(data, torch.zeros_like(noise_images(20)), tmp_path, model=model)
        result = restoration.measure(e)
        part = spectrum.measure(e)
        result.numbers |= part.numbers
        result.curves |= part.curves
    finally:
        model.network = network
    evaluate.write(e.out, {"images": "drawn", "n": 20}, result.plain())
    assert values(fitting(e.out))["log_spectral_distance_20"] is None


def test_what_is_not_finite_is_still_a_page():
    page = render([replace(look("a"), evaluation={"metrics": {"psnr_own": number(None), "fcd_60": number(1.25)}})])
    assert "psnr_own" in page and "1.25" in page


# --- samples ----------------------------------------------------------------------------------------------------------


class SometimesNaN(nn.Module):
    """Restores what is rather dark; of what is rather bright it makes NaN, and of the rest infinity."""

    def forward(self, x, t, s, z):
        mean = x.mean((1, 2, 3), keepdim=True)
        return torch.where(mean > 0.3, torch.nan, torch.where(mean > 0.0, torch.inf, x.clamp(-1, 1)))


def test_samples_that_are_not_finite_are_counted_and_harm_no_other(compose):
    model = training.build(compose(*TINY, "model=bansal", "sampler=one_shot")).eval()
    model.network = SometimesNaN()
    model.start.fit([torch.rand(200, 1, 1, 1).expand(-1, 1, 8, 8) * 2 - 1], model.degradation)
    x_T = model.start.sample(PerImage(4, range(40)))
    good = x_T.mean((1, 2, 3)) <= 0
    assert 5 < good.sum() < 35
    for size in (40, 7):
        images, finite = samples.draw(model, 4, range(40), size, show=False)
        assert torch.equal(finite, good) and images.shape == (40, 1, 8, 8)
        assert torch.equal(images[good], to_uint8(x_T[good]))


def test_samples_belong_to_seed_and_index_not_to_the_batch(build):
    model = build("model=vcd")
    whole, _ = samples.draw(model, 3, range(20), 20, show=False)
    parts, _ = samples.draw(model, 3, range(20), 3, show=False)
    later, _ = samples.draw(model, 3, range(12, 20), 5, show=False)
    for some, expected in ((parts, whole), (later, whole[12:])):
        apart = (some.int() - expected.int()).abs()
        assert apart.max() <= 1 and (apart > 0).double().mean() < 1e-3
    assert (samples.draw(model, 4, range(20), 20, show=False)[0].int() - whole.int()).abs().max() > 1


# --- what to compare with ---------------------------------------------------------------------------------------------


def test_the_reference_is_the_runs_own_data_set_or_the_one_that_is_named(compose, tmp_path):
    run = compose("dataset=digits")
    assert evaluate.reference(compose(config="evaluate"), run).name == "digits"
    named = evaluate.reference(compose("dataset=mnist", f"data.root={tmp_path}", config="evaluate"), None)
    assert named.name == "mnist" and named.size == 28
    with pytest.raises(UserError, match="size 8.*mnist has 28.*dataset=digits"):
        evaluate.reference(compose("dataset=mnist", config="evaluate"), run)
    with pytest.raises(UserError, match="channels 1.*dataset=cifar10 has 3"):
        evaluate.reference(compose("dataset=cifar10", "dataset.size=8", config="evaluate"), run)
    with pytest.raises(UserError, match="dataset=mnist"):
        evaluate.reference(compose(config="evaluate"), None)


def test_metrics_of_a_kept_checkpoint_lie_beside_those_of_the_last(tmp_path):
    assert evaluate.place(tmp_path / "last.ckpt") == tmp_path / "metrics.json"
    assert evaluate.place(tmp_path / "step-0000500.ckpt") == tmp_path / "metrics-step-0000500.json"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Where the classifier and the features of the digits are kept."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def measure(command, root) -> Callable:
    """measure("n=60", ..., cwd=folder): vcd.evaluate with the data kept at `root`."""
    return functools.partial(command, "evaluate", VCD_DATA=str(root))


@pytest.fixture(scope="module")
def prefetched(measure, tmp_path_factory) -> subprocess.CompletedProcess:
    process = measure("prefetch=true", "dataset=digits", *QUICK, cwd=tmp_path_factory.mktemp("prefetch"))
    assert process.returncode == 0, process.stderr
    return process


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Path:
    """A copy of the trained run folder."""
    return Path(shutil.copytree(trained.last.parent, tmp_path_factory.mktemp("runs") / trained.last.parent.name))


@pytest.fixture(scope="module")
def first(measure, run, prefetched) -> subprocess.CompletedProcess:
    """The first evaluation of `run`, with everything there is to measure."""
    process = measure(f"ckpt={run / 'last.ckpt'}", f"metrics=[{','.join(FAMILIES)}]", *QUICK, cwd=run.parent)
    assert process.returncode == 0, process.stderr
    return process


@pytest.fixture
def again(run, first, tmp_path) -> Path:
    """A copy of `run`, evaluated."""
    return Path(shutil.copytree(run, tmp_path / run.name))


def stamps(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_prefetching_leaves_all_that_the_extractor_needs(prefetched, first, root):
    assert "everything is there" in prefetched.stdout and "training the classifier" in prefetched.stdout
    assert "training the classifier" not in first.stdout
    assert sorted(path.suffix for path in (root / "classifiers").iterdir()) == [".json", ".pt"]


@pytest.mark.long
def test_every_family_is_in_a_metrics_json_that_fits_the_schema(run, first, trained):
    document = fitting(run / "metrics.json")
    ways = {f"{name}_{way}" for name in ("psnr", "ssim", "rmse", "fcd_12") for way in KINDS["vcd"][1]}
    bounds = {"rate_bits", "distortion_mse", "path_bound_bits_per_dim", "bits_per_dim"}
    assert values(document).keys() - {f"lpips_{way}" for way in KINDS["vcd"][1]} == OF_SAMPLES | ways | bounds
    subject = document["subject"]
    assert subject["sha256"] == checkpoints.fingerprint(trained.last)
    assert (subject["model"], subject["prior"], subject["n"], subject["not_finite"]) == ("VCD", "Mixture", 60, 0)
    assert (subject["steps"], subject["images_seen"], subject["T"], subject["evaluations_per_sample"]) == (
        20,
        320,
        3,
        3,
    )
    assert subject["delta"] > 0 and subject["temperature"] == 1 and subject["training_seed"] == subject["seed"] == 0
    protocol = document["metrics"]["fcd_60"]["protocol"]
    assert (protocol["n"], protocol["reference_n"], protocol["floor_n"], protocol["split"]) == (60, 1500, 60, "train")
    assert protocol["extractor"] == "classifier" and protocol["test_accuracy"] > 0.95
    assert document["metrics"]["kcd_60"]["protocol"]["weights"] == protocol["weights"]
    levels = sorted({row["t"] for row in document["curves"]["restoration"]})
    assert levels == [1, 2, 3] == [row["t"] for row in document["curves"]["steps"]]


@pytest.mark.long
def test_the_terminal_shows_the_numbers_and_where_they_are(run, first):
    document = fitting(run / "metrics.json")
    lines = [line.split() for line in first.stdout.splitlines()]
    for name, one in document["metrics"].items():
        (line,) = [line for line in lines if line and line[0] == name]
        assert float(line[1]) == pytest.approx(one["value"], rel=1e-4)
        assert one["floor"] is None or float(line[2]) == pytest.approx(one["floor"], rel=1e-4)
    found = {line[-1] for line in lines if line[0] in ("picture", "metrics") and len(line) == 2}
    assert all(Path(path).is_file() for path in found) and str(run / "metrics.json") in found and len(found) >= 2
    assert "60 images are few" in first.stdout
    assert all(f"[{i + 1}/5] {name}" in first.stdout for i, name in enumerate(FAMILIES))


@pytest.mark.long
def test_the_second_call_says_the_same_and_makes_nothing_anew(measure, run, first, root):
    before, document = stamps(root, run / "samples"), fitting(run / "metrics.json")
    process = measure(f"ckpt={run / 'last.ckpt'}", f"metrics=[{','.join(FAMILIES)}]", *QUICK, cwd=run.parent)
    assert process.returncode == 0, process.stderr
    assert strict(run / "metrics.json")["metrics"] == document["metrics"]
    assert strict(run / "metrics.json")["curves"] == document["curves"]
    assert strict(run / "metrics.json")["subject"] == document["subject"]
    assert stamps(root, run / "samples") == before
    assert "sampling" not in process.stderr and "training the classifier" not in process.stdout
    assert not [path for path in (*root.rglob(".*"), *run.rglob(".*"))]


@pytest.mark.long
def test_a_truncated_cache_of_samples_is_rebuilt_and_said_once(measure, again, run):
    (cache,) = (again / "samples").iterdir()
    cache.write_bytes(cache.read_bytes()[: cache.stat().st_size // 2])
    process = measure(f"ckpt={again / 'last.ckpt'}", "metrics=[distribution,spectrum]", *QUICK, cwd=again.parent)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("is damaged: it is made anew") == 1 and f"{cache.name} is damaged" in process.stdout
    expected, found = (values(fitting(folder / "metrics.json")) for folder in (run, again))
    assert found == {name: expected[name] for name in {*DISTRIBUTION, *SPECTRUM}}
    images = [
        torch.load(folder / "samples" / cache.name, weights_only=True)["tensors"]["images"] for folder in (run, again)
    ]
    assert torch.equal(*images)


def near(found: dict[str, float], expected: dict[str, float]) -> None:
    """A pixel may be rounded the other way: a part in 100, and of shares two images."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=0.01, abs=2 / 60 if name in MEMORISATION else 1e-3), name


@pytest.mark.long
def test_two_processes_and_another_size_of_batch_draw_the_same_samples(measure, again, run):
    (cache,) = (again / "samples").iterdir()
    shutil.rmtree(again / "samples")
    arguments = [f"ckpt={again / 'last.ckpt'}", "processes=2", "batch_size=7", *QUICK]
    process = measure(*arguments, cwd=again.parent)
    assert process.returncode == 0, process.stderr
    kept = [torch.load(folder / "samples" / cache.name, weights_only=True)["tensors"] for folder in (run, again)]
    apart = (kept[0]["images"].int() - kept[1]["images"].int()).abs()
    assert apart.max() <= 1 and (apart > 0).double().mean() < 1e-3
    assert kept[1]["images"].shape == (60, 1, 8, 8) and kept[1]["finite"].all()
    expected = values(fitting(run / "metrics.json"))
    near(values(fitting(again / "metrics.json")), {name: expected[name] for name in OF_SAMPLES})


@pytest.mark.long
def test_a_folder_of_the_same_images_has_the_same_numbers(command, measure, run, first, tmp_path):
    drawn = command("sample", f"ckpt={run / 'last.ckpt'}", "n=60", "rows=0", "out=drawn", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    process = measure("images=drawn/png", "dataset=digits", "out=images.json", *QUICK, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    document, expected = fitting(tmp_path / "images.json"), fitting(run / "metrics.json")
    assert document["subject"] == {"images": str(tmp_path / "drawn" / "png"), "n": 60}
    assert values(document).keys() == OF_SAMPLES
    for name, one in document["metrics"].items():
        other = expected["metrics"][name]
        assert one["value"] == pytest.approx(other["value"], rel=1e-6, abs=1e-6), name
        assert one["floor"] == other["floor"] and one["protocol"] == other["protocol"], name
    assert document["curves"]["classes"] == expected["curves"]["classes"]


@pytest.mark.long
def test_the_pictures_of_any_out_are_files_of_their_own(measure, run, first, tmp_path):
    process = measure(
        f"ckpt={run / 'last.ckpt'}", "metrics=[memorisation]", f"out={tmp_path / 'mine.json'}", *QUICK, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    pictures = [line.split()[-1] for line in process.stdout.splitlines() if line.startswith("picture")]
    assert len(pictures) == len(set(pictures)) and all(Path(path).is_file() for path in pictures)


def poisoned(ckpt: Path, path: Path, means: list[float]) -> Path:
    """The checkpoint with a mixture of two equal components at these means, in one latent unit."""
    checkpoint = torch.load(ckpt, weights_only=True)
    mixture = {"units": torch.tensor([0]), "weights": torch.tensor([0.5, 0.5]),
               "means": torch.tensor(means)[:, None], "factors": torch.ones(2, 1, 1)}  # fmt: skip
    for state in ("state_dict", "current_model_state"):
        checkpoint[state].update({f"prior.{name}": value for name, value in mixture.items()})
    path.parent.mkdir(parents=True)
    torch.save(checkpoint, path)
    return path


@pytest.mark.long
def test_nothing_is_trained_that_is_not_needed(measure, run, tmp_path):
    """The spectrum needs no classifier, and nothing at all needs none either."""
    for metrics, expected in (("[]", set()), ("spectrum", SPECTRUM)):
        arguments = [f"ckpt={run / 'last.ckpt'}", f"metrics={metrics}", f"out={tmp_path / 'm.json'}", *QUICK]
        process = measure(*arguments, cwd=tmp_path, VCD_DATA=str(tmp_path / "data"))
        assert process.returncode == 0, process.stderr
        assert "training" not in process.stdout and not (tmp_path / "data" / "classifiers").exists()
        assert values(fitting(tmp_path / "m.json")).keys() == expected


@pytest.mark.long
def test_raw_weights_say_whose_prior_they_have(measure, run, prefetched, tmp_path):
    for arguments, fitted in (([], "averaged weights"), (["prior=independent"], None)):
        arguments = [
            f"ckpt={run / 'last.ckpt'}",
            "raw=true",
            "metrics=[spectrum]",
            f"out={tmp_path / 'm.json'}",
            *arguments,
        ]
        process = measure(*arguments, *QUICK, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        assert fitting(tmp_path / "m.json")["subject"]["prior_fitted_to"] == fitted
        assert ("fitted to latents of the averaged weights" in process.stdout) == (fitted is not None)


def test_what_replaces_parts_of_the_model_is_in_the_name_of_the_file():
    """So that the numbers of the run as it was trained stay: metrics.json."""
    assert evaluate.named({}, raw=False) == ""
    ddim, flow = {"_target_": "vcd.samplers.DDIM", "steps": 8}, {"_target_": "vcd.priors.Flow", "steps": 4000}
    assert (
        evaluate.named({"prior": flow, "sampler": ddim, "temperature": 0.8}, raw=False) == "-flow-ddim8-temperature0.8"
    )
    assert evaluate.named({"sampler": ddim | {"steps": None}, "guess.weight": 2.0}, raw=False) == "-ddim-guided2"
    assert evaluate.named({"sampler.delta": 0.15}, raw=True) == "-raw-delta0.15"


@pytest.mark.long
def test_metrics_of_another_prior_stand_beside_those_of_the_run(measure, run, prefetched, tmp_path):
    before = (run / "metrics.json").read_bytes() if (run / "metrics.json").exists() else None
    process = measure(f"ckpt={run / 'last.ckpt'}", "metrics=[spectrum]", "prior=independent", *QUICK, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert fitting(run / "metrics-independent.json")["subject"]["prior"] == "Independent"
    assert (run / "metrics.json").read_bytes() == before if before else not (run / "metrics.json").exists()


@pytest.mark.long
def test_samples_that_are_not_finite_are_left_out_and_said(measure, run, prefetched, tmp_path):
    ckpt = poisoned(run / "last.ckpt", tmp_path / "some" / "last.ckpt", [0.0, HUGE])
    process = measure(f"ckpt={ckpt}", "metrics=[spectrum,memorisation]", *QUICK, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    (said,) = re.findall(r"(\d+) of 60 samples are not finite", process.stdout)
    document = fitting(ckpt.with_name("metrics.json"))
    assert 15 < int(said) < 45 and document["subject"]["not_finite"] == int(said) and document["subject"]["n"] == 60
    left = 60 - int(said)
    assert {re.search(r"_(\d+)", name)[1] for name in document["metrics"]} == {str(left)}
    assert document["metrics"][f"copies_{left}"]["protocol"]["n"] == left

    ckpt = poisoned(run / "last.ckpt", tmp_path / "all" / "last.ckpt", [HUGE, HUGE])
    sentence = one_sentence(measure(f"ckpt={ckpt}", "metrics=[spectrum]", *QUICK, cwd=tmp_path))
    assert f"ckpt={ckpt}" in sentence and "finite" in sentence
    assert not ckpt.with_name("metrics.json").exists()


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path) -> Path:
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(noise_images(8)):
        Image.fromarray(image[0].numpy()).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "few").mkdir()
    for name in ("0.png", "1.png", "2.png"):
        shutil.copy(tmp_path / "pictures" / name, tmp_path / "few")
    return tmp_path / "pictures"


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ckpt", "metrics=[distribution,spectra]"], ["spectra", "spectrum", "restoration"]),
        ([], ["dataset="]),
        (["dataset=digits"], ["ckpt=", "images=DIR"]),
        (["ckpt", "dataset=mnist"], ["size 8", "dataset=mnist has 28", "dataset=digits"]),
        (["images=pictures", "dataset=digits", "metrics=[restoration]"], ["ckpt=", "images=DIR", "restoration"]),
        (["ckpt", "split=test"], ["split=test", "train or val"]),
        (["ckpt", "extractor=inception"], [FILE, "prefetch=true", "extractor=classifier"]),
        (["ckpt", "n=1"], ["n=1", "at least"]),
        (["ckpt", "n=5"], ["n=5", "at least 6"]),
        (["images=few", "dataset=digits"], ["images=few has 3", "at least 6"]),
        (["images=nowhere", "dataset=digits"], ["images=nowhere", "no such file"]),
        (["ckpt=nowhere.ckpt"], ["ckpt=nowhere.ckpt", "no such file"]),
        (["ckpt", "extractor.step=3"], ["extractor.step", "extractor.steps"]),
    ],
    ids=lambda x: " ".join(x) or "nothing" if isinstance(x, list) and not any("at least" in w for w in x) else "",
)
def test_a_mistake_is_one_sentence(measure, run, root, prefetched, pictures, tmp_path, arguments, words):
    line = [f"ckpt={run / 'last.ckpt'}" if a == "ckpt" else a for a in arguments]
    quick = [q for q in QUICK if q.split("=")[0] not in {a.split("=")[0] for a in arguments}]
    if "extractor=inception" in arguments:
        quick = [q for q in quick if not q.startswith("extractor.")]
    before = stamps(root)
    sentence = one_sentence(measure(*line, *quick, cwd=tmp_path, TORCH_HOME=str(tmp_path / "torch")))
    assert all(word in sentence for word in words), sentence
    assert stamps(root) == before and not list(tmp_path.glob("metrics*.json"))


@pytest.mark.long
def test_a_handful_of_samples_is_measured_or_refused_in_a_sentence(measure, run, prefetched, tmp_path):
    """Balls that reach to the fifth neighbour need six points."""
    quick = [q for q in QUICK if not q.startswith("n=")]
    process = measure(f"ckpt={run / 'last.ckpt'}", "n=4", "out=few.json", *quick, cwd=tmp_path)
    if process.returncode:
        assert "n=4" in one_sentence(process)
    else:
        assert fitting(tmp_path / "few.json")


@pytest.mark.long
def test_a_mistake_is_refused_before_anything_is_trained(command, tmp_path):
    """On photographs or on MNIST the classifier takes minutes."""
    one_sentence(command("evaluate", "dataset=digits", *QUICK, cwd=tmp_path, VCD_DATA=str(tmp_path / "data")))
    assert not (tmp_path / "data").exists()


# --- wandb ------------------------------------------------------------------------------------------------------------


PROJECT = "sesame"


@pytest.fixture(scope="module")
def summary(command, measure, prefetched, tmp_path_factory) -> tuple[Path, bytes]:
    """The folder of a run that wandb knows, and what evaluating it has given to wandb."""
    cwd = tmp_path_factory.mktemp("wandb")
    short = [o for o in SHORT if "max_steps" not in o]
    arguments = [*short, *ROLLOUT, "trainer.max_steps=10", "logger=wandb", f"logger.wandb.project={PROJECT}"]
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    trained = command("train", *arguments, cwd=cwd, **offline)
    assert trained.returncode == 0, trained.stderr
    folder = Path(trained.stdout.splitlines()[-1].split(maxsplit=1)[1]).parent
    kept = set(folder.rglob("*.wandb"))
    process = measure(f"ckpt={folder / 'last.ckpt'}", "metrics=[spectrum,memorisation]", *QUICK, cwd=cwd, **offline)
    assert process.returncode == 0, process.stderr
    (new,) = set(folder.rglob("*.wandb")) - kept
    assert (folder / "wandb_id").read_text().strip() in new.name
    return folder, new.read_bytes()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_numbers_join_the_summary_of_the_run_in_wandb(summary):
    folder, content = summary
    assert all(name.encode() in content for name in fitting(folder / "metrics.json")["metrics"])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_summary_stays_in_the_project_of_the_run(summary):
    """A run of that id in another project is another run."""
    assert PROJECT.encode() in summary[1]


# --- compare ----------------------------------------------------------------------------------------------------------


class Compared:
    """A comparison as it was started: where, how, and what it said."""

    def __init__(self, cwd: Path, call: Callable[[], subprocess.CompletedProcess]):
        self.cwd, self.call = cwd, call
        self.process = call()
        assert self.process.returncode == 0, self.process.stderr
        self.out = cwd / "compared"
        self.new = sorted(path.parent for path in (self.out / "runs").glob("*/last.ckpt"))


@pytest.fixture(scope="module")
def compared(command, run, root, first, tmp_path_factory) -> Compared:
    """The trained VCD, the same with another seed, and a VWD; the latter two trained by the comparison, all evaluated."""
    cwd = tmp_path_factory.mktemp("compare")
    (cwd / "conf" / "experiment").mkdir(parents=True)
    experiment = {
        "train": {"again": [*ROLLOUT, "seed=1"], "warm": ["model=vwd", "perturbation=gaussian"]},
        "common": SHORT, "evaluate": [*QUICK[:-1], "metrics=[distribution,memorisation]"], "latex": True, "n": 4,
    }  # fmt: skip
    (cwd / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump(experiment))
    own = Path(shutil.copytree(run, cwd / "runs" / run.name))
    arguments = [
        "--config-dir",
        "conf",
        "experiment=mine",
        f"runs=[{own}]",
        "out=compared",
        f"data.root={root}",
        "device=cpu",
    ]
    return Compared(cwd, lambda: command("compare", *arguments, cwd=cwd))


def cells(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in (lines[0], *lines[2:])]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_runs_are_trained_evaluated_and_compared(compared, run):
    assert len(compared.new) == 2
    assert {folder.name.rpartition("-seed")[0] for folder in compared.new} > {run.name.rpartition("-seed")[0]}
    for folder in compared.new:
        assert fitting(folder / "metrics.json")["metrics"].keys() == DISTRIBUTION | MEMORISATION
    head, *rows = cells((compared.out / "table.md").read_text())
    assert head == ["", "VCD", "VWD", "real images"]
    rows = {row[0]: row[1:] for row in rows}
    assert DISTRIBUTION | MEMORISATION | {"parameters", "images seen", "training s", "evaluations"} <= rows.keys()
    for name in DISTRIBUTION | MEMORISATION:
        assert "±" in rows[name][0] and "±" not in rows[name][1] and rows[name][2], name
    (other,) = [folder for folder in compared.new if folder.name.endswith("seed1")]
    both = [
        strict(folder / "metrics.json")["metrics"]["fcd_60"]["value"]
        for folder in (compared.cwd / "runs" / run.name, other)
    ]
    mean = float(rows["fcd_60"][0].split(" ± ")[0].replace(",", ""))
    assert mean == pytest.approx(sum(both) / 2, rel=1e-3) and both[0] != both[1]
    with open(compared.out / "table.csv", newline="") as file:
        found = {(row["variant"], row["metric"]): row for row in csv.DictReader(file)}
    assert float(found["VCD", "fcd_60"]["mean"]) == pytest.approx(sum(both) / 2, rel=1e-12)
    assert found["VCD", "fcd_60"]["seeds"] == "2" and found["VWD", "fcd_60"]["seeds"] == "1"


@pytest.mark.long
def test_a_comparison_writes_its_files_and_says_where(compared):
    names = {"markdown": "table.md", "csv": "table.csv", "latex": "table.tex", "samples": "samples.png",
             "curves": "curves.png", "page": "comparison.html"}  # fmt: skip
    said = dict(
        line.split() for line in compared.process.stdout.splitlines() if line.split()[:1] and line.split()[0] in names
    )
    assert {name: Path(path).name for name, path in said.items()} == names
    assert all((compared.out / name).stat().st_size > 100 for name in names.values())
    page = (compared.out / "comparison.html").read_text()
    assert "fcd_60" in page and "±" in page and "real images" in page
    assert (compared.out / "table.md").read_text().strip() in compared.process.stdout


@pytest.mark.long
def test_the_same_comparison_again_repeats_no_finished_work(compared, root):
    folders = [*compared.new, *(compared.cwd / "runs").iterdir()]

    def work() -> dict[Path, int]:
        kept = stamps(*folders, root)
        return {path: at for path, at in kept.items() if path.suffix in (".ckpt", ".json", ".pt", ".csv", ".png")}

    before, table = work(), (compared.out / "table.md").read_text()
    process = compared.call()
    assert process.returncode == 0, process.stderr
    changed = [str(path) for path, at in work().items() if before.get(path) != at]
    assert changed == [] and (compared.out / "table.md").read_text() == table


@pytest.mark.long
def test_what_is_trained_takes_its_data_from_where_it_was_told(compared, root):
    for folder in compared.new:
        assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["root"] == str(root)


@pytest.mark.long
def test_a_sweep_is_compared_by_its_folder(command, compared, tmp_path):
    process = command("compare", f"below={compared.out / 'runs'}", "out=swept", "n=2", "device=cpu", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    head, *_ = cells((tmp_path / "swept" / "table.md").read_text())
    assert sorted(head[1:3]) == ["VCD", "VWD"]
    assert not (tmp_path / "swept" / "table.tex").exists()


@pytest.mark.long
def test_a_run_that_was_evaluated_otherwise_since_is_evaluated_as_asked(again, root):
    """By hand, with another n: its metrics.json is no longer what the comparison asked for."""
    overrides = [*QUICK, "metrics=[spectrum]", f"data.root={root}"]
    making.evaluate([again], overrides, 1)
    expected = values(fitting(again / "metrics.json"))
    by_hand = json.loads((again / "metrics.json").read_text())
    by_hand["metrics"]["log_spectral_distance_50"] = by_hand["metrics"].pop("log_spectral_distance_60")
    (again / "metrics.json").write_text(json.dumps(by_hand))
    making.evaluate([again], overrides, 1)
    assert values(strict(again / "metrics.json")) == expected


@pytest.fixture
def pair(again, tmp_path) -> tuple[Path, Path]:
    """Two evaluated runs that differ in their seed, as far as their folders say."""
    return again, Path(shutil.copytree(again, tmp_path / again.name.replace("seed0", "seed1")))


@pytest.mark.long
@pytest.mark.parametrize("what", ["protocol", "no metrics", "nothing", "no such sweep", "empty sweep", "no checkpoint"])
def test_what_cannot_be_compared_is_one_sentence(command, pair, tmp_path, what):
    one, other = pair
    (tmp_path / "empty").mkdir()
    arguments = {"nothing": [], "no such sweep": ["below=nowhere"], "empty sweep": ["below=empty"]}.get(
        what, [f"runs=[{one},{other}]"]
    )
    if what == "protocol":
        document = json.loads((other / "metrics.json").read_text())
        document["metrics"]["fcd_60"]["protocol"]["weights"] = "0123456789abcdef"
        (other / "metrics.json").write_text(json.dumps(document))
        words = ["fcd_60", "weights", "0123456789abcdef", one.name, other.name]
    elif what == "no metrics":
        (other / "metrics.json").unlink()
        words = [str(other), "metrics.json", "vcd.evaluate"]
    elif what == "no checkpoint":
        (other / "last.ckpt").unlink()
        arguments.append('evaluate=["n=60"]')
        words = [str(other), "last.ckpt"]
    else:
        words = {"nothing": ["runs=", "below="], "no such sweep": ["below=nowhere"], "empty sweep": ["below=empty"]}[
            what
        ]
    sentence = one_sentence(command("compare", *arguments, "device=cpu", cwd=tmp_path))
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "comparison" / "table.md").exists()


@pytest.mark.long
def test_checkpoints_without_their_curves_are_compared_all_the_same(command, again, tmp_path):
    """What someone else sends: last.ckpt and metrics.json."""
    folder = tmp_path / "sent" / again.name
    folder.mkdir(parents=True)
    for name in ("last.ckpt", "metrics.json"):
        shutil.copy(again / name, folder)
    process = command("compare", f"runs=[{folder}]", "n=2", "device=cpu", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "comparison" / "comparison.html").exists()


def test_a_training_that_fails_is_named_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(UserError) as caught:
        making.train({"odd": ["model=nonsense"]}, [], tmp_path / "runs", 1)
    sentence = str(caught.value)
    assert "odd" in sentence and "nonsense" in sentence and str(tmp_path / "runs") in sentence and "\n" not in sentence
    assert os.listdir(tmp_path / "runs") == ["odd.log"]
