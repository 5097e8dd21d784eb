"""What a command says of itself, what it makes of mistakes, and what it sets up before it begins."""

import os

import pytest
import torch
from omegaconf import OmegaConf

from vcd import threads
from vcd.cli import CONF
from vcd.mistakes import near

VERBS = sorted(path.stem for path in CONF.glob("*.yaml"))


def options(group: str) -> set[str]:
    """What can be chosen of a group: all but the parts of others, which begin with an underscore."""
    names = {path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml")}
    return {name for name in names if not name.startswith("_")}


def keys(node, prefix: str = "") -> set[str]:
    """The dotted keys of a yaml, without Hydra's."""
    found = set()
    for key, value in node.items():
        if isinstance(value, dict) and value:
            found |= keys(value, f"{prefix}{key}.")
        elif not key.startswith("_"):
            found.add(f"{prefix}{key}")
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_a_line_for_every_key_and_the_choices_of_every_group_of_the_command(here, tmp_path, verb):
    page = here(verb, "--help")
    assert page.code == 0 and page.stdout.startswith(f"python -m vcd.{verb}")
    yaml = OmegaConf.to_container(OmegaConf.load(CONF / f"{verb}.yaml"))
    defaults = [item for item in yaml.pop("defaults") if isinstance(item, dict)]
    groups = {group for item in defaults for group in item if not group.startswith("override ")}
    del yaml["hydra"]
    lines = {line.split("=")[0].strip(): line for line in page.stdout.splitlines() if "=" in line}
    for key in keys(yaml) - groups:
        assert len(lines[key].split("  ")[-1]) > 3, f"{key} has no comment in {verb}.yaml"
    if verb == "control":  # a comment of two lines
        assert lines["task"].endswith("bands; of a model that refines: guess_vary, guess_interpolate, guess_edit, "
                                      "guess_temperature, guess_corrupt")  # fmt: skip
    text = page.stdout.replace(",\n     ", ",").splitlines()  # long lists are wrapped
    for group in groups:
        (at,) = [i for i, line in enumerate(text) if line.startswith(f"  {group}=")]
        assert set(text[at + 1].strip().split(", ")) == options(group)
    others = {path.name for path in CONF.iterdir() if path.is_dir()} - groups
    assert not any(line.startswith(f"  {group}=") for line in text for group in others - keys(yaml))
    assert not list(tmp_path.iterdir())


def test_help_needs_no_torch(command, tmp_path):
    process = command("train", "--help", cwd=tmp_path, python=("-X", "importtime"))
    assert process.returncode == 0, process.stderr
    times = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    modules = {line.rpartition("|")[2].strip() for line in times}
    assert {"hydra", "vcd.cli"} <= modules
    assert not {"torch", "pytorch_lightning", "numpy", "matplotlib", "wandb"} & modules


def test_help_lists_choices_of_ones_own(here, tmp_path):
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "mine.yaml").write_text("# Mine.\n_target_: mine.Prior\n")
    (tmp_path / "prior" / "_base.yaml").write_text("# A part of mine.\n{}\n")
    said = here("sample", "--config-dir", str(tmp_path), "--help").stdout
    assert "independent, mine, mixture" in said and "_base" not in said


