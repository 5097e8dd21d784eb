"""What --help says of a command: its keys and groups, in the words of its yaml's own comments."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml
from omegaconf import OmegaConf

HIDDEN = "_"  # begins the names of options, and of folders of them, that are only parts of others


def register_resolver(conf: Path) -> None:
    """Make `${help:VERB}` known."""
    OmegaConf.register_new_resolver("help", lambda verb: page(conf, verb).replace("$", "$$"), replace=True)


def page(conf: Path, verb: str) -> str:
    """The help of `python -m vcd.<verb>`."""
    text = (conf / f"{verb}.yaml").read_text()
    keys, groups = [], []
    for key, value in yaml.compose(text, yaml.SafeLoader).value:
        if key.value == "defaults":
            for item in (item for item in value.value if isinstance(item, yaml.MappingNode)):
                groups += [line for line in _lines(text, item) if " " not in line[0]]  # "override hydra/..." is no group
        elif key.value != "hydra":
            keys += _lines(text, yaml.MappingNode("", [(key, value)]))
    parts = [text.splitlines()[0].removeprefix("# "), "", "Keys (key=value):", *_columns(keys)]
    if groups:
        parts += ["", "Groups (group=option):"]
    for group, default, said in groups:
        if listed := options(group):
            parts += _columns([(group, default, said)])
            parts += textwrap.wrap(", ".join(listed), 112, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(parts)


def options(group: str) -> list[str]:
    """What can be chosen of a group, that of --config-dir included; in folders within it too."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    inside = [f"{folder}/{name}" for folder in loader.list_groups(group) for name in options(f"{group}/{folder}")]
    every = [*sorted(name for name in loader.get_group_options(group)), *inside]
    return [name for name in every if not name.startswith(HIDDEN)]


def _lines(text: str, node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, value, comment) of every key below a node, but for those of Hydra, which begin with an underscore."""
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _lines(text, value, f"{prefix}{key.value}.")
        elif not key.value.startswith("_"):
            rest = text[value.end_mark.index :].partition("\n")[0]
            yield prefix + key.value, text[value.start_mark.index : value.end_mark.index], rest.partition("# ")[2]


def _columns(lines: list[tuple[str, str, str]]) -> list[str]:
    return [f"  {f'{key}={value}':32}  {said}".rstrip() for key, value, said in lines]
