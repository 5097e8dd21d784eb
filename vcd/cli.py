"""From the command line to a config, and from an error to one sentence: shared by every `python -m vcd.<verb>`."""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from omegaconf import ListConfig, OmegaConf

from vcd import help, threads
from vcd.errors import UserError
from vcd.help import CONF
from vcd.mistakes import explain

__all__ = ["CONF", "entry", "explain", "listed"]


def entry(config_name: str, *, checks_parts: bool = True) -> Callable[[Callable], Callable[[], None]]:
    """`hydra.main` on the project's conf/, with one-sentence errors and a non-zero exit.

    The values of the config are checked before the task sees them. checks_parts: also whether they fit the signatures
    of the parts they are for, which imports these, and torch; False: the task does it when it is ready for that. Unknown keys and options name the nearest ones. Set
    `VCD_TRACEBACK=1` to see where an error came from.
    """

    def decorate(task: Callable) -> Callable[[], None]:
        failures: list[tuple[str, str]] = []  # (job, sentence), of jobs in this process

        @functools.wraps(task)
        def job(cfg: Any) -> Any:
            from vcd import schema

            try:
                _refuse_parts()
                _refuse_unused(config_name)
                schema.check(config_name, cfg)
                if cfg.get("threads"):
                    threads.take(cfg.threads)
                _check_device(cfg.get("device", "auto"))
                if checks_parts:
                    schema.check_parts(cfg)
                return task(cfg)
            except Exception as error:
                if os.environ.get("VCD_TRACEBACK") or not _here():
                    raise
                sentence = explain(error, config_name)
                if sentence is None and (deleted := [text for text in _overrides() if text.startswith("~")]):
                    sentence = f"{' '.join(deleted)}: it cannot be left out ({_first_line(error)})"
                if sentence is None:
                    traceback.print_exc()
                    sentence = f"{_first_line(error)} (this is a bug)"
                failures.append((" ".join(_overrides()) or config_name, sentence))

        def main() -> None:
            if help.asked(sys.argv[1:]):
                print(help.page(config_name, sys.argv[1:]))
                return
            import hydra

            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing
            failures.clear()
            register_launchers()
            try:
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
            except Exception as error:
                sentence = explain(error, config_name)
                if sentence is None and "omegaconf" in traceback.extract_tb(error.__traceback__)[-1].filename:
                    sentence = f"these arguments make no config ({_first_line(error)})"
                if os.environ.get("VCD_TRACEBACK") or sentence is None:
                    raise
                failures.append((config_name, sentence))
            for name, sentence in failures:
                print(f"error: {sentence}" if len(failures) == 1 else f"error in {name}: {sentence}", file=sys.stderr)
            sys.exit(1 if failures else 0)

        return main

    return decorate


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def register_launchers() -> None:
    """Tell Hydra of launcher=processes and launcher=slurm, which it finds only where it can list their folder.

    (In an editable installation it cannot.)
    """
    from hydra.core.plugins import Plugins

    from hydra_plugins.vcd_launchers.launchers import Local, Processes, Slurm

    for launcher in (Local, Processes, Slurm):
        Plugins.instance().register(launcher)


def _refuse_parts() -> None:
    """UserError where an option was chosen that is only a part of others."""
    from hydra.core.hydra_config import HydraConfig

    for group, option in HydraConfig.get().runtime.choices.items():
        if help.part(str(option)):
            raise UserError(f"{group}={option} is only a part of others; choose from: {', '.join(help.options(group))}")


def _refuse_unused(config_name: str) -> None:
    """UserError where a command that takes a degradation alone is told what only training asks of it."""
    given = {text.lstrip("+~").partition("=")[0].partition(".")[0] for text in _overrides()}
    for group in ("prediction", "sampler"):
        if config_name in ("degrade", "restore") and group in given:
            raise UserError(f"{group} is a choice of training, of which vcd.{config_name} makes no use: leave it out")


def _check_device(device: str) -> None:
    """UserError where torch cannot use it."""
    if device in ("auto", "cpu"):
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"device={device} cannot be used here ({why}): device=auto takes what there is") from error


def _here() -> bool:
    """Whether jobs run in this process, one after the other: then a failed one must not stop the rest of a sweep."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().launcher._target_.endswith((".BasicLauncher", ".Local"))


def _overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return OmegaConf.to_container(HydraConfig.get().overrides.task)  # type: ignore[return-value]


def listed(value: Any) -> list:
    """One thing, or several, as a list."""
    return list(value) if isinstance(value, list | ListConfig) else [value]
