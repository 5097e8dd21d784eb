"""What the tests share: configs as the command line composes them, commands as a user starts them, one tiny run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait for each other

import contextlib
import functools
import gc
import importlib
import io
import shutil
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import hydra
import pytest
import torch
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from vcd import threads
from vcd.cli import CONF

torch.set_num_threads(1)

TINY = [
    "dataset=digits", "T=3", "network=tiny", "network.unet.dim=8", "network.unet.dropout=0.0", "network.encoder.latent=4",
    "batch_size=16", "callbacks.pictures.n=4", "callbacks.pictures.rows=2",
]  # fmt: skip
SHORT = [
    *TINY, "trainer.max_steps=20", "checkpoint_every=10", "trainer.val_check_interval=10", "trainer.log_every_n_steps=5",
    "trainer.accelerator=cpu", "trainer.precision=32-true", "ema_decay=0.9", "optimizer.lr=0.003", "scheduler=constant",
    "scheduler.warmup=2", "prior=mixture", "prior.images=300", "prior.components=2",
]  # fmt: skip
ROLLOUT = [
    "model=vcd", "degradation=black_blur", "perturbation=rollout", "perturbation.warmup=4", "perturbation.p=0.2",
    "perturbation.sigma=0.1",
]  # fmt: skip


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore:.*PEP 484 type hint.*")  # beartype on DictConfig
    config.addinivalue_line("filterwarnings", "ignore:.*isinstance.treespec, LeafSpec.*")  # Lightning


def pytest_collectstart():
    """jaxtyping's hook compiles anew whatever a module of vcd is the first to import: what is large comes before."""
    import pydantic  # noqa: F401
    import pytorch_lightning  # noqa: F401
    import torchmetrics.functional.image  # noqa: F401


def pytest_collection_finish(session):
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@functools.cache
def composed(config: str | None, choices: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config, list(choices))


def composition(*overrides: str, config: str | None = "train") -> DictConfig:
    """Hydra's compose, of a tenth of a second, once for the same choices: values are then set in a copy, as Hydra does it."""
    groups, values = [], []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides([*overrides]), strict=True):
        group, value = override.key_or_group, override.value()
        chooses = (CONF / group).is_dir() and not isinstance(value, dict) or group.startswith("hydra.")
        groups.append(text) if chooses else values.append(override)
    cfg = composed(config, tuple(groups)).copy()
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    return cfg


@pytest.fixture(scope="session")
def compose():
    """compose("key=value", ..., config="train"): a config, as from the command line."""
    from vcd.resolvers import register_resolvers

    register_resolvers()
    return composition


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """command("train", "key=value", ..., cwd=folder): `python -m vcd.train key=value ...` in a process of its own."""
    nothing = tmp_path_factory.mktemp("no-data")

    def run(verb: str, *arguments: str, cwd: Path, python: tuple[str, ...] = (), **environment: str):
        path = os.pathsep.join([str(CONF.parent), str(cwd)])
        unset = {"VCD_TRACEBACK", "HYDRA_FULL_ERROR"}
        given = {k: v for k, v in os.environ.items() if k not in unset}
        environment = {**given, "PYTHONPATH": path, "VCD_DATA": str(nothing), **environment}
        line = [sys.executable, *python, "-m", f"vcd.{verb}", *arguments]
        return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)

    return run


@dataclass
class Said:
    """How a command ended: its exit code, and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """Of a command that failed: its last line, after `error: `; there is no traceback above it."""
        assert self.code == 1 and "Traceback" not in self.stderr and "is a bug" not in self.stderr, self
        assert self.stderr.splitlines()[-1].startswith("error: "), self
        return self.stderr.splitlines()[-1].removeprefix("error: ")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """here("train", "key=value", ...): the same in this very process, in a folder of its own: without its seconds of start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VCD_DATA", str(tmp_path / "no-data"))
    for name in (*threads.VARIABLES, "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # what the command sets is undone
    monkeypatch.delenv("VCD_TRACEBACK", raising=False)

    def run(verb: str, *arguments: str) -> Said:
        main = importlib.import_module(f"vcd.{verb}").main
        monkeypatch.setattr(sys, "argv", [f"vcd.{verb}", *arguments])
        printed, failed = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(failed):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
                code = 1
        torch.set_num_threads(1)
        return Said(code, printed.getvalue(), failed.getvalue())

    return run


@dataclass
class Run:
    """A run as it was started: where, how, and what it said."""

    cwd: Path
    arguments: list[str]
    process: subprocess.CompletedProcess

    @property
    def last(self) -> Path:
        return Path(self.process.stdout.splitlines()[-1].split(maxsplit=1)[1])


@pytest.fixture(scope="session")
def trained(command, tmp_path_factory) -> Run:
    """VCD, trained on the digits for 20 steps, past the warm-up of its rollout."""
    cwd, arguments = tmp_path_factory.mktemp("trained"), [*SHORT, *ROLLOUT]
    process = command("train", *arguments, cwd=cwd)
    assert process.returncode == 0, process.stderr
    return Run(cwd, arguments, process)


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, headless. (Of a module: its event loop must not outlive it, notebooks run their own.)"""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def seed():
    """The same random numbers at every start of this test."""
    torch.manual_seed(0)


@torch.no_grad()
def scramble(module: torch.nn.Module, std: float = 0.3, seed: int = 1) -> torch.nn.Module:
    """The module with every parameter drawn anew, so that nothing is zero or one by initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return module
