"""`python -m vcd.sample`: from the checkpoint alone, the same images in any batch, and files that say the same."""

import hashlib
import json
import lzma
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from vcd import checkpoints, steering
from vcd.callbacks.pictures import write_sequences
from vcd.cli import CONF, explain
from vcd.errors import UserError
from vcd.images import grid, to_float, to_uint8
from vcd.priors import Independent, Mixture, Shared
from vcd.randomness import PerImage
from vcd.sample import write
from vcd.schema import check


@pytest.fixture(scope="module")
def ckpt(trained, tmp_path_factory) -> Path:
    """The checkpoint alone, in a folder of its own and under a name of its own."""
    return Path(shutil.copy(trained.last, tmp_path_factory.mktemp("elsewhere") / "model.ckpt"))


@pytest.fixture(scope="module")
def model(ckpt):
    return checkpoints.load(ckpt)[0]


def settings(compose, ckpt: Path, *overrides: str):
    return compose(f"ckpt={ckpt}", "n=10", "seed=3", *overrides, config="sample")


def pngs(folder: Path) -> np.ndarray:
    """The pixels of all PNGs, NHW or NHWC."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "png").iterdir())])


def one_sentence(process: subprocess.CompletedProcess) -> str:
    assert process.returncode == 1 and "Traceback" not in process.stderr, process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_compiled_network_draws_the_same_images_up_to_rounding(ckpt, command, tmp_path):
    drawn = []
    for backend in ("false", "aot_eager"):
        process = command(
            "sample",
            f"ckpt={ckpt}",
            "n=40",
            "batch_size=16",
            "png=false",
            f"compile={backend}",
            f"out=by-{backend}",
            cwd=tmp_path,
        )
        assert process.returncode == 0, process.stderr
        drawn.append(np.load(tmp_path / f"by-{backend}" / "samples.npy").astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1 and np.ptp(drawn[0]) > 20


def test_a_backend_that_is_not_there_is_one_sentence(ckpt, here):
    said = here("sample", f"ckpt={ckpt}", "n=1", "compile=gpu")
    assert said.sentence.startswith("compile=gpu is not true, false or one of ") and "inductor" in said.sentence


def test_a_checkpoint_is_enough(trained, ckpt, command, tmp_path):
    """Run folder and data away, another working folder and another home; the pixels of all files agree."""
    home = tmp_path / "home"
    home.mkdir()
    hidden = trained.cwd.rename(trained.cwd.with_name("hidden"))
    try:
        process = command(
            "sample", f"ckpt={ckpt}", "n=10", "batch_size=4", "rows=3", "out=drawn", cwd=tmp_path, HOME=str(home)
        )
    finally:
        hidden.rename(trained.cwd)
    assert process.returncode == 0, process.stderr
    found = {line.split()[0]: tmp_path / line.split()[1] for line in process.stdout.splitlines()[-4:]}
    assert set(found) == {"array", "grid", "sequences", "images"} and all(path.exists() for path in found.values())
    assert "3/3" in process.stderr  # the progress bar

    out = tmp_path / "drawn"
    array = np.load(out / "samples.npy")
    assert array.shape == (10, 8, 8, 1) and array.dtype == np.uint8
    assert np.array_equal(pngs(out)[..., None], array)
    assert sorted(path.name for path in (out / "png").iterdir()) == [f"{i:06d}.png" for i in range(10)]
    facts = json.loads((out / "sample.json").read_text())
    assert facts["finished"]
    assert facts["sha256"] == hashlib.sha256(ckpt.read_bytes()).hexdigest()
    assert (facts["n"], facts["seed"], facts["prior"], facts["temperature"]) == (10, 0, "Mixture", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"home", "drawn"}
    assert not [path for path in home.rglob("*") if path.is_file() and "matplotlib" not in path.parts]  # its fonts


@pytest.mark.long
def test_another_folder_is_not_written_over(ckpt, command, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    sentence = one_sentence(command("sample", f"ckpt={ckpt}", "n=1", "out=mine", cwd=tmp_path))
    assert "out=mine holds files that are not samples" in sentence
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.long
def test_a_truncated_checkpoint_is_one_sentence(ckpt, command, tmp_path):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(ckpt.read_bytes()[: ckpt.stat().st_size // 2])
    sentence = one_sentence(command("sample", f"ckpt={broken}", cwd=tmp_path))
    assert f"ckpt={broken} is damaged" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["broken.ckpt"]


@pytest.mark.long
def test_an_interrupted_command_can_be_given_again(ckpt, command, tmp_path):
    arguments = [f"ckpt={ckpt}", "out=drawn", "n=100000", "batch_size=16", "rows=0"]
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    line = [sys.executable, "-m", "vcd.sample", *arguments]
    process = subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(1200):
            if (tmp_path / "drawn" / "png" / "000032.png").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not json.loads((tmp_path / "drawn" / "sample.json").read_text())["finished"]
    again = command("sample", *arguments[:2], "n=4", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(np.load(tmp_path / "drawn" / "samples.npy")) == len(pngs(tmp_path / "drawn")) == 4


@pytest.mark.long
@pytest.mark.parametrize("argument", ["n=0", "batch_size=0", "seed=-1", "rows=-1"])
def test_numbers_that_make_no_sense_are_named(command, ckpt, tmp_path, argument):
    sentence = one_sentence(command("sample", f"ckpt={ckpt}", argument, cwd=tmp_path))
    assert sentence.startswith(f"{argument}: it must be")


@pytest.mark.long
def test_a_full_disk_is_one_sentence(ckpt, tmp_path):
    """Of four megabytes; running out of them in the memory map would be a SIGBUS."""
    inside = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", "small"]
    (tmp_path / "small").mkdir()
    if subprocess.run(["unshare", "-rm", *inside], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    asked = f"-m vcd.sample ckpt={ckpt} n=100000 batch_size=64 png=false rows=0 device=cpu out=small/drawn"
    script = f"{' '.join(inside)} && {sys.executable} {asked}; code=$?; ls small/drawn; exit $code"
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    process = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    sentence = one_sentence(process)
    assert "samples.npy (No space left on device): free some space" in sentence
    assert process.stdout.split() == ["sample.json"]


def test_samples_that_are_not_finite_are_refused(compose, ckpt, tmp_path):
    model, _ = checkpoints.load(ckpt)
    model.sampler.delta = 1e38
    with pytest.raises(UserError, match=r"^\d of 4 images are not finite: .* a smaller delta"):
        write(model, settings(compose, ckpt, "batch_size=4"), tmp_path, sha256="")
    assert not json.loads((tmp_path / "sample.json").read_text())["finished"]
    assert not (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("delta", ["nan", "inf", "-0.1"])
def test_no_noise_that_makes_no_sense(compose, ckpt, delta):
    with pytest.raises(UserError, match=f"^delta={delta}: it must be a finite number of at least 0"):
        check("sample", settings(compose, ckpt, f"delta={delta}"))


def test_another_sampler_keeps_the_noise_of_the_run(compose, tmp_path, ckpt):
    own = checkpoints.Checkpoint(ckpt)
    delta = own.model()[0].sampler.delta
    node = {"_target_": "vcd.samplers.Sequential", "steps": None}
    assert delta > 0 and own.model(parts={"sampler": node})[0].sampler.delta == delta
    assert own.model(parts={"sampler": {**node, "delta": 0.5}})[0].sampler.delta == 0.5


# --- image i is (checkpoint, seed, i) ---------------------------------------------------------------------------------


def test_samples_do_not_depend_on_the_size_of_the_batch(compose, ckpt, model, tmp_path):
    arrays = []
    for size in (10, 3, 1):
        write(model, settings(compose, ckpt, f"batch_size={size}", "rows=4"), tmp_path / str(size), sha256="")
        arrays.append(np.load(tmp_path / str(size) / "samples.npy").astype(int))
    for other in arrays[1:]:
        apart = np.abs(arrays[0] - other)
        assert apart.max() <= 1 and (apart > 0).mean() < 1e-3
    assert len(np.unique(arrays[0].reshape(10, -1), axis=0)) == 10
    whole = model.sample(PerImage(3, range(10))).states
    for size in (3, 1):
        parts = [model.sample(PerImage(3, range(i, min(i + size, 10)))).states for i in range(0, 10, size)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


def test_pictures_do_not_depend_on_the_size_of_the_batch(compose, ckpt, model, tmp_path):
    """The grid has all n images, the sequences as many rows as asked for."""
    for size in (10, 3):
        write(model, settings(compose, ckpt, f"batch_size={size}", "rows=4"), tmp_path / str(size), sha256="")
    for name in ("samples.png", "sequences.png"):
        with Image.open(tmp_path / "10" / name) as one, Image.open(tmp_path / "3" / name) as other:
            assert one.size == other.size, name
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1, name


def test_samples_are_those_of_seed_and_index(compose, ckpt, model, tmp_path):
    write(model, settings(compose, ckpt), tmp_path / "a", sha256="")
    write(model, settings(compose, ckpt, "n=4"), tmp_path / "b", sha256="")
    write(model, settings(compose, ckpt, "n=4", "seed=4"), tmp_path / "c", sha256="")
    a, b, c = (np.load(tmp_path / name / "samples.npy").astype(int) for name in "abc")
    assert np.abs(a[:4] - b).max() <= 1 and np.abs(b - c).max() > 1


def test_drawing_anew_leaves_nothing_of_the_old(compose, ckpt, model, tmp_path):
    write(model, settings(compose, ckpt), tmp_path, sha256="")
    write(model, settings(compose, ckpt, "n=4"), tmp_path, sha256="")
    array = np.load(tmp_path / "samples.npy")
    assert len(array) == 4 and np.array_equal(pngs(tmp_path)[..., None], array)


def test_the_picture_of_sequences_ends_in_the_samples(model, tmp_path):
    states = model.sample(PerImage(3, range(5))).states[:, :2]
    expected = grid(to_uint8(torch.stack([states[t, i] for i in range(2) for t in (3, 2, 1, 0)])), columns=4)
    with Image.open(write_sequences(tmp_path / "sequences.png", states, model.space)) as drawn:
        assert np.array_equal(np.asarray(drawn), np.asarray(expected))


# --- parts and weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "kind"), [("shared", Shared), ("independent", Independent)])
def test_another_prior_can_be_chosen(compose, ckpt, model, option, kind):
    cfg = settings(compose, ckpt, f"prior={option}")
    other, _ = checkpoints.load(ckpt, parts={"prior": cfg.prior})
    assert isinstance(model.prior, Mixture) and type(other.prior) is kind and other.prior.latent == 4
    z = other.latents(PerImage(0, range(6)))
    assert z.shape == (3, 6, 4)
    assert torch.equal(z[0], z[1]) == (kind is Shared)
    for name, value in other.network.state_dict().items():
        assert torch.equal(value, model.network.state_dict()[name])
    images = other.sample(PerImage(0, range(6))).x0
    assert images.isfinite().all() and not torch.equal(images, model.sample(PerImage(0, range(6))).x0)


def test_the_runs_own_prior_chosen_again_is_the_fitted_one(compose, ckpt, model):
    cfg = settings(compose, ckpt, "prior=mixture")
    other, _ = checkpoints.load(ckpt, parts={"prior": cfg.prior})
    assert torch.equal(other.sample(PerImage(0, range(6))).x0, model.sample(PerImage(0, range(6))).x0)


def test_averaged_weights_are_the_default_and_raw_ones_an_option(ckpt, model):
    checkpoint = torch.load(ckpt, weights_only=True)
    raw, _ = checkpoints.load(ckpt, raw=True)
    for loaded, state in ((model, "state_dict"), (raw, "current_model_state")):
        assert not loaded.training and loaded.state_dict().keys() == checkpoint[state].keys()
        assert all(torch.equal(value, checkpoint[state][name]) for name, value in loaded.state_dict().items())
    assert not torch.equal(raw.sample(PerImage(0, range(4))).x0, model.sample(PerImage(0, range(4))).x0)


def test_loading_needs_neither_conf_nor_data(ckpt, monkeypatch):
    monkeypatch.setattr("vcd.cli.CONF", Path("nowhere"))
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda *_, **__: pytest.fail("the data set was asked for"))
    loaded, cfg = checkpoints.load(ckpt)
    assert cfg.dataset.name == "digits" and loaded.degradation.T == 3
    assert instantiate(cfg.dataset.source).name == "digits"
    assert loaded.sample(PerImage(0, range(2))).x0.shape == (2, 1, 8, 8)


# --- what is no checkpoint --------------------------------------------------------------------------------------------


def made(kind: str, ckpt: Path, folder: Path) -> Path:
    path = folder / f"{kind}.ckpt"
    whole = ckpt.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("once upon a time\n" * 100)
    elif kind == "truncated":
        path.write_bytes(whole[:-1000])
    elif kind == "zeroed":
        path.write_bytes(whole[:2000] + bytes(len(whole) - 4000) + whole[-2000:])
    elif kind == "pickled":
        path.write_bytes(pickle.dumps({"state_dict": Path("x")}))
    elif kind == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(3)}, "epoch": 3}, path)
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text", "truncated", "zeroed", "pickled", "module", "foreign", "list", "folder"]
)
def test_what_is_no_checkpoint_is_one_sentence(ckpt, tmp_path, kind):
    path = made(kind, ckpt, tmp_path)
    with pytest.raises(UserError, match=f"^ckpt={path}") as caught:
        checkpoints.load(path)
    sentence = explain(caught.value, "sample")
    assert "\n" not in sentence and len(sentence) < 300
    expected = {
        "missing": "no such file",
        "folder": "is a folder without",
        "foreign": "not written by",
        "list": "not written by",
    }
    assert expected.get(kind, "damaged") in sentence


def test_a_checkpoint_that_does_not_fit_its_config_is_one_sentence(ckpt, tmp_path):
    checkpoint = torch.load(ckpt, weights_only=True)
    checkpoint["state_dict"].popitem()
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x.ckpt does not fit the code"):
        checkpoints.load(tmp_path / "x.ckpt")


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_every_byte_comes_back():
    values = torch.arange(256, dtype=torch.uint8)
    x = to_float(values)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    assert torch.equal(to_uint8(x), values)
    assert torch.equal(to_uint8(x + 0.49 / 127.5), values) and torch.equal(to_uint8(x - 0.49 / 127.5), values)


def test_what_is_out_of_range_is_clamped_not_wrapped():
    x = torch.tensor([-1.01, -1e9, 1.01, 1e9, 0.0])
    assert to_uint8(x).tolist() == [0, 0, 255, 255, 128]
    assert to_uint8(x.bfloat16()).tolist()[:2] == [0, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_image_exactly(channels):
    images = torch.randint(0, 256, (7, channels, 5, 5), dtype=torch.uint8)
    sheet = np.asarray(grid(images, columns=3, scale=2))
    assert sheet.ndim == 3 and sheet.shape[2] == 3
    height, width = sheet.shape[0] // 3, sheet.shape[1] // 3
    for i, image in enumerate(images):
        y, x = divmod(i, 3)
        big = image.expand(3, 5, 5).repeat_interleave(2, 1).repeat_interleave(2, 2).permute(1, 2, 0).numpy()
        area = sheet[y * height : (y + 1) * height + 4, x * width : (x + 1) * width + 4]
        places = np.lib.stride_tricks.sliding_window_view(area, big.shape)[..., 0, :, :, :]
        assert (places == big).all((-3, -2, -1)).any(), i


def test_a_temperature_is_that_of_the_latents_and_the_checkpoint_keeps_its_own(ckpt, model):
    cold, _ = checkpoints.load(ckpt, parts={"temperature": 0.3})
    randomness = PerImage(0, range(4))
    expected = steering.decode(model, steering.draw(model, randomness.take(), 0.3)).x0
    assert model.temperature == 1 and torch.equal(cold.sample(randomness.take()).x0, expected)
    assert not torch.equal(model.sample(randomness.take()).x0, expected)


def test_a_model_without_latents_has_no_temperature(tmp_path):
    old = tmp_path / "ddpm.ckpt"
    old.write_bytes(lzma.decompress((Path(__file__).parent / "v0_1" / "ddpm_x0.ckpt.xz").read_bytes()))
    with pytest.raises(UserError, match="has no latents: leave out temperature"):
        checkpoints.load(old, parts={"temperature": 0.5})
