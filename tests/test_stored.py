"""A checkpoint may come from anybody: what it names, what is text in it, what is damaged or not a number."""

import copy
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from vcd import __version__, checkpoints, stored, training
from vcd.errors import UserError
from vcd.evaluate import reference
from vcd.randomness import PerImage

WRITE = "vcd.files.write_text"


@pytest.fixture(scope="module")
def whole(compose, tmp_path_factory) -> Path:
    """A checkpoint as training leaves it, of a small untrained model."""
    cfg = compose(
        "model=vcd", "degradation=black_blur", "dataset=digits", "T=3", "network.unet.dim=4", "network.unet.mults=[1]",
        "network.unet.attention=[]", "network.encoder.latent=2", "run_dir=run", "prior=independent",
    )  # fmt: skip
    model = training.build(cfg)
    path = tmp_path_factory.mktemp("stored") / "model.ckpt"
    config = OmegaConf.to_container(cfg, resolve=True)
    checkpoint = {"state_dict": model.state_dict(), checkpoints.CONFIG: config, checkpoints.VERSION: __version__}
    checkpoints.AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    return path


@pytest.fixture
def forged(whole, tmp_path):
    """forged({"model.beta": node, ...}): the checkpoint with other values in its config."""

    def forged(changes: dict[str, Any], name: str = "forged") -> Path:
        checkpoint = torch.load(whole, weights_only=True)
        for place, node in changes.items():
            *path, leaf = place.split(".")
            parent = checkpoint[checkpoints.CONFIG]
            for key in path:
                parent = parent[key]
            parent[leaf] = node
        torch.save(checkpoint, tmp_path / f"{name}.ckpt")
        return tmp_path / f"{name}.ckpt"

    return forged


# --- code -------------------------------------------------------------------------------------------------------------


def attack(folder: Path) -> dict[str, Any]:
    """Write a hubconf.py, then let torch run it: both as arguments that are made before the model."""
    body = f"from pathlib import Path\nPath({str(folder / 'owned')!r}).touch()\ndef steps():\n    return None\n"
    return {
        "model.annealing": {"_target_": WRITE, "path": str(folder / "hubconf.py"), "text": body},
        "model.sampler.steps": {
            "_target_": "torch.hub.load", "repo_or_dir": str(folder), "model": "steps", "source": "local",
        },
    }  # fmt: skip


def test_a_foreign_checkpoint_runs_no_code(forged, tmp_path):
    path = forged(attack(tmp_path))
    with pytest.raises(
        UserError, match=r"^ckpt=.*forged.ckpt: model\.\S+ names \S+, but only a value may stand there$"
    ):
        checkpoints.load(path)
    with pytest.raises(UserError):
        checkpoints.load(path, trust=["torch"])
    assert [file.name for file in tmp_path.iterdir()] == ["forged.ckpt"]


@pytest.mark.long
@pytest.mark.parametrize("verb", ["sample", "control", "evaluate", "report", "refit", "restore"])
def test_no_command_runs_code_of_a_foreign_checkpoint(forged, command, tmp_path, verb):
    path = forged(attack(tmp_path), "last")
    ask = f"run={tmp_path}" if verb == "report" else f"ckpt={path}"
    images = ["images=nothing.png"] if verb == "restore" else []
    process = command(verb, ask, "device=cpu", *images, cwd=tmp_path)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "but only a value may stand there" in process.stderr
    assert not (tmp_path / "owned").exists() and not (tmp_path / "hubconf.py").exists()


