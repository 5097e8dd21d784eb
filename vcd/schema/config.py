"""A config is held to the schema of its verb."""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from vcd import help
from vcd.errors import UserError
from vcd.schema.verbs import VERBS

TABLES = 4 * 2**30  # bytes that the matrices of a degradation, one for every level, may take


def check(verb: str, cfg: DictConfig) -> None:
    """UserError where values of the config of `python -m vcd.<verb>` are wrong: each key, its value, what it must be."""
    plain: dict = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    _check_keys(verb, plain)
    wrong = {}
    try:
        _adapter(verb).validate_python(plain)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            key = ".".join(map(str, one["loc"]))
            if one["type"] == "missing":  # no _target_
                group = key.rpartition(".")[0]
                wrong[key] = f"{group} has no option: choose one, such as {group}={help.options(group)[0]}"
            else:
                wrong[key] = f"{key}={written(one['input'])}: {one['msg'].replace('Input should', 'it must')}"
    said = tuple(f"{key}." for key in (*wrong, "hydra"))
    for key, value in _leaves(plain):  # of the keys that no schema names
        if _is_nan(value) and not f"{key}.".startswith(said):
            wrong[key] = f"{key}={written(value)}: it must be a number"
    if wrong:
        raise UserError("; ".join(wrong.values()))
    _check_tables(cfg)


def _check_keys(verb: str, plain: dict) -> None:
    """UserError where an experiment of another command has brought keys that this one does not know."""
    known = {other: keys.__annotations__.keys() & plain.keys() for other, keys in VERBS.items()}
    if foreign := set.union(*known.values()) - known[verb]:
        best = max(known, key=lambda other: len(known[other] & foreign))
        raise UserError(f"vcd.{verb} has no keys {', '.join(sorted(foreign))}: is the experiment one of vcd.{best}?")


@cache
def _adapter(verb: str) -> TypeAdapter:
    return TypeAdapter(VERBS[verb])


def _check_tables(cfg: DictConfig) -> None:
    try:
        T, size = OmegaConf.select(cfg, "T"), OmegaConf.select(cfg, "space.size")
    except OmegaConfBaseException:  # said where it is used
        return
    if isinstance(T, int) and isinstance(size, int) and 4 * (T + 1) * size**2 > TABLES:
        raise UserError(
            f"T={T}: matrices of {size}x{size} for so many levels do not fit into memory; "
            f"set T={TABLES // (4 * size**2) - 1} or less"
        )


def _leaves(node: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key; a list is one value."""
    for name, child in node.items():
        if isinstance(child, dict):
            yield from _leaves(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _is_nan(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_nan, value))
    return isinstance(value, float) and math.isnan(value)


def written(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
