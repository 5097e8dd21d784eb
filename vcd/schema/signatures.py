"""The settings of a config's parts are held to the signatures of the classes and functions that they are passed to."""

import inspect
import json
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from vcd.errors import UserError
from vcd.schema.config import written


def check_parts(cfg: DictConfig) -> None:
    """UserError where a value is not of the type that its part takes: ranges are what the parts see to themselves.

    This imports all parts. Interpolations are checked where their value is set.
    """
    wrong: list[str] = []
    for key, node in _parts(OmegaConf.to_container(cfg, resolve=False)):
        hints = _hints(node["_target_"])
        for name, value in node.items():
            text = json.dumps(value)
            if name in hints and "${" not in text and "_target_" not in text:
                try:
                    hints[name].validate_json(text, strict=True)
                except ValidationError as error:
                    said = {one["type"]: one["msg"] for one in error.errors(include_url=False)}
                    must = said.get("float_type") or next(iter(said.values()))  # of int | float that it is a number
                    wrong.append(f"{key}.{name}={written(value)}: {must.replace('Input should', 'it must')}")
    if wrong:
        raise UserError("; ".join(wrong))


def _parts(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node that says what it builds, with its dotted key."""
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield key, node
        for name, child in node.items():
            yield from _parts(child, f"{key}.{name}" if key else str(name))


@cache
def _hints(target: str) -> dict[str, TypeAdapter]:
    """The parameters of a class or function whose types are known."""
    try:
        found: Any = pkgutil.resolve_name(target)
    except Exception as error:  # whatever the user's own module raises
        raise UserError(
            f"{target} cannot be imported ({str(error).splitlines()[0]}): is its folder on PYTHONPATH?"
        ) from error
    try:
        parameters = inspect.signature(found, eval_str=True).parameters.values()
    except (NameError, TypeError, ValueError):  # names that are only there for type checkers
        return {}
    adapters = {}
    for parameter in parameters:
        if parameter.annotation is inspect.Parameter.empty:  # a part of the user's own, without types
            continue
        try:
            adapters[parameter.name] = TypeAdapter(
                parameter.annotation, config=ConfigDict(arbitrary_types_allowed=True)
            )
        except (PydanticUserError, TypeError):  # a type that pydantic does not know
            continue
    return adapters
