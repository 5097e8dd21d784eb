"""README and docs: every block of Python runs, as it stands, on a small run."""

import re
import warnings

import pytest

from vcd.cli import CONF

ROOT = CONF.parent
PAGES = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```python\n" in path.read_text()
]
FOR_THE_TEST = {'"runs/.../last.ckpt"': "{ckpt!r}", "max_steps=1000": "max_steps=2"}  # what a page leaves to its reader


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_api_has_a_page_and_the_readme_an_example():
    assert {"README.md", "python.md"} <= {path.name for path in PAGES}
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_python_runs(page, trained, tmp_path, monkeypatch):
    """One after the other, in one namespace, as they are read."""
    monkeypatch.chdir(tmp_path)
    known: dict = {"__name__": "page"}
    for block in blocks(page.read_text()):
        for said, meant in FOR_THE_TEST.items():
            block = block.replace(said, meant.format(ckpt=str(trained.last)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(block, page.name, "exec"), known)
