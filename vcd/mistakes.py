"""The sentence for a user's mistake: what was wrong, and what was perhaps meant."""

import difflib
import re
import sys
from collections.abc import Iterator
from typing import Any

from vcd import help
from vcd.errors import UserError

OPTIONS = {"prediction=residual": "eps", "degradation=heat": "blur_ihd", "injection=start": "input"}  # old: new
KEYS = {"perturbation.delta": "sampler.delta", "perturbation.most": "perturbation.longest", "dataset.kernel": "kernel",
        "dataset.heat": "ihd"}  # fmt: skip
EXTRAS = {"wandb": "logger=wandb", "submitit": "launcher=slurm", "optuna": "sweep=optuna"}  # package: who needs it
BROUGHT = {"hydra/launcher/submitit_slurm": "submitit", "hydra/sweeper/optuna": "optuna"}  # option: the package with it
MEMORY = re.compile(r"(out of memory|can't allocate memory|not enough memory|Unable to allocate)[^\n]*", re.IGNORECASE)


def explain(error: BaseException | None, config_name: str) -> str | None:
    """One sentence; None for a bug, which deserves its traceback."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
        if isinstance(link, MissingConfigException) and link.missing_cfg_file and link.options:
            return _no_option(link.missing_cfg_file, list(link.options))
        if isinstance(link, ModuleNotFoundError) and (package := (link.name or "").partition(".")[0]) in EXTRAS:
            return _missing(package)
        if isinstance(link, InterpolationKeyError):
            return f"{link.full_key or 'a value'} refers to a key that is not there: {str(link).splitlines()[0]}"
    text = "\n".join(str(link) for link in chain)
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        return _no_key(match[1] or match[2], config_name)
    if any(isinstance(link, MemoryError) for link in chain) or (match := MEMORY.search(text)):
        return f"this does not fit into memory ({match[0] if match else 'MemoryError'}): take a smaller batch_size, T or network"
    if "Config group override must be a string or a list" in text:
        return _no_name(sys.argv[1:])
    for link in chain:
        if isinstance(link, OSError) and not isinstance(link, HydraException) and link.filename is not None:
            return f"{link.filename} cannot be read or written ({link.strerror})"
    if any(isinstance(link, HydraException | OmegaConfBaseException) for link in chain):
        return " ".join(str(chain[0]).split())
    return None


def _no_option(path: str, options: list[str]) -> str:
    group, _, option = path.partition("/")
    if new := OPTIONS.get(f"{group}={option}"):
        return f"{group}={option} is now called {new}: {group}={new}"
    if path in BROUGHT:
        return _missing(BROUGHT[path])
    offered = [name for name in options if not help.part(name)]
    near = difflib.get_close_matches(option, offered, n=3, cutoff=0.5)
    return f"'{option}' is not a choice of {group}{_meant(near)}; choose from: {', '.join(offered)}"


def _no_name(overrides: list[str]) -> str:
    """Of the first of them that gives a group something else than the name of an option."""
    for group, _, option in (override.lstrip("+").partition("=") for override in overrides):
        offered = help.options(group) if group else []
        if offered and option not in offered:
            return f"{group}={option}: the option of a group is a name; choose from: {', '.join(offered)}"
    return "the option of a group is a name, such as model=vcd"


def _missing(package: str) -> str:
    who = EXTRAS[package]
    return f"{who} needs {package}, which is not installed: pip install 'vcd[{who.partition('=')[2]}]'"


def _no_key(key: str, config_name: str) -> str:
    key = key.partition("@")[0]
    for old, new in KEYS.items():
        if f"{key}.".startswith(f"{old}."):
            return f"{key} is now called {new}{key.removeprefix(old)}"
    keys, own, trained = ({name for name, _, _ in lines} for lines in (*help.read(config_name), help.read("train")[1]))
    group = key.partition(".")[0]
    if "ckpt" in keys and group in trained - own:
        return (
            f"{group} was chosen when the checkpoint was trained, and its weights depend on it: train another one with "
            f"python -m vcd.train {group}=..., or swap one of {', '.join(sorted(own))}"
        )
    return f"there is no key '{key}'{_meant(near(key, _keys(config_name)))}; --cfg job shows all keys"


def _meant(near: list[str]) -> str:
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def near(word: str, known: list[str]) -> list[str]:
    """The keys that were perhaps meant, at most three: in another branch, misspelt, or both."""
    leaf = word.rpartition(".")[2]
    same = sorted((key for key in known if key.rpartition(".")[2] == leaf), key=lambda key: key.count("."))
    alike = [key for key in known if difflib.get_close_matches(leaf, [key.rpartition(".")[2]], cutoff=0.7)]
    return (same or difflib.get_close_matches(word, known, n=3, cutoff=0.5) or alike)[:3]


def _keys(config_name: str) -> list[str]:
    """Every dotted key of the default config, and every group of the command."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(help.CONF), version_base="1.3"):
        plain: Any = OmegaConf.to_container(compose(config_name), resolve=False)

    def walk(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for key, child in node.items():
            yield f"{prefix}{key}"
            if isinstance(child, dict):
                yield from walk(child, f"{prefix}{key}.")

    _, groups = help.read(config_name)
    return sorted({*walk(plain), *(group for group, _, _ in groups)})
