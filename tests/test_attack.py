"""Two hundred wrong values, drawn anew from every command's own config: each is refused in a sentence that names its key."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import SHORT, Said
from omegaconf import OmegaConf
from test_configs import chosen, names

from vcd.cli import CONF

GROUPS = ("degradation", "gamma", "injection", "level_sampler", "model", "perturbation", "prediction", "prior", "sampler",
          "schedule", "scheduler", "start", "weight")  # fmt: skip
ATTACKS, SLIPS, PROCESSES = 200, 200, 12
# By the kind of the value that is there: wrong wherever one of that kind is asked for.
NONSENSE: dict[type, list[str]] = {
    bool: ["maybe", "7", "nan", "[true]", "{a: 1}", "null"],
    int: ["nan", "-7", "abc", "2.5", "1e12", "[1,x]", "{a: 1}", "true", "''", "-1e9"],
    float: ["nan", "abc", "[1,x]", "{a: 1}", "true", "''"],
    list: ["nan", "{a: 1}", "[[1]]", "[nan]", "true"],
    str: ["{a: 1}", "nan", "[[1]]", "true"],
}


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that stands in a config, with its key; of interpolations those that they lead to."""
    if isinstance(node, dict):
        for name, child in node.items():
            if not name.startswith("_"):
                yield from leaves(child, f"{key}.{name}" if key else name)
    elif not (isinstance(node, str) and "${" in node) and node is not None:
        yield key, node


def draw(compose, dice: random.Random, own: dict[str, list[list[str]]]) -> tuple[str, list[str], str, str]:
    """(command, its arguments, key, nonsense)."""
    verb = dice.choice(list(own))
    arguments = dice.choice(own[verb])
    groups = [argument for argument in arguments if "/" not in argument and "=[" not in argument]
    plain = OmegaConf.to_container(compose(*groups, config=verb), resolve=False)
    key, value = dice.choice([leaf for leaf in leaves(plain) if leaf[0] not in FREE])
    return verb, arguments, key, dice.choice(NONSENSE[type(value)])


FREE = {"task", "metrics"}  # names that are looked up: the sentence lists what there is


@pytest.fixture
def own(trained) -> dict[str, list[list[str]]]:
    """For each command, arguments with which it would succeed, in seconds."""
    short = [o for o in SHORT if not o.startswith(("trainer.max_steps", "trainer.val_check", "prior", "scheduler"))]
    short += ["trainer.max_steps=2", "trainer.val_check_interval=2"]
    parts = [chosen(group, option)[1] for group in GROUPS for option in names(group)]
    parts = [[o for o in part if o not in short] for part in parts]
    colour = {"decolour": ["dataset.channels=3"], "decolour_lab": ["dataset.channels=3"]}
    ckpt, run = f"ckpt={trained.last}", trained.last.parent
    return {
        "train": [[*(o for o in short if not o.startswith("T=") or "T=18" not in part), *part] for part in parts],
        "sample": [[ckpt, "n=2", "rows=1", *part] for part in ([], ["prior=mixture"], ["sampler=sequential"])],
        "control": [[ckpt, "n=1", f"task={task}"] for task in ("exchange", "temperature", "encode")],
        "evaluate": [[ckpt, "metrics=spectrum", "n=8"]],
        "degrade": [["T=3", f"degradation={name}", *colour.get(name, [])] for name in names("degradation")],
        "report": [[f"run={run}", "n=2", "pairs=2"]],
        "compare": [[f"runs=[{run}]"]],
        "restore": [[ckpt, f"images={run / 'samples.png'}"]],
        "refit": [[ckpt, "prior.images=50", "prior.components=1"]],
    }


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_nonsense_is_refused_in_a_sentence(here, compose, own):
    dice = random.Random(14)
    wrong = []
    for _ in range(ATTACKS):
        verb, arguments, key, value = draw(compose, dice, own)
        said = here(verb, *arguments, f"{key}={value}")
        if said.code != 1 or not clean(said) or f"{key}=" not in said.stderr.splitlines()[-1]:
            wrong.append(f"vcd.{verb} {' '.join(arguments)} {key}={value}: exit {said.code}, {said.stderr[-600:]}")
    assert not wrong, f"{len(wrong)} of {ATTACKS}:\n" + "\n".join(wrong)


@pytest.mark.long
def test_nonsense_ends_a_process_and_leaves_nothing_behind(command, compose, own, trained, tmp_path):
    """The same as a user sees it: `python -m vcd.X` in a folder of its own."""
    dice = random.Random(16)
    run = trained.last.parent

    def files() -> dict[str, int]:
        return {
            str(path): path.stat().st_mtime_ns for path in [*run.rglob("*"), *tmp_path.rglob("*")] if path.is_file()
        }

    before = files()
    for verb in [*own, *dice.sample(list(own), PROCESSES - len(own))]:
        _, arguments, key, value = draw(compose, dice, {verb: own[verb]})
        done = command(verb, *arguments, f"{key}={value}", cwd=tmp_path)
        said = Said(done.returncode, done.stdout, done.stderr)
        assert f"{key}=" in said.sentence and "Traceback" not in said.stdout, said
        assert said.stderr.count("error: ") == 1, said
        assert files() == before and not any(tmp_path.iterdir()), (verb, key, value)


def clean(said: Said) -> bool:
    """Whether a command succeeded, or failed with a sentence at its end and no traceback."""
    end = (said.stderr.splitlines() or [""])[-1]
    return said.code == 0 or (
        "Traceback" not in said.stderr and "is a bug" not in said.stderr and end.startswith("error: ")
    )


def typed(compose, dice: random.Random, own: dict[str, list[list[str]]]) -> tuple[str, list[str]]:
    """(command, arguments) with a slip of the hand in it: whatever that makes of it."""
    verb = dice.choice(list(own))
    arguments = list(dice.choice(own[verb]))
    plain = OmegaConf.to_container(compose(config=verb), resolve=False)
    key, value = dice.choice([leaf for leaf in leaves(plain) if leaf[0] not in COSTLY])
    group, option = dice.choice(
        [(path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name not in COSTLY]
    )
    at = dice.randrange(len(key))
    slips = [
        f"{key[:at]}{key[at + 1 :]}={value}", f"{key[:at]}x{key[at:]}={value}", f"~{key}", f"+{key}={value}", f"{key}", f"{key}=",
        f"={value}", f"{key}=[1", f"{key}={{", f"{key}=${{{key}", f"{key}=${{nope}}", f"{key}=${{oc.env:NOPE}}", f"{key}=null",
        f"{key}=1,2", f"{key} {value}", f"{group}={option}", f"{group}={option}x", f"~{group}", f"+{group}={option}",
        f"{group}@{key}={option}", f"{group}=[{option},{option}]", f"{group}=null", f"{key}.x=1", "",
    ]  # fmt: skip
    return verb, [*arguments, dice.choice(slips)]


COSTLY = {
    "experiment",
    "sweep",
    "logger",
    "network",
    "launcher",
    "trainer",
    "dataset",
}  # what would run for long, or elsewhere


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_slip_of_the_hand_ends_in_no_traceback(here, compose, own):
    dice = random.Random(15)
    wrong = []
    for _ in range(SLIPS):
        verb, arguments = typed(compose, dice, own)
        if not clean(said := here(verb, *arguments)):
            wrong.append(f"vcd.{verb} {' '.join(arguments)}: exit {said.code}, {said.stderr[-1500:]}")
    assert not wrong, f"{len(wrong)} of {SLIPS}:\n" + "\n".join(wrong)
