"""A model as a folder to share: what is in it, that it is the same model, that nothing else is lost or run."""

import json
import os
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf
from safetensors.torch import load_file

import vcd
from vcd import __version__, checkpoints, exports, schedulers, sharing, training
from vcd.batch import UNCONDITIONAL
from vcd.randomness import PerImage
from vcd.samplers import DDIM


@pytest.fixture(scope="module")
def model(trained) -> vcd.Trained:
    return vcd.load(trained.last, device="cpu")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    return model.export(tmp_path_factory.mktemp("shared") / "mine")


def test_the_folder_is_the_same_model_bit_for_bit(model, folder, trained):
    again = vcd.load(folder, device="cpu")
    assert torch.equal(again.sample(5, seed=3), model.sample(5, seed=3))
    assert torch.equal(again.decode(again.draw(2, seed=1)), model.decode(model.draw(2, seed=1)))  # the fitted prior
    assert {name: value.shape for name, value in again.model.state_dict().items()} == {
        name: value.shape for name, value in model.model.state_dict().items()
    }
    assert len(again.model.prior.weights) > 0
    averaged = checkpoints.read(trained.last)["state_dict"]
    written = load_file(folder / "model.safetensors")
    assert set(written) == set(averaged) and all(torch.equal(written[name], averaged[name]) for name in written)
    assert torch.equal(vcd.Trained.from_pretrained(folder).sample(2), model.sample(2))


def test_its_config_is_small_and_knows_no_place_of_this_machine(folder, trained, model):
    text = (folder / "config.json").read_text()
    facts = json.loads(text)
    assert facts["vcd_version"] == __version__ and facts["global_step"] == 20
    assert facts["identity"] == json.loads((trained.last.parent / "status.json").read_text())["identity"]
    for place in (
        str(Path.home()),
        os.environ.get("VCD_DATA", "~/.cache"),
        str(trained.cwd),
        "/tmp",
        "optimizer",
        "trainer",
    ):
        assert place not in text
    assert facts["vcd_config"]["model"]["_target_"] == "vcd.models.vcd.VCD" and len(text) < 20_000
    assert exports.portable_value("~/a/b") == exports.portable_value("/x/b") == "b"
    assert exports.portable_value("a/b") == "a/b"


