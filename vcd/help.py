"""What --help says of a command: its keys and groups, in the words of its yaml's own comments."""

import argparse
import itertools
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

Line = tuple[str, str, str]  # key, value, comment
_HERE = Path(__file__).resolve().parent
CONF = next((p for p in (_HERE.parent / "conf", _HERE / "conf") if p.is_dir()), _HERE.parent / "conf")
END = "Keys of groups are set as key.sub=value; --cfg job shows them all, --multirun sweeps over values between commas."
HIDDEN = "_"  # begins the names of options, and of folders of them, that are only parts of others


def asked(arguments: list[str]) -> bool:
    """Whether a command line asks for it."""
    return bool({"--help", "-h"} & set(arguments))


def called(verb: str) -> str:
    """The verb as it was called: `vcd train` or `python -m vcd.train`."""
    return f"vcd {verb}" if Path(sys.argv[0]).name in ("vcd", "vcd.exe") else f"python -m vcd.{verb}"


def page(verb: str, arguments: list[str]) -> str:
    """The help of a verb. (Hydra's own lists the groups of all commands, and takes its time.)"""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    own = parser.parse_known_args(arguments)[0].config_dir
    text = (CONF / f"{verb}.yaml").read_text()
    keys, groups = read(verb)
    about = text.splitlines()[0].removeprefix(f"# python -m vcd.{verb}")
    parts = [called(verb) + about, "", "Keys (key=value):", *map(_column, keys)]
    if groups:
        parts += ["", "Groups (group=option):"]
    for group in groups:
        if listed := options(group[0], own):
            parts.append(_column(group))
            parts += textwrap.wrap(", ".join(listed), 112, initial_indent="      ", subsequent_indent="      ")
    return "\n".join([*parts, "", END])


def read(verb: str) -> tuple[list[Line], list[Line]]:
    """The keys and the groups of a command, from its yaml."""
    text = (CONF / f"{verb}.yaml").read_text()
    keys: list[Line] = []
    groups: list[Line] = []
    for key, value in yaml.compose(text, yaml.SafeLoader).value:
        if key.value == "defaults":
            for item in (item for item in value.value if isinstance(item, yaml.MappingNode)):
                groups += [line for line in _lines(text, item) if " " not in line[0]]  # not "override hydra/..."
        elif key.value != "hydra":
            keys += _lines(text, yaml.MappingNode("", [(key, value)]))
    return [key for key in keys if key[0] not in {group for group, _, _ in groups}], groups


def options(group: str, own: Path | None = None) -> list[str]:
    """What can be chosen of a group, also in folders within it, and in those of one's own."""
    found = {
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in (CONF, own)
        if folder is not None
        for path in (folder / group).rglob("*.yaml")
    }
    return sorted((name for name in found if not part(name)), key=lambda name: ("/" in name, name))


def part(option: str) -> bool:
    """Whether an option is only a part of others."""
    return any(name.startswith(HIDDEN) for name in option.split("/"))


def _lines(text: str, node: yaml.MappingNode, prefix: str = "") -> Iterator[Line]:
    """Every key below a node, dotted, but for those of Hydra, which begin with an underscore."""
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _lines(text, value, f"{prefix}{key.value}.")
        elif not key.value.startswith("_"):
            yield (
                prefix + key.value,
                text[value.start_mark.index : value.end_mark.index],
                _comment(text, value.end_mark),
            )


def _comment(text: str, after: yaml.Mark) -> str:
    """What stands behind a value, and below it in the same column."""
    first, *below = text.splitlines()[after.line :]
    column = first.find("# ", after.column)
    if column < 0:
        return ""
    goes_on = itertools.takewhile(lambda line: line[: column + 2] == " " * column + "# ", below)
    return " ".join(line[column + 2 :] for line in (first, *goes_on))


def _column(line: Line) -> str:
    key, value, said = line
    return f"  {f'{key}={value}':32}  {said}".rstrip()
