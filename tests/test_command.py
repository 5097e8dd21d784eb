"""vcd VERB: one command for all verbs, its completion in bash, and what it says where an extra is missing."""

import os
import subprocess
import sys

import pytest
from conftest import ROLLOUT, SHORT

from vcd.__main__ import main, verbs
from vcd.cli import CONF

EXTRAS = ("submitit", "hydra_plugins.hydra_submitit_launcher", "hydra_plugins.hydra_optuna_sweeper", "optuna")


@pytest.fixture
def vcd(here, monkeypatch, capsys):
    """vcd("train", "--help"): the exit code or error, and what was printed."""

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["vcd", *arguments])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, capsys.readouterr().out

    return run


def test_every_verb_has_a_line_and_is_a_module():
    files = {path.stem for path in CONF.glob("*.yaml")}
    assert set(verbs()) == files | {"sweep"} and list(verbs())[:2] == ["train", "sample"]
    for verb, line in verbs().items():
        assert (CONF.parent / "vcd" / f"{verb}.py").exists()
        assert line and "\n" not in line and "python -m" not in line


def test_it_lists_the_verbs_and_hands_over(vcd, tmp_path):
    code, listed = vcd()
    assert code == 0 and vcd("--help") == (0, listed)
    assert all(f"  {verb} " in listed for verb in verbs())
    code, page = vcd("sample", "--help")
    assert code == 0 and page.startswith("vcd sample: ") and "ckpt=null" in page
    code, page = vcd("sweep", "--help")
    assert code == 0 and page.startswith("usage: vcd sweep ") and "collect" in page
    assert all(
        vcd(verb, "--help")[1].replace(":", " ").split()[:2] == ["vcd", verb] for verb in verbs() if verb != "sweep"
    )


def test_an_unknown_verb_names_the_nearest(vcd):
    code, printed = vcd("trian", "model=vcd")
    assert str(code).startswith("error: there is no verb 'trian' (did you mean train?); choose from: train, sample")
    assert printed == ""
    assert "did you mean" not in str(vcd("xyzzy")[0])


def test_bash_completes_verbs_options_and_keys(tmp_path):
    """In a bash, with the function that Hydra prints for `vcd`."""
    script = tmp_path / "vcd"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m vcd "$@"\n')
    script.chmod(0o755)
    ask = r"""
eval "$(vcd train --shell-completion install=bash)"
complete -p vcd
ask() { COMP_LINE="$1"; COMP_POINT=${#1}; local words=($1); COMP_CWORD=$((${#words[@]} - 1)); hydra_bash_completion; echo "${COMPREPLY[@]}"; }
ask "vcd sa"
ask "vcd train model=v"
ask "vcd train perturbation=rollout perturbation.p_"
"""
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(CONF.parent)}
    said = subprocess.run(["bash", "-c", ask], env={**os.environ, **path}, cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout.splitlines() == [
        "complete -o default -o nospace -F hydra_bash_completion vcd",
        "sample",
        "model=vcd model=vdm model=vwd",
        "perturbation.p_warmup=",
    ], said.stderr


@pytest.mark.parametrize(
    ("package", "asked"), [("submitit", ["--multirun", "launcher=slurm"]), ("optuna", ["sweep=optuna"])]
)
def test_a_missing_extra_is_named(command, tmp_path, package, asked):
    """In a process that cannot import them."""
    lines = "\n".join(f"sys.modules[{name!r}] = None" for name in EXTRAS)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{lines}\n")
    said = command("train", *asked, "threads=1", cwd=tmp_path)
    who = asked[-1]
    sentence = f"{who} needs {package}, which is not installed: pip install 'vcd[{who.partition('=')[2]}]'"
    assert said.returncode == 1 and said.stderr == f"error: {sentence}\n"


def test_so_is_wandb(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = here("train", *SHORT, *ROLLOUT, "logger=wandb")
    assert said.sentence == "logger=wandb needs wandb, which is not installed: pip install 'vcd[wandb]'"
