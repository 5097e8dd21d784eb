"""What mkdocs.yml needs besides: pages are written for the repository, and the site shows them with all links between them intact.

README.md is the home page. Other pages and pictures that lie outside docs/ join the site; a link to a file that is not
in it, such as a script, becomes its name. And algorithm boxes in docstrings stay boxes.
"""

import os
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "RESULTS.md": "results.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PICTURES = "benchmarks/results/*.png"
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<to>[^()\s#]+)(?P<anchor>#[^()\s]*)?\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def place(path: Path) -> str | None:
    """Where a file of the repository is in the site; None where it is not."""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
    if name in PAGES:
        return PAGES[name]
    if path.match(PICTURES) or name.startswith("docs/"):
        return name.removeprefix("docs/")
    return None


def home(page: str) -> Path:
    """The file of the repository that a page of the site is."""
    return ROOT / next((name for name, there in PAGES.items() if there == page), f"docs/{page}")


def linked(markdown: str, page: str) -> str:
    """The text of a page with its links as the site needs them."""

    def link(found: re.Match) -> str:
        to = found["to"]
        if re.match(r"[a-z]+:", to):
            return found[0]
        there = place(path := Path(os.path.normpath(home(page).parent / to)))
        if there is None and path.exists():
            return found["text"]
        relative = os.path.relpath(there or to, os.path.dirname(page) or ".")
        return f"{found['image']}[{found['text']}]({relative}{found['anchor'] or ''})"

    parts, end = [], 0
    for code in CODE.finditer(markdown):  # what looks like a link in code is none
        parts += [LINK.sub(link, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(link, markdown[end:])])


def on_files(files: Files, config: Any) -> Files:
    for path in [*(ROOT / name for name in PAGES), *sorted(ROOT.glob(PICTURES))]:
        files.append(File.generated(config, place(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    return linked(markdown, page.file.src_uri)


class Boxes(griffe.Extension):
    """Two columns of a docstring, and what is indented in it, are shown as they are written."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        if isinstance(obj, griffe.Object) and obj.docstring:
            obj.docstring.value = boxed(obj.docstring.value)


def boxed(docstring: str) -> str:
    """Paragraphs in columns, or indented by two, as blocks of code."""

    def box(paragraph: str) -> str:
        lines = paragraph.split("\n")
        if any(re.search(r"\S {3,}\S", line) for line in lines) or all(line.startswith("  ") for line in lines):
            return "\n".join(f"    {line}" for line in lines)
        return paragraph

    text, examples, rest = docstring.partition("Examples:\n")
    return "\n\n".join(map(box, text.split("\n\n"))) + examples + rest
