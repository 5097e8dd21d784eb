"""What --help says of a command: its keys and groups, in the words of its yaml's own comments."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml
from omegaconf import OmegaConf

Line = tuple[str, str, str]  # key, value, comment
_HERE = Path(__file__).resolve().parent
CONF = next((p for p in (_HERE.parent / "conf", _HERE / "conf") if p.is_dir()), _HERE.parent / "conf")
HIDDEN = "_"  # begins the names of options, and of folders of them, that are only parts of others


def register_resolver(conf: Path) -> None:
    """Make `${help:VERB}` known."""
    OmegaConf.register_new_resolver("help", lambda verb: page(conf, verb).replace("$", "$$"), replace=True)


def page(conf: Path, verb: str) -> str:
    """The help of `python -m vcd.<verb>`."""
    text = (conf / f"{verb}.yaml").read_text()
    keys, groups = read(text)
    parts = [text.splitlines()[0].removeprefix("# "), "", "Keys (key=value):", *map(_column, keys)]
    if groups:
        parts += ["", "Groups (group=option):"]
    for group in groups:
        if listed := options(group[0]):
            parts.append(_column(group))
            parts += textwrap.wrap(", ".join(listed), 112, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(parts)


def read(text: str) -> tuple[list[Line], list[Line]]:
    """The keys and the groups of a command, from its yaml."""
    keys: list[Line] = []
    groups: list[Line] = []
    for key, value in yaml.compose(text, yaml.SafeLoader).value:
        if key.value == "defaults":
            for item in (item for item in value.value if isinstance(item, yaml.MappingNode)):
                groups += [line for line in _lines(text, item) if " " not in line[0]]  # not "override hydra/..."
        elif key.value != "hydra":
            keys += _lines(text, yaml.MappingNode("", [(key, value)]))
    return keys, groups


def options(group: str) -> list[str]:
    """What can be chosen of a group, that of --config-dir included; in folders within it too."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    inside = [f"{folder}/{name}" for folder in loader.list_groups(group) for name in options(f"{group}/{folder}")]
    return [name for name in (*sorted(loader.get_group_options(group)), *inside) if not name.startswith(HIDDEN)]


def _lines(text: str, node: yaml.MappingNode, prefix: str = "") -> Iterator[Line]:
    """Every key below a node, dotted, but for those of Hydra, which begin with an underscore."""
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _lines(text, value, f"{prefix}{key.value}.")
        elif not key.value.startswith("_"):
            rest = text[value.end_mark.index :].partition("\n")[0]
            yield prefix + key.value, text[value.start_mark.index : value.end_mark.index], rest.partition("# ")[2]


def _column(line: Line) -> str:
    key, value, said = line
    return f"  {f'{key}={value}':32}  {said}".rstrip()
