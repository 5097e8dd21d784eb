"""scripts/wandb_workspace.py: a view for wandb of the curves that a run really has."""

import importlib.util
import subprocess
import sys

import pytest

from vcd.cli import CONF

SCRIPT = CONF.parent / "scripts" / "wandb_workspace.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("wandb_workspace", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_shows_what_was_logged(script, trained):
    found = script.sections(trained.last.parent / "metrics.csv")
    assert found["Over all"][0] == ["val/loss", "train/loss"]
    assert found["KL in bits, level by level"] == [[f"val/kl_bits/t0{t}"] for t in (1, 2, 3)]
    said = subprocess.run(
        [sys.executable, SCRIPT, "me/vcd", trained.last.parent, "--list"], capture_output=True, text=True
    )
    assert said.returncode == 0 and said.stdout.startswith("Over all: val/loss and train/loss, ")
    said = subprocess.run([sys.executable, SCRIPT, "vcd", trained.last.parent], capture_output=True, text=True)
    assert said.returncode == 2 and "ENTITY/PROJECT" in said.stderr


def test_wandb_takes_it(script):
    """Its own classes do, without a network; saving it needs one, and is not tested."""
    pytest.importorskip("wandb_workspaces")
    view = script.view(
        "me", "vcd", {"Over all": [["val/loss", "train/loss"]], "By level": [["val/loss/t1"], ["val/loss/t2"]]}
    )
    bank = view._to_model().spec.section.panel_bank_config.sections
    plots = [[panel.config.metrics for panel in section.panels] for section in bank if section.panels]
    assert plots == [[["val/loss", "train/loss"]], [["val/loss/t1"], ["val/loss/t2"]]]
