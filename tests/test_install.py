"""vcd installed as a user installs it, in both ways: from there, sweeps start processes and find their launchers."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from conftest import SHORT, TINY
from packaging.requirements import Requirement

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


def required(name: str, extra: str = "") -> set[str]:
    """The distributions that one needs, and what they need, and so on, itself among them."""
    wanted, todo = set(), [(name, extra)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) not in wanted:
            wanted.add((name, extra))
            needs = map(Requirement, importlib.metadata.requires(name) or [])
            for need in (n for n in needs if n.marker is None or n.marker.evaluate({"extra": extra})):
                todo += [(need.name.lower(), one) for one in {"", *need.extras}]
    return {name for name, _ in wanted}


@pytest.mark.long
@pytest.mark.parametrize("python", ["wheel"], indirect=True)
def test_training_and_sharing_need_no_more_than_the_wheel_says(python, tmp_path):
    """In an environment of what vcd requires without extras, and what that requires."""
    site, bare = Path(sysconfig.get_path("purelib")), tmp_path / "bare"
    bare.mkdir()
    (link,) = Path(python).parent.parent.glob("lib/*/site-packages/all-else.pth")
    link.write_text(f"{bare}\n")
    text = tomllib.loads((CONF.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    for name in set().union(*(required(Requirement(one).name.lower()) for one in text)):
        files = importlib.metadata.files(name) or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (bare / top).exists():
                (bare / top).symlink_to(site / top)
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "VCD_DATA": str(tmp_path / "no-data")}
    environment.pop("PYTHONPATH", None)

    def run(*line: str) -> str:
        said = subprocess.run(
            [python, *line], cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True
        )
        assert said.returncode == 0, said.stdout + said.stderr
        return said.stdout

    gone = ("wandb", "submitit", "optuna", "huggingface_hub", "diffusers", "jupyterlab", "pytest")
    found = f"import importlib.util; print([name for name in {gone} if importlib.util.find_spec(name)])"
    assert run("-c", found) == "[]\n"
    short = [*(o for o in SHORT if not o.startswith("trainer.max_steps")), "trainer.max_steps=2", "run_dir=run"]
    run("-m", "vcd", "train", *short, "model=vwd")
    run("-m", "vcd", "export", "ckpt=run/last.ckpt", "out=shared", "device=cpu")
    said = run("-c", "import vcd; print(vcd.load('shared').sample(2).shape, vcd.load('digits').sample(2).shape)")
    assert said == "torch.Size([2, 1, 8, 8]) torch.Size([2, 1, 8, 8])\n"


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
