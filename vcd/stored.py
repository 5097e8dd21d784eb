"""What stored configs are made into. A checkpoint may come from anybody: it can name parts of models, and nothing else.

A node is a dict with a `_target_`. What may stand at a place is what the constructor's annotation says: a class of vcd
that subclasses the one it names; for `Callable[..., Part]`, a partial of such a class or of a known function. All nodes
are checked before anything is made, and no interpolation is evaluated.
"""

import inspect
import pkgutil
import re
import types
import typing
from abc import ABCMeta
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vcd.errors import UserError

FUNCTIONS = ("vcd.schedules", "vcd.starts")  # modules whose functions may be named
NETWORKS = "vcd.networks."  # where torch's Module is asked for, which all parts are

Make = Callable[[], Any]


def literal(config: dict[str, Any]) -> DictConfig:
    """The config to read from, in which "${...}" is text."""
    return OmegaConf.create(_escaped(config))


def _escaped(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _escaped(child) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [_escaped(child) for child in node]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", node) if isinstance(node, str) else node


def targets(node: Any) -> set[str]:
    """Everything that a config names."""
    children = list(node.values()) if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else []
    named = {node["_target_"]} if isinstance(node, Mapping) and isinstance(node.get("_target_"), str) else set()
    return named.union(*map(targets, children))


class Reader:
    """Makes what a stored config names. `where` begins its errors.

    trust: modules that the config may name as well, by their dotted names, and what is in them.
    """

    def __init__(self, where: str, trust: Collection[str] = ()):
        self.where, self.trust = where, tuple(trust)

    def make(self, node: Any, hint: Any, place: str) -> Any:
        """The value of a place. UserError where it may not stand there, or cannot be made."""
        make = self.plan(node, hint, place)
        try:
            return make()
        except UserError:
            raise
        except Exception as error:
            self._refuse(f"{place} does not fit this version of vcd ({type(error).__name__}: {error})".splitlines()[0])

    def plan(self, node: Any, hint: Any, place: str) -> Make:
        """A function that makes the value of a place. UserError where it may not stand there; nothing is made yet."""
        if isinstance(node, list | tuple):
            items = [self.plan(child, _inside(hint, Sequence), f"{place}[{i}]") for i, child in enumerate(node)]
            return lambda: [item() for item in items]
        if not isinstance(node, dict):
            return lambda: node
        special = {key for key in node if isinstance(key, str) and re.fullmatch("_.*_", key)}
        if special - {"_target_", "_partial_"}:
            self._refuse(f"{place} has a key {min(special)}, which configs of vcd do not have")
        if "_target_" not in node:
            children = {key: self.plan(child, _inside(hint, Mapping), f"{place}.{key}") for key, child in node.items()}
            return lambda: {key: child() for key, child in children.items()}
        is_partial = node.get("_partial_", False) is True
        target = self._admitted(node["_target_"], hint, is_partial, place)
        hints = _parameters(target)
        unknown = (
            Any if self._trusted(node["_target_"]) else None
        )  # what no constructor of vcd takes is no place for nodes
        arguments = {
            key: self.plan(child, hints.get(key, unknown), f"{place}.{key}")
            for key, child in node.items()
            if key not in special
        }

        def make() -> Any:
            values = {key: argument() for key, argument in arguments.items()}
            return partial(target, **values) if is_partial else target(**values)

        return make

    def _admitted(self, name: Any, hint: Any, is_partial: bool, place: str) -> Callable:
        """The class or function of this name, if it may stand at `place`. No module is imported before that is trusted."""
        options = self._options(hint)
        if not options or not isinstance(name, str):
            self._refuse(f"{place} names {name}, but only a value may stand there")
        trusted = self._trusted(name)
        if not trusted and not name.startswith("vcd."):
            self._refuse(f"{place} is {name}, which is not part of vcd, and to make it is to run its code; "
                         f"if you trust it: trust=[{name.partition('.')[0]}]")  # fmt: skip
        found = self._found(name, place)
        if trusted and not isinstance(found, type):
            return found
        is_ours = trusted or str(getattr(found, "__module__", "")).startswith("vcd.")  # vcd.runs.os.system is not
        if not is_ours or not any(_fits(found, option, is_partial, trusted) for option in options):
            self._refuse(f"{place} is {name}, but only {' or '.join(map(_words, options))} may stand there")
        return found

    def _options(self, hint: Any) -> list[Any]:
        """What a hint admits besides values: classes of parts, and functions that make them; Any, where it does not say."""
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            return [option for child in typing.get_args(hint) for option in self._options(child)]
        is_part = isinstance(hint, type) and (
            self._trusted(f"{hint.__module__}.{hint.__qualname__}") or hint.__module__.startswith("vcd.")
        )
        return [hint] if hint in (Any, nn.Module) or is_part or typing.get_origin(hint) is Callable else []

    def _trusted(self, name: str) -> bool:
        return f"{name}.".startswith(tuple(f"{module}." for module in self.trust))

    def _found(self, name: str, place: str) -> Any:
        try:
            return pkgutil.resolve_name(name)
        except ModuleNotFoundError as error:
            missing = error.name if error.name and f"{name}.".startswith(f"{error.name}.") else None
            if missing and not name.startswith("vcd."):
                self._refuse(
                    f"{place} is {name}, and there is no module {missing}: name the folder that holds it in PYTHONPATH"
                )
            self._refuse(f"{place} is {name}, which cannot be imported: {error}")
        except Exception as error:  # whatever a module does when it is imported
            self._refuse(f"{place} is {name}, which cannot be imported: {error}")

    def _refuse(self, why: str) -> typing.NoReturn:
        raise UserError(f"{self.where}: {why}")


def _fits(found: Any, option: Any, is_partial: bool, trusted: bool) -> bool:
    """Whether a class or function may stand where the option is admitted."""
    is_law = isinstance(found, types.FunctionType) and found.__module__ in FUNCTIONS
    if option is Any:
        return isinstance(found, ABCMeta) or (is_law and is_partial)
    if typing.get_origin(option) is Callable:
        made = typing.get_args(option)[1]
        if is_law:
            found = typing.get_type_hints(found).get("return")
        both = isinstance(made, type) and isinstance(found, type)
        return is_partial and both and (issubclass(found, made) or (is_law and made is Tensor))
    if is_partial or not isinstance(found, type) or not issubclass(found, option):
        return False
    return option is not nn.Module or trusted or found.__module__.startswith(NETWORKS)


def _inside(hint: Any, container: type) -> Any:
    """The hint of what a container holds; None, which admits values alone, where `hint` is not of this kind."""
    for option in typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]:
        origin = typing.get_origin(option) or option
        if origin is Any or (isinstance(origin, type) and issubclass(origin, container)):
            return (typing.get_args(option) or (Any,))[-1]
    return None


def _parameters(target: Callable) -> Mapping[str, Any]:
    """The hints of a function's keywords, or of a constructor's with those that it hands on (`**parts`) to its bases."""
    mro = inspect.getmro(target) if isinstance(target, type) else ()
    functions = [vars(c)["__init__"] for c in mro if "__init__" in vars(c)] or [target]
    found: dict[str, Any] = {}
    for function in functions:
        parameters = list(inspect.signature(function).parameters.values())
        try:
            hints = typing.get_type_hints(function)
        except NameError:  # imported for type checkers alone
            hints = {}
        named = [p.name for p in parameters[bool(mro) :] if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        found = {name: hints.get(name, Any) for name in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _words(option: Any) -> str:
    if typing.get_origin(option) is Callable:
        made = typing.get_args(option)[1]
        return f"what makes a {made.__name__}" if isinstance(made, type) and made is not Tensor else "a function of vcd"
    return "a part of a model" if option is Any else f"a subclass of {option.__name__}"
