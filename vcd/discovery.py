"""What is found by name: a module of one of vcd's packages, or a dotted path to the user's own."""

import pkgutil
from types import ModuleType
from typing import Any

from hydra.utils import get_object

from vcd.errors import UserError


def names(package: ModuleType) -> list[str]:
    """What a plain name can mean: the modules of the package."""
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def find(name: str, package: ModuleType, key: str) -> Any:
    """The module `name` of the package, or the module or function at a dotted path such as mine.fan.

    UserError, which names `key`, for what is not there.
    """
    if "." in name:
        try:
            return get_object(name)
        except Exception as error:  # whatever the user's module raises
            raise UserError(f"{key}={name} cannot be imported ({_first_cause(error)})") from error
    if name not in names(package):
        raise UserError(f"{key}={name} is not one of {', '.join(names(package))}; one of your own is a dotted path, such "
                        f"as {key}=mine.{name}")  # fmt: skip
    return get_object(f"{package.__name__}.{name}")


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0]