@pytest.mark.parametrize(
    ("verb", "arguments", "sentence"),
    [
        ("train", ["lr=0.1"], "there is no key 'lr' (did you mean optimizer.lr?); --cfg job shows all keys"),
        ("train", ["trainer.max_stepps=3"], "there is no key 'trainer.max_stepps' (did you mean trainer.max_steps"),
        ("train", ["degradatoin=blur"], "there is no key 'degradatoin' (did you mean degradation"),
        ("degrade", ["model=vcd"], "there is no key 'model'; --cfg job shows all keys"),
        ("train", ["degradation=blurr"], "'blurr' is not a choice of degradation (did you mean blur"),
        ("train", ["prediction=residual"], "prediction=residual is now called eps: prediction=eps"),
        ("train", ["degradation=heat"], "degradation=heat is now called blur_ihd: degradation=blur_ihd"),
        ("train", ["injection=start"], "injection=start is now called input: injection=input"),
        ("train", ["perturbation.delta=0.1"], "perturbation.delta is now called sampler.delta"),
        ("train", ["dataset.heat.sigma_max=3"], "dataset.heat.sigma_max is now called ihd.sigma_max"),
        ("train", ["model=_parts"], "model=_parts is only a part of others; choose from: autoencoder, bansal, ddpm"),
        ("train", ["network=_base"], "network=_base is only a part of others; choose from: afhq"),
        ("train", ["model=vwd", "logger=null"], "logger=null: the option of a group is a name; choose from: both, csv"),
        ("train", ["optimizer.lr=${nope}"], "optimizer.lr refers to a key that is not there"),
        ("train", ["experiment=compare_mnist_cpu"], "vcd.train has no keys common, evaluate, out, processes, train: is the "
         "experiment one of vcd.compare?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_names_the_mend(here, tmp_path, verb, arguments, sentence):
    assert here(verb, *arguments).sentence.startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_bases_are_not_offered(here):
    assert "_" not in here("train", "model=vdc").sentence.partition("choose from")[2]


def test_what_was_meant_is_the_same_leaf_then_a_similar_key_then_a_similar_leaf():
    known = ["logger", "model", "model.beta", "optimizer.lr", "trainer", "trainer.max_steps", "T"]
    assert near("lr", known) == ["optimizer.lr"]
    assert near("beta", known) == near("loss.beta", known) == ["model.beta"]
    assert near("trainr", known)[0] == "trainer"
    assert near("max_step", known) == ["trainer.max_steps"]
    assert near("zzz", known) == []


def test_a_bug_keeps_its_traceback(here, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of mine")

    monkeypatch.setattr("vcd.degradations.severity.measure", broken)
    said = here("degrade")
    assert said.code == 1 and "in broken" in said.stderr and said.stderr.endswith("of mine (this is a bug)\n")


def test_what_was_deleted_and_is_needed_is_named(here, trained):
    said = here("control", f"ckpt={trained.last}", "~weights")
    assert said.sentence == "~weights: it cannot be left out (KeyError: 'weights')"


@pytest.mark.parametrize(
    ("error", "beginning"),
    [
        (MemoryError(), "this does not fit into memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
            "this does not fit into memory",
        ),
        (PermissionError(13, "Permission denied", "/a/file"), "/a/file cannot be read or written (Permission denied)"),
    ],
    ids=["memory", "torch's memory", "a file"],
)
def test_what_the_machine_lacks_is_one_sentence(here, monkeypatch, error, beginning):
    def broken(*_):
        raise error

    monkeypatch.setattr("vcd.degradations.severity.measure", broken)
    assert here("degrade").sentence.startswith(beginning)


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["degrade", "sample", "control", "evaluate", "report", "restore", "refit"])
def test_an_output_that_cannot_be_written_is_said_before_any_work(here, tmp_path, trained, monkeypatch, verb):
    """A file stands where a folder would have to be, or the other way round."""

    def work(*_, **__):
        raise AssertionError("work began")

    for place in ("vcd.models.base.Diffusion.sample", "vcd.steering.draw", "vcd.degradations.severity.measure"):
        monkeypatch.setattr(place, work)
    (tmp_path / "file").write_text("mine")
    given = {
        "degrade": [], "sample": [f"ckpt={trained.last}"], "control": [f"ckpt={trained.last}"],
        "evaluate": [f"ckpt={trained.last}", "metrics=spectrum"], "report": [f"run={trained.last.parent}"],
        "restore": [f"ckpt={trained.last}", "images=file"], "refit": [f"ckpt={trained.last}"],
    }[verb]  # fmt: skip
    wrong = (
        ["file", "file/below", "/proc/nowhere/it"]
        if verb in ("sample", "control", "restore")
        else [".", "file/below", "/proc/it"]
    )
    for out in wrong:
        assert here(verb, *given, f"out={out}").sentence.startswith(f"out={out} cannot be written (")
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


# --- threads, devices, places -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_takes_one_thread_unless_told_otherwise(verb):
    assert OmegaConf.load(CONF / f"{verb}.yaml").threads == 1


def test_threads_are_those_of_torch_and_of_what_is_imported_later(here, monkeypatch):
    seen = []

    def work(*_):
        seen.append((torch.get_num_threads(), *(os.environ[name] for name in threads.VARIABLES)))
        raise MemoryError

    monkeypatch.setattr("vcd.degradations.severity.measure", work)
    for n in (2, 1):
        here("degrade", f"threads={n}")
    assert seen == [(2, "2", "2", "2"), (1, "1", "1", "1")]


def test_processes_share_the_cores():
    cores = len(os.sched_getaffinity(0))
    for processes, each in {1: cores, 9 * cores: 1}.items():
        assert {threads.shared(processes)[name] for name in threads.VARIABLES} == {str(each)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_one_sentence(here):
    assert here("sample", "ckpt=nowhere", "device=cuda").sentence.startswith("device=cuda cannot be used here (")


def test_the_data_folder_needs_no_home(here, monkeypatch, tmp_path):
    monkeypatch.delenv("HOME")
    said = here("degrade", "T=3", "out=x.png")
    assert said.code == 0 and (tmp_path / "x.png").exists(), said
    monkeypatch.delenv("VCD_DATA")
    assert here("degrade", "T=3", "--cfg", "job", "--resolve").stdout.count("root: ~/.cache/vcd") == 1


@pytest.mark.parametrize("verb", ["degrade", "restore"])
def test_a_degradation_that_sets_what_training_asks_serves_other_commands_too(compose, command, tmp_path, verb):
    """conf/degradation/warm.yaml sets the default prediction; told by hand, it is refused where nothing reads it."""
    assert compose("degradation=warm", config=verb).degradation._target_.endswith(".Soft")
    refused = command(verb, "prediction=xt", cwd=tmp_path)
    assert refused.returncode == 1 and "error: prediction is a choice of training" in refused.stderr
