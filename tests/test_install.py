"""vcd installed as a user installs it, in both ways: from there, sweeps start processes and find their launchers."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import SHORT, TINY

from vcd.cli import CONF

SOURCE = ("vcd", "conf", "hydra_plugins", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(params=["editable", "wheel"])
def python(request, tmp_path) -> str:
    """The interpreter of an environment with vcd in it, and all else from this one's."""
    source, venv = tmp_path / "source", tmp_path / "venv"
    source.mkdir()
    for name in SOURCE:
        path = CONF.parent / name
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = str(venv / "bin" / "python")
    say = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", say], check=True, capture_output=True, text=True).stdout.strip())
    (site / "all-else.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
    ]
    done = subprocess.run(
        [*pip, *(["-e"] if request.param == "editable" else []), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if request.param == "wheel":
        shutil.rmtree(source)
    return python


@pytest.mark.long
def test_sweeps_start_from_an_installation(python, tmp_path):
    def run(verb: str, *arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "VCD_DATA": str(tmp_path / "no-data")}
        environment.pop("PYTHONPATH", None)
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        line = [python, "-m", f"vcd.{verb}", *arguments]
        return subprocess.run(
            line, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, timeout=280
        )

    short = [*(o for o in SHORT if not o.startswith("trainer.max_steps")), "trainer.max_steps=2"]
    swept = run("train", "--multirun", "launcher=processes", *short, "model=vwd", "seed=0,1")
    assert swept.returncode == 0 and "2 runs: 2 finished" in swept.stdout, swept.stdout + swept.stderr
    submitted = run("train", "--multirun", "launcher=slurm", *TINY, "seed=0")
    assert "launcher=slurm could not submit" in submitted.stderr or submitted.returncode == 0  # where there is a SLURM
    assert run("degrade", "--help").stdout.startswith("python -m vcd.degrade")


def test_hydra_knows_the_launchers_without_listing_their_folder(monkeypatch):
    """As in an editable installation, where a finder stands for the folder."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher

    from vcd import cli

    plugins = Plugins.instance()
    ours = {name: plugin for name, plugin in plugins.class_name_to_class.items() if "vcd_launchers" in name}
    for name, plugin in ours.items():
        monkeypatch.delitem(plugins.class_name_to_class, name)
        for known in plugins.plugin_type_to_subclass_list.values():
            if plugin in known:
                known.remove(plugin)
    cli.register_launchers()
    names = {f"hydra_plugins.vcd_launchers.launchers.{name}" for name in ("Local", "Processes", "Slurm")}
    assert names <= set(plugins.class_name_to_class)
    assert names <= {f"{plugin.__module__}.{plugin.__name__}" for plugin in plugins.discover(Launcher)}