def test_a_folder_of_an_export_goes_where_a_checkpoint_goes(folder, here, tmp_path, model):
    assert here("sample", f"ckpt={folder}", "n=3", "seed=2", "device=cpu", f"out={tmp_path}/s").code == 0
    facts = json.loads((tmp_path / "s" / "sample.json").read_text())
    assert facts["sha256"] == json.loads((folder / "config.json").read_text())["sha256"]
    again = vcd.load(folder, device="cpu").export(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (again / "config.json").read_text() == (folder / "config.json").read_text()
    assert here("refit", f"ckpt={folder}", "prior=independent", "device=cpu", f"out={tmp_path}/r.ckpt").code == 0
    assert vcd.load(tmp_path / "r.ckpt", device="cpu").sample(1).shape == (1, 1, 8, 8)


def test_the_card_says_what_it_is_how_it_was_trained_and_what_it_can_do(folder, trained):
    card = (folder / "README.md").read_text()
    header, rest = card.removeprefix("---\n").split("---\n", 1)
    assert OmegaConf.to_container(OmegaConf.create(header)) == {
        "license": "mit", "library_name": "vcd", "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "cold-diffusion", "vcd"],
    }  # fmt: skip
    command = rest.split("vcd train ")[1].split("\n")[0].split(" ")
    status = json.loads((trained.last.parent / "status.json").read_text())
    kept = [text for text in status["command"] if not text.startswith(("hydra.", "checkpoint_every", "callbacks", "trainer.a",
                                                                      "trainer.v", "trainer.l"))]  # fmt: skip
    assert command == kept
    assert 'vcd.load("mine")' in rest and "scikit-learn's 1,797 handwritten digits" in rest and "Not measured" in rest
    assert "20 steps of 16 images, seed 0" in rest and "diffusers" not in rest
    for picture in ("samples.png", "sequences.png"):
        assert f"]({picture})" in rest and (folder / picture).stat().st_size < 200_000


def test_numbers_stand_on_the_card_with_their_protocol_if_they_are_of_this_file(trained, tmp_path, here, monkeypatch):
    run = shutil.copytree(trained.last.parent, tmp_path / "run")
    ask = (f"ckpt={run}/last.ckpt", "metrics=[spectrum]", "n=40", "device=cpu")
    assert here("evaluate", *ask).code == 0
    measured = json.loads((run / "metrics.json").read_text())
    name, number = next(iter(measured["metrics"].items()))
    card = (vcd.load(run / "last.ckpt", device="cpu").export(tmp_path / "a") / "README.md").read_text()
    assert (
        f"| {name} | {number['value']:.5g}" in card
        and "n 40" in card
        and f"split {number['protocol']['split']}" in card
    )
    measured["subject"]["prior"] = "Flow"
    (run / "metrics.json").write_text(json.dumps(measured))
    assert (
        "Not measured" in (vcd.load(run / "last.ckpt", device="cpu").export(tmp_path / "b") / "README.md").read_text()
    )


def test_nothing_that_was_there_is_lost(model, folder, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt", folder):
        before = {path: path.read_bytes() for path in folder.rglob("*")}
        with pytest.raises(vcd.UserError, match=r"is there already: choose another folder, or move it away first"):
            model.export(place)
        assert before == {path: path.read_bytes() for path in folder.rglob("*")}
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    monkeypatch.setattr(sharing, "_pictures", lambda *_: 1 / 0)  # killed halfway
    with pytest.raises(ZeroDivisionError):
        model.export(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_only_what_says_how_it_is_built_can_be_shared(model, tmp_path):
    with pytest.raises(vcd.UserError, match=r"only a model that vcd.load has read can be shared"):
        vcd.Trained(model.model).export(tmp_path / "x")


def forge(folder: Path, out: Path, change) -> Path:
    shutil.copytree(folder, out)
    facts = json.loads((out / "config.json").read_text())
    change(facts)
    (out / "config.json").write_text(json.dumps(facts))
    return out


def test_a_folder_runs_no_code(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node = {"_target_": "pathlib.Path.touch", "self": "owned"}
    place = forge(folder, tmp_path / "f", lambda facts: facts["vcd_config"]["model"].update(beta=node))
    with pytest.raises(vcd.UserError, match=r"model.beta names pathlib.Path.touch, but only a value may stand there"):
        vcd.load(place)
    place = forge(folder, tmp_path / "g", lambda facts: facts["vcd_config"].update(degradation={"_target_": "mine.D"}))
    with pytest.raises(vcd.UserError, match=r"mine.D, which is not part of vcd.*trust=\[mine\]"):
        vcd.load(place)
    assert not (tmp_path / "owned").exists()


DAMAGE = {
    "a flipped bit": lambda f: (f / "model.safetensors").write_bytes(
        bytes([(data := (f / "model.safetensors").read_bytes())[0]]) + data[1:-1] + bytes([data[-1] ^ 1])
    ),
    "truncated": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
    "no json": lambda f: (f / "config.json").write_text("{"),
    "a list": lambda f: (f / "config.json").write_text("[]"),
    "no config": lambda f: (f / "config.json").write_text(
        json.dumps({**json.loads((f / "config.json").read_text()), "vcd_config": None})
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_folder_is_one_sentence(folder, tmp_path, how):
    place = shutil.copytree(folder, tmp_path / "f")
    DAMAGE[how](place)
    with pytest.raises(vcd.UserError, match=r"^ckpt=.*(is damaged|was not written by vcd)") as caught:
        vcd.load(place)
    assert "\n" not in str(caught.value)


def test_of_another_version_and_of_something_else(folder, tmp_path):
    place = forge(folder, tmp_path / "f", lambda facts: facts.update(vcd_version="9.0.0"))
    with pytest.raises(vcd.UserError, match="was written by vcd 9.0.0"):
        vcd.load(place)
    with pytest.raises(vcd.UserError, match="a folder without config.json and model.safetensors"):
        vcd.load(tmp_path)


def test_half_precision_is_half_the_size_and_nearly_the_same(model, tmp_path, folder):
    half = model.export(tmp_path / "half", half=True)
    whole, small = ((f / "model.safetensors").stat().st_size for f in (folder, half))
    assert small < 0.7 * whole
    images, others = model.sample(8), vcd.load(half, device="cpu").sample(8)
    assert (
        0 < (images.int() - others.int()).abs().max() < 40 and "in half precision" in (half / "README.md").read_text()
    )
    prior = vcd.load(half, device="cpu").model.prior
    assert torch.equal(prior.means, model.model.prior.means)  # buffers are whole
    with torch.no_grad():
        model.model.network.out.bias += 1e6
    try:
        with pytest.raises(vcd.UserError, match="half=true: network.out.bias has weights that float16 does not reach"):
            model.export(tmp_path / "other", half=True)
    finally:
        with torch.no_grad():
            model.model.network.out.bias -= 1e6


# --- diffusers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ddpm(compose, tmp_path_factory):
    """ddpm("prediction=eps", ...): a checkpoint of an untrained DDPM with random weights in its last layer."""

    def ddpm(*overrides: str) -> Path:
        cfg = compose(
            "model=ddpm", *TINY[:1], "T=40", "network.unet.dim=8", "run_dir=run", "sampler.steps=10", *overrides
        )
        torch.manual_seed(0)
        model = training.build(cfg)
        torch.nn.init.normal_(model.network.out.weight, std=0.1)
        path = tmp_path_factory.mktemp("ddpm") / "last.ckpt"
        stored = {"state_dict": model.state_dict(), checkpoints.CONFIG: OmegaConf.to_container(cfg, resolve=True)}
        checkpoints.AtomicCheckpointIO().save_checkpoint({**stored, checkpoints.VERSION: __version__}, path)
        return path

    return ddpm


@pytest.mark.parametrize(
    "overrides",
    [["prediction=eps"], ["prediction=x0", "schedule=cosine"], ["prediction=v", "sampler.clip=false"]],
    ids=["eps", "x0", "v"],
)
def test_a_scheduler_of_diffusers_takes_the_folder_and_makes_the_same_images(ddpm, tmp_path, overrides):
    model = vcd.load(ddpm(*overrides), device="cpu")
    folder = model.export(tmp_path / "f", format="diffusers")
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    D, inner = model.model.degradation, model.model
    torch.testing.assert_close(scheduler.alphas_cumprod, D.signal[1:] ** 2, rtol=1e-4, atol=1e-6)
    scheduler.set_timesteps(10)
    inner.sampler = DDIM(eta=0.0, steps=10, clip=inner.sampler.clip)
    x = inner.start.sample(PerImage(0, range(4)))
    ours = inner.sample(PerImage(0, range(4))).x0
    with torch.no_grad():
        for t in scheduler.timesteps:  # as the card says
            levels = torch.full((4,), int(t) + 1)
            output = inner.ask(x, levels, 0 * levels, UNCONDITIONAL)
            x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(x, ours, rtol=1e-3, atol=1e-3)
    assert "UNet2DModel" in (folder / "README.md").read_text()


def test_what_diffusers_has_no_schedule_for_is_said(model, ddpm, tmp_path):
    for other in (model.model, vcd.load(ddpm("prediction=edm", "schedule=edm"), device="cpu").model):
        with pytest.raises(vcd.UserError, match="format=diffusers is for model=ddpm"):
            schedulers.config(other)
    with pytest.raises(vcd.UserError, match="format=diffusers"):
        model.export(tmp_path / "f", format="diffusers")
    assert not (tmp_path / "f").exists()