TOUCH = {"_target_": "pathlib.Path.touch", "self": "owned"}
IMPORTED = {"_target_": "evil.Anything"}
FORGERIES: dict[str, tuple[str, Any]] = {
    "a value": ("model.beta", TOUCH),
    "a value that is imported": ("model.beta", IMPORTED),
    "another module": ("model.network", IMPORTED),
    "torch": ("model.network", {"_target_": "torch.nn.Identity"}),
    "the system": ("degradation", {"_target_": "os.system", "command": "touch owned"}),
    "through a module of vcd": ("degradation", {"_target_": "vcd.files.os.system", "command": "touch owned"}),
    "a function of vcd": ("degradation", {"_target_": WRITE, "path": "owned", "text": ""}),
    "a partial function of vcd": ("model.start", {"_target_": WRITE, "_partial_": True, "text": ""}),
    "another class of vcd": ("degradation", {"_target_": "vcd.data.folder.Folder", "path": "/"}),
    "another part": ("model.prediction", {"_target_": "vcd.samplers.Cold"}),
    "a part where a function is due": (
        "model.network.injection",
        {"_target_": "vcd.networks.injection.Maps", "latent": 2},
    ),
    "a part of metrics as network": ("model.network", {"_target_": "vcd.metrics.classifier.Classifier"}),
    "within a list": ("model.network.mults", [TOUCH]),
    "within a part": ("degradation.parts.black.schedule", TOUCH),
    "within the part of a part": ("degradation.parts.black.schedule", {"_target_": "vcd.schedules.Cosine", "s": TOUCH}),
    "within what is left out": ("model.unknown", {"deep": [{"er": TOUCH}]}),
    "a part where none is": ("model.unknown", {"_target_": "vcd.schedules.Cosine"}),
    "no plain type": ("extra", {1: torch.zeros(2)}),
    "positional arguments": ("degradation", {"_target_": "vcd.degradations.compose.Compose", "_args_": [TOUCH]}),
    "hydra's own keys": (
        "model.sampler",
        {"_target_": "vcd.samplers.Sequential", "_recursive_": False, "steps": TOUCH},
    ),
    "no name": ("degradation", {"_target_": ["os", "system"]}),
    "nothing there": ("degradation", {"_target_": "vcd.degradations.nothing.There"}),
    "nothing at all": ("degradation", {"_target_": ""}),
    "a private module": ("degradation", {"_target_": "vcd"}),
    "no model": ("model._target_", "vcd.degradations.noise.Noise"),
    "an abstract model": ("model._target_", "vcd.models.base.Diffusion"),
    "what no constructor takes": ("model.unknown", 3),
    "a string for a number": ("model.network.dim", "wide"),
    "nothing for a part": ("degradation", None),
    "text for a config": ("model", "vcd.models.vcd.VCD"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_a_config_may_not_name_is_one_sentence(forged, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('owned').touch()\n")
    with pytest.raises(UserError, match=r"^ckpt=.*forged.ckpt") as caught:
        checkpoints.load(forged(dict([FORGERIES[name]])))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not (tmp_path / "owned").exists() and "evil" not in sys.modules


def test_everything_is_checked_before_anything_is_made(forged, monkeypatch):
    made = []
    monkeypatch.setattr("vcd.degradations.compose.Compose.__init__", lambda *_, **__: made.append(1))
    with pytest.raises(UserError):
        checkpoints.load(forged({"model.sampler.delta": TOUCH}))
    assert not made


def test_what_trains_is_not_made(forged):
    """Nor looked at: another's optimiser does not keep a checkpoint from sampling."""
    model, _ = checkpoints.load(forged({"model.optimizer": IMPORTED, "model.scheduler": TOUCH, "logger": IMPORTED}))
    assert model.optimizer is None and model.scheduler is None


@pytest.mark.parametrize("model", ["vcd", "rissanen", "ddpm"])
def test_what_is_made_is_what_training_makes(compose, model):
    cfg = compose("dataset=digits", f"model={model}", "run_dir=run")
    wanted = training.build(cfg)
    made = checkpoints._planned(OmegaConf.to_container(cfg, resolve=True), stored.Reader("x"))()
    assert type(made) is type(wanted)
    types = [{name: type(part) for name, part in m.named_modules()} for m in (made, wanted)]
    assert types[0] == types[1]
    for name in ("sampler", "prediction", "perturbation"):
        assert vars(getattr(made, name)) == vars(getattr(wanted, name))


# --- trust ------------------------------------------------------------------------------------------------------------

MINE = """
from pathlib import Path
from vcd.degradations.base import Degradation

Path("imported").touch()

class Thread:
    def __init__(self, *, thickness: float):
        self.thickness = thickness

class Curtain(Degradation):
    def __init__(self, *, T, schedule, thread: Thread, **options):
        super().__init__(T=T)
        self.thread, self.options = thread, options
        self.table = schedule.fade(T)

    def forward(self, x0, t, eps=None):
        return (x0 + 1) * self.table.float()[t][:, None, None, None] - 1
"""
CURTAIN = {
    "_target_": "mine.Curtain", "T": 3, "schedule": {"_target_": "vcd.schedules.Linear"}, "colour": "red",
    "thread": {"_target_": "mine.Thread", "thickness": 0.5},
}  # fmt: skip


@pytest.fixture
def curtain(forged, tmp_path, monkeypatch):
    """A checkpoint that samples with a degradation of the user's own, which is importable."""
    path = forged({"degradation": CURTAIN}, "curtain")
    checkpoint = torch.load(path, weights_only=True)
    state = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("degradation.")}
    torch.save({**checkpoint, "state_dict": state}, path)
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield path
    sys.modules.pop("mine", None)


def test_ones_own_parts_need_trust(curtain, tmp_path):
    with pytest.raises(UserError, match=r"degradation is mine.Curtain, which is not part of vcd.*trust=\[mine\]$"):
        checkpoints.load(curtain)
    with pytest.raises(UserError, match=r"trust=\[mine\]$"):
        checkpoints.load(curtain, trust=["min", "mine.Curt", "other", ""])
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("trust", [["mine"], "mine", ["mine.Curtain", "mine.Thread"]])
def test_what_is_trusted_is_made(curtain, trust):
    model, _ = checkpoints.load(curtain, trust=trust)
    D = model.degradation
    assert type(D).__name__ == "Curtain" and D.thread.thickness == 0.5 and D.options == {"colour": "red"}
    assert model.sample(PerImage(0, range(2))).x0.isfinite().all()


def test_what_is_trusted_must_still_fit_its_place(curtain, forged):
    with pytest.raises(UserError, match=r"but only a subclass of Degradation may stand there"):
        checkpoints.load(forged({"degradation": {"_target_": "mine.Thread", "thickness": 1}}), trust=["mine"])
    with pytest.raises(UserError, match="but only a value may stand there"):
        checkpoints.load(forged({"model.beta": {"_target_": "mine.Thread", "thickness": 1}}), trust=["mine"])


def test_trust_in_one_module_is_not_trust_in_another(curtain, forged):
    node = {**CURTAIN, "colour": {"_target_": "evil.Anything"}}
    with pytest.raises(UserError, match=r"degradation.colour is evil.Anything.*trust=\[evil\]"):
        checkpoints.load(forged({"degradation": node}), trust=["mine"])


@pytest.mark.parametrize("target", ["mine.Curtain", "mine.deeper.Curtain"])
def test_a_module_that_is_not_there_is_named(forged, target):
    missing = target.rpartition(".")[0].partition(".")[0]
    with pytest.raises(UserError, match=rf"is {target}, and there is no module {missing}: .*PYTHONPATH$"):
        checkpoints.load(forged({"degradation": {**CURTAIN, "_target_": target}}), trust=["mine"])


def test_a_module_that_breaks_says_how(curtain, tmp_path):
    (tmp_path / "mine.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(
        UserError, match=r"mine.Curtain, which cannot be imported: No module named 'nothing_of_that_name'$"
    ):
        checkpoints.load(curtain, trust=["mine"])


def test_parts_from_the_command_line_are_trusted(curtain, whole):
    prior = {"_target_": "mine_prior.Same", "latent": "${network.encoder.latent}"}
    Path("mine_prior.py").write_text("from vcd.priors import Shared as Base\n\nclass Same(Base.__mro__[1]):\n"
                                     "    def sample(self, T, randomness, temperature=1.0):\n"
                                     "        return randomness.normal(self.latent).expand(T, -1, -1)\n")  # fmt: skip
    model, _ = checkpoints.load(whole, parts={"prior": prior})
    assert type(model.prior).__name__ == "Same" and model.prior.latent == 2


# --- text -------------------------------------------------------------------------------------------------------------


def test_interpolations_in_a_foreign_checkpoint_are_text(forged, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    wanted = "${oc.env:SECRET}"
    path = forged({"dataset.name": wanted, "note": ["a\\${oc.env:SECRET}", {"b": wanted}], "extra": "${seed}"})
    _, cfg = checkpoints.load(
        path, parts={"prior": {"_target_": "vcd.priors.Shared", "latent": "${network.encoder.latent}"}}
    )
    assert cfg.dataset.name == wanted and cfg.note[1].b == wanted and cfg.extra == "${seed}"
    assert "hunter2" not in OmegaConf.to_yaml(cfg, resolve=True) + str(OmegaConf.to_container(cfg, resolve=True))
    with pytest.raises(UserError) as caught:  # a value of a model is as little
        checkpoints.load(forged({"model.network.dim": wanted}))
    assert "hunter2" not in str(caught.value)


def test_every_text_comes_back_as_it_is():
    draw = random.Random(0)
    texts = ["".join(draw.choices("\\${}a:.,'\" ", k=draw.randint(0, 9))) for _ in range(2000)]
    texts = [text for text in texts if text != "???"]
    config = {"deep": [{"er": text} for text in texts]}
    assert OmegaConf.to_container(stored.literal(config), resolve=True) == config


# --- damage -----------------------------------------------------------------------------------------------------------


def flipped(path: Path, at: int, copy_to: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << random.Random(at).randrange(8)
    copy_to.write_bytes(data)
    return copy_to


def test_a_flipped_bit_of_any_record_is_refused(whole, tmp_path):
    with zipfile.ZipFile(whole) as archive:
        records = archive.infolist()
        assert len(records) > 50
    data, draw = whole.read_bytes(), random.Random(0)
    for record in draw.sample(records, 25):
        start = record.header_offset
        name, extra = (int.from_bytes(data[start + i : start + i + 2], "little") for i in (26, 28))
        at = start + 30 + name + extra + draw.randrange(record.file_size)
        with pytest.raises(UserError, match="is damaged"):
            checkpoints.read(flipped(whole, at, tmp_path / "flipped.ckpt"))


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(whole, tmp_path):
    expected = checkpoints.read(whole)
    size, draw = whole.stat().st_size, random.Random(1)
    for at in [draw.randrange(size) for _ in range(25)] + [draw.randrange(size - 3000, size) for _ in range(25)]:
        try:
            found = checkpoints.read(flipped(whole, at, tmp_path / "flipped.ckpt"))
        except UserError as error:
            assert "is damaged" in str(error)
            continue
        assert found[checkpoints.CONFIG] == expected[checkpoints.CONFIG]
        for name, value in expected["state_dict"].items():
            assert torch.equal(found["state_dict"][name], value)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["network.out.bias", "degradation.stages.0.table"])
def test_weights_that_are_not_finite_are_refused(whole, tmp_path, value, name):
    checkpoint = torch.load(whole, weights_only=True)
    fine = copy.deepcopy(checkpoint["state_dict"])
    checkpoint["state_dict"][name].flatten()[0] = value
    torch.save(checkpoint, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=rf"odd.ckpt holds numbers that are not finite, in {name}"):
        checkpoints.load(tmp_path / "odd.ckpt")
    torch.save({**checkpoint, "current_model_state": fine}, tmp_path / "half.ckpt")
    assert checkpoints.load(tmp_path / "half.ckpt", raw=True)[0].sample(PerImage(0, range(1))).x0.isfinite().all()


def test_targets_are_found_everywhere():
    node = {"_target_": "a", "b": [{"_target_": "c", "d": {"_target_": "e"}}], "f": {"g": {"_target_": "h"}}, "_x": 1}
    assert stored.targets(node) == {"a", "c", "e", "h"}
    assert stored.targets("text") == stored.targets(None) == stored.targets([]) == set()


def test_the_data_of_a_foreign_checkpoint_is_held_to_the_same(compose, forged):
    """vcd.evaluate compares with the data set that the checkpoint names."""
    cfg = compose("ckpt=forged.ckpt", config="evaluate")
    _, run = checkpoints.load(forged({}))
    assert reference(cfg, run).name == "digits"
    for node in (TOUCH, {"_target_": WRITE, "path": "owned", "text": ""}, {"_target_": "vcd.schedules.Cosine"}):
        _, run = checkpoints.load(forged({"dataset.source": node}))
        with pytest.raises(UserError, match=r"^ckpt=forged.ckpt: dataset.source is "):
            reference(cfg, run)
    _, run = checkpoints.load(forged({"dataset.source": {"_target_": "vcd.data.digits.Digits", "colour": 1}}))
    with pytest.raises(UserError, match=r"^ckpt=forged.ckpt: dataset.source does not fit this version of vcd"):
        reference(cfg, run)
