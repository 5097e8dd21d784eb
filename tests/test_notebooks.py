"""notebooks/: stored without outputs, and every one runs from top to bottom on a checkpoint and shows its pictures."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from vcd.cli import CONF

FOLDER = CONF.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(outputs: list[nbformat.NotebookNode]) -> list[str]:
    """The kinds of everything that `outputs` show."""
    return [kind for output in outputs for kind in output.get("data", {})]


def execute(path: Path, ipython: Path, **environment: str) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in its own folder; CellExecutionError shows the cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(path.parent)}})
    home = {"PYTHONPATH": str(CONF.parent), "IPYTHONDIR": str(ipython)}  # nobody's own start-up files
    return client.execute(env={**os.environ, **home, **environment})


def test_there_are_five():
    assert len(NOTEBOOKS) == 5


@every_notebook
def test_stored_without_outputs(path):
    assert path.stat().st_size < 200_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for i, cell in enumerate(code(notebook)):
        assert cell.outputs == [] and cell.execution_count is None
        compile(cell.source, f"{path.name}, code cell {i}", "exec")
    kinds = [cell.cell_type for cell in notebook.cells]
    assert ("code", "code") not in list(zip(kinds, kinds[1:], strict=False)), "every cell has its sentence"


@every_notebook
def test_uses_the_python_api_alone(path):
    """The names of `vcd`, and those that have a place on the API pages."""
    pages = "".join(page.read_text() for page in (CONF.parent / "docs" / "api").glob("*.md"))
    public = set(re.findall(r"^::: (vcd\S+)", pages, re.MULTILINE))
    for cell in code(nbformat.read(path, as_version=4)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vcd"):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                assert all(any(f"{one}.".startswith(f"{name}.") for one in public) for name in names), names - public
        assert "plt." not in cell.source, "plots look as vcd.style has it"


@pytest.mark.long
@every_notebook
def test_runs_and_shows_pictures(path, trained, tmp_path):
    runs = trained.last.parent.parent
    before = sorted(runs.rglob("*"))
    notebook = execute(path, tmp_path, VCD_CKPT=str(trained.last), VCD_RUNS=str(runs))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "image/png" in shown(outputs)
    assert sorted(runs.rglob("*")) == before, "a notebook leaves the runs as they are"
    if path.stem == "03_latent_exchange":
        assert WIDGET in shown(outputs)
        views = [w.state.outputs for w in notebook.metadata.widgets[STATE].state.values() if w.state.get("outputs")]
        assert ["image/png" in shown(view) for view in views] == [True], "the sliders have drawn one picture"


@pytest.mark.long
@pytest.mark.parametrize("name", ["01_unconditional", "05_ablation"])
def test_without_a_run_it_says_how_to_get_one(name, tmp_path):
    """In a copy of the folder, beside which there is no runs/."""
    (tmp_path / "notebooks").mkdir()
    copy = tmp_path / "notebooks" / f"{name}.ipynb"
    copy.write_text((FOLDER / copy.name).read_text())
    with pytest.raises(CellExecutionError, match=r"UserError.*: no (checkpoint|run) in .*/runs: `.*` makes"):
        execute(copy, tmp_path, VCD_CKPT="", VCD_RUNS="")
