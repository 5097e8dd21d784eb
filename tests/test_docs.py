"""README and docs: every block of code runs as it stands, or says why it cannot; every link leads somewhere.

A block of code is Python, which runs in one namespace a page; a file, which begins with `# its/name.py` or `.yaml`; or
commands, which are composed in the fast tests and run in miniature in the long ones. `<!-- not run: why -->` above a
block is the only way out, and its commands are composed all the same.
"""

import doctest
import importlib
import itertools
import pkgutil
import re
import shlex
import sys
import urllib.parse
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import SHORT, composition
from omegaconf import OmegaConf

from vcd import help, schema
from vcd.cli import CONF

ROOT = CONF.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / "CHANGELOG.md", ROOT / "RESULTS.md", ROOT / "benchmarks" / "RESULTS.md"]  # of commands, not run here
FENCE = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"python", "bash", "yaml", "text", "bibtex"}
FILE = re.compile(r"(?:# @package _global_\n)?# ([\w/]+\.(?:py|yaml))\n")
LINK = re.compile(r"(?<!`)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`|<!--.*?-->", re.MULTILINE | re.DOTALL)
RELATIVE_OF_VCD = "models.variational.Variational"  # how docs/theory.md names things

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@dataclass(frozen=True)
class Block:
    why: str  # it is not run; empty where it is
    kind: str
    text: str

    @property
    def file(self) -> str | None:
        found = FILE.match(self.text)
        return found[1] if found and self.kind in ("python", "yaml") else None


def blocks(page: Path) -> list[Block]:
    return [Block(*parts) for parts in FENCE.findall(page.read_text())]


def commands(text: str) -> list[list[str]]:
    """The commands of a block, without the settings of the environment before them; those of a transcript begin with $."""
    lines = text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    found = [shlex.split(line, comments=True) for line in lines]
    return [list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words)) for words in found if words]


def verb_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The verb of vcd and its arguments, without those that the page leaves out; None for other commands."""
    rest = [word for word in words if word not in ("...", "-B")]
    if rest[:1] == ["vcd"] and len(rest) > 1:
        return rest[1], rest[2:]
    if rest[:2] == ["python", "-m"] and len(rest) > 2 and rest[2].startswith("vcd."):
        return rest[2].removeprefix("vcd."), rest[3:]
    return None


# --- the pages --------------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_its_pages_are_there():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    names = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES[2:]}
    assert {"tutorial.md", "python.md", "steering.md", "evaluation.md", "clusters.md", "extending.md", "theory.md",
            "methods.md", "untested.md", "api/trained.md"} <= names  # fmt: skip
    assert "```bibtex" in text


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_is_of_a_known_kind(page):
    found = blocks(page)
    assert page.read_text().count("\n```") == 2 * len(found), (
        "a fence that is not closed, or closed where it is not open"
    )
    for block in found:
        assert block.kind in KINDS or page in OTHERS and not block.kind, block.text
        assert not block.why or block.kind in ("bash", "text", "python"), block.text
        if block.kind == "yaml":
            OmegaConf.create(block.text)
        if block.kind == "text":
            assert block.why or not re.search(r"^\$ ", block.text, re.MULTILINE), "a transcript says why it is not run"


@every_page
def test_every_link_leads_somewhere(page):
    follow(page)


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_the_other_pages_too(page):
    follow(page)


def follow(page: Path) -> None:
    """Files and anchors are looked up, addresses in the web only read."""
    for to in LINK.findall(CODE.sub("", page.read_text())):
        address = urllib.parse.urlsplit(to)
        if address.scheme:
            assert address.scheme == "https" and "." in address.netloc, to
            continue
        target = (page.parent / address.path).resolve() if address.path else page
        assert target.exists() and target.is_relative_to(ROOT), f"{to} in {page.name}"
        if address.fragment:
            assert address.fragment in anchors(target.read_text()), f"{to} in {page.name}"


def anchors(text: str) -> set[str]:
    """Of every heading, as GitHub and the site make them alike."""
    headings = re.findall(
        r"^#+ (.+)$", CODE.sub(lambda code: code[0].strip("`") if "\n" not in code[0] else "", text), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_name_of_the_theory_is_in_the_code():
    names = set(re.findall(r"`((?:[a-z_]+\d?\.)+\w+(?:\.\w+)*)`", (ROOT / "docs" / "theory.md").read_text()))
    assert RELATIVE_OF_VCD + ".losses" in names and len(names) > 40
    for name in names:
        assert pkgutil.resolve_name(f"vcd.{name.removeprefix('vcd.')}"), name


def test_every_group_and_option_is_in_the_methods():
    """But for the settings of a data set, and for experiments and sweeps, which are named in families."""
    text = (ROOT / "docs" / "methods.md").read_text()
    for group in help.read("train")[1]:
        if group[0] not in ("experiment", "sweep"):
            assert f"`{group[0]}`" in text, group[0]
            missing = [name for name in help.options(group[0]) if not re.search(rf"\b{name}\b", text)]
            assert not missing, f"{group[0]}: {missing}"


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_composes(page, tmp_path, monkeypatch):
    """Its keys, options and values are known; nothing is run."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from vcd.resolvers import register_resolvers

    register_resolvers()
    for block in blocks(page):
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text)
        if block.kind not in ("bash", "text"):
            continue
        for words in commands(block.text) if block.kind == "bash" or block.why else []:
            if (asked := verb_of(words)) is None or (verb := asked[0]) == "sweep":
                continue
            given = [word for word in asked[1] if word not in ("--multirun", "--help", "-m")]
            own = [f"hydra.searchpath=[file://{tmp_path}/my_conf]"] if "--config-dir" in given else []
            given = [word for word in given if word not in ("--config-dir", "my_conf")]
            parsed = OverridesParser.create().parse_overrides(given)
            jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0] if given else [[]]
            for job in {tuple(jobs[0]), tuple(jobs[-1])}:
                schema.check(verb, composition(*job, *own, config=verb))


