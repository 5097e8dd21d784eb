"""From the command line to a config, and from an error to one sentence: shared by every `python -m vcd.<verb>`."""

import difflib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from vcd.errors import UserError

_HERE = Path(__file__).resolve().parent
CONF = next((p for p in (_HERE.parent / "conf", _HERE / "conf") if p.is_dir()), _HERE.parent / "conf")


def entry(config_name: str) -> Callable:
    """`hydra.main` on the project's conf/, with one-sentence errors and a non-zero exit.

    Unknown keys and options name the nearest ones. Set `VCD_TRACEBACK=1` to see where an error came from.
    """

    def decorate(task: Callable) -> Callable:
        failures: list[tuple[str, str]] = []  # (job, sentence), of jobs in this process

        @functools.wraps(task)
        def job(cfg):
            try:
                return task(cfg)
            except Exception as error:
                if os.environ.get("VCD_TRACEBACK") or not _here():
                    raise
                if (sentence := explain(error, config_name)) is None:
                    traceback.print_exc()
                    sentence = f"{type(error).__name__}: {error}".splitlines()[0] + " (this is a bug)"
                failures.append((" ".join(_overrides()) or config_name, sentence))

        def main() -> None:
            import hydra

            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing
            try:
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
            except Exception as error:
                if os.environ.get("VCD_TRACEBACK") or (sentence := explain(error, config_name)) is None:
                    raise
                failures.append((config_name, sentence))
            for name, sentence in failures:
                print(f"error: {sentence}" if len(failures) == 1 else f"error in {name}: {sentence}", file=sys.stderr)
            sys.exit(1 if failures else 0)

        return main

    return decorate


def _here() -> bool:
    """Whether jobs run in this process, one after the other: then a failed one must not stop the rest of a sweep."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().launcher._target_.endswith(".BasicLauncher")


def _overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def explain(error: BaseException, config_name: str) -> str | None:
    """The sentence for a user's mistake; None for a bug, which deserves its traceback."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    text = "\n".join(str(link) for link in chain)
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = match.group(1) or match.group(2)
        return (
            f"there is no key '{key}'{_did_you_mean(key.split('@')[0], _keys(config_name))}; --cfg job shows all keys"
        )
    if match := re.search(r"(?:Could not find|Cannot find primary config|In '[^']+': Could not find) '([^']+)'", text):
        group, _, option = match.group(1).rpartition("/")
        options = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        if options:
            return f"'{option}' is no {group}{_did_you_mean(option, options)}; choose from: {', '.join(options)}"
    if any(isinstance(link, HydraException | OmegaConfBaseException) for link in chain):
        return " ".join(str(chain[0]).split())
    return None


def _did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if not near:  # right leaf, wrong branch
        leaf = word.rsplit(".", 1)[-1]
        near = [k for k in known if difflib.get_close_matches(leaf, [k.rsplit(".", 1)[-1]], cutoff=0.7)][:3]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _keys(config_name: str) -> list[str]:
    """Every dotted key of the default config, and every group."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(config_name)

    def walk(node, prefix=""):
        for key in node:
            yield f"{prefix}{key}"
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                yield from walk(child, f"{prefix}{key}.")

    return sorted({*walk(cfg), *(p.name for p in CONF.iterdir() if p.is_dir())})