LATENT = {"vcd", "vwd", "plain"}
MINIATURE = [
    "network=tiny", "network.unet.dim=8", "batch_size=16", "trainer.max_steps=4", "checkpoint_every=4",
    "trainer.val_check_interval=4", "trainer.log_every_n_steps=2", "callbacks.pictures.n=4", "callbacks.pictures.rows=2",
    "data.val_images=40", "trainer.accelerator=cpu", "trainer.precision=32-true", "threads=1",
]  # fmt: skip
SMALL = {
    "evaluate": ["n=60", "extractor.steps=50", "extractor.batch_size=64", "restored=12", "device=cpu", "threads=1"],
    "sample": ["n=5", "device=cpu"],
    "control": ["n=3", "device=cpu"],
    "restore": ["device=cpu"],
    "refit": ["device=cpu"],
    "report": ["n=4", "pairs=2", "device=cpu"],
}


def in_miniature(verb: str, given: list[str], folder: Path, otherwise: Path) -> list[str]:
    """The same command, soon over: smallest network, few steps, digits; with the newest checkpoint of the page's runs."""

    def newest(found: re.Match) -> str:
        runs = folder.glob(f"{found[1]}/*/last.ckpt")
        return str(max(runs, key=lambda path: path.stat().st_mtime, default=otherwise).parent)

    given = [re.sub(r"(\w+)/\.\.\.", newest, word) for word in given]
    for named in ("dataset", "experiment"):  # those that need no download
        given = [re.sub(rf"^({named}=.*?)(mnist|cifar10|afhq)$", r"\1digits", word) for word in given]
    small = list(SMALL.get(verb, []))
    if verb == "train":
        small = [o for o in MINIATURE if "model=autoencoder" not in given or not o.startswith("network=")]
        small += ["network.unet.mults=[1,2]"] if "model=autoencoder" in given else []
        named = [value for word in given for key, _, value in [word.partition("=")] if key == "model"]
        if all(set(value.split(",")) <= LATENT for value in named) and not any("stage1" in word for word in given):
            small += [o for o in SHORT if o.startswith("prior")]
            small += [] if "injection=spatial" in given else ["network.encoder.latent=4"]  # there it is maps * grid^2
    keys = {word.partition("=")[0] for word in small}
    return [word for word in given if word.partition("=")[0] not in keys] + small


@pytest.mark.long
@pytest.mark.timeout(900)
@every_page
def test_every_block_runs(page, trained, here, tmp_path, monkeypatch):
    """In the order of the page, in one folder and one namespace."""
    from PIL import Image

    if not any(block.kind == "bash" and not block.why for block in blocks(page)):
        pytest.skip("no command to run; its Python runs in the fast tests")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VCD_DATA")  # as on a machine where nobody has set it: ~/.cache/vcd
    (tmp_path / "photos").mkdir()
    for i, path in enumerate((tmp_path / "photo.png", *(tmp_path / "photos" / f"{i}.png" for i in range(24)))):
        Image.new("RGB", (70, 66), (10 * i, 200 - 8 * i, 5 * i)).save(path)
    known: dict = {"__name__": "page"}
    for block in blocks(page):
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text)
        if block.kind == "python" and not block.why:
            execute(block.text, page, trained.last, known)
        if block.kind != "bash" or block.why:
            continue
        for words in commands(block.text):
            if words[0] == "export":
                continue  # PYTHONPATH, which is set above
            asked = verb_of(words)
            assert asked is not None, f"{words}: only commands of vcd are run here; say why this one is not"
            said = here(asked[0], *in_miniature(*asked, tmp_path, trained.last))
            assert said.code == 0, f"{shlex.join(words)}\n{said.stdout[-2000:]}\n{said.stderr[-3000:]}"
    for name in [
        name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(str(tmp_path))
    ]:
        del sys.modules[name]


# --- Python -----------------------------------------------------------------------------------------------------------

FOR_THE_TEST = {'"runs/.../last.ckpt"': "{ckpt!r}", "max_steps=1000": "max_steps=2"}  # what a page leaves to its reader
PYTHON = [page for page in PAGES if any(block.kind == "python" and not block.why for block in blocks(page))]


def execute(text: str, page: Path, ckpt: Path, known: dict) -> None:
    for said, meant in FOR_THE_TEST.items():
        text = text.replace(said, meant.format(ckpt=str(ckpt)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(text, page.name, "exec"), known)


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_every_block_of_python_runs(page, trained, tmp_path, monkeypatch):
    """One after the other, in one namespace, as they are read."""
    monkeypatch.chdir(tmp_path)
    known: dict = {"__name__": "page"}
    for block in blocks(page):
        if block.kind == "python" and not block.why:
            execute(block.text, page, trained.last, known)


EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "vcd").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings(name, trained):
    import torch

    import vcd

    module = importlib.import_module(name)
    known = {**vars(module), "vcd": vcd, "torch": torch}
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for test in finder.find(module, globs=known) if test.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        for example in test.examples:
            example.source = example.source.replace("runs/.../last.ckpt", str(trained.last))
        runner.run(test)
    assert runner.tries and runner.failures == 0
    assert len(tests) == len(re.findall(r"^ *Examples:$", Path(module.__file__).read_text(), re.MULTILINE))


def test_the_main_classes_have_examples():
    assert {"vcd.api", "vcd.degradations.base", "vcd.degradations.gaussian", "vcd.priors.base",
            "vcd.samplers", "vcd.steering"} <= set(EXAMPLES)  # fmt: skip
