"""vcd VERB ...: one command for all verbs; `python -m vcd.VERB ...` is the same."""

import difflib
import importlib
import os
import sys

from vcd import help

SWEEP = "status|resume|cancel|collect DIR: look after a folder of runs."  # it has no yaml


def verbs() -> dict[str, str]:
    """Every verb and its line, in the order of work."""
    said = {path.stem: path.read_text().partition("\n")[0] for path in help.CONF.glob("*.yaml")}
    lines = {verb: line.removeprefix(f"# python -m vcd.{verb}").strip(" :") for verb, line in said.items()}
    first = [verb for verb in ("train", "sample", "control", "restore", "evaluate", "report") if verb in lines]
    return {verb: lines[verb] for verb in (*first, *sorted(lines.keys() - set(first)))} | {"sweep": SWEEP}


def page() -> str:
    """What `vcd --help` says."""
    width = max(map(len, verbs()))
    return "\n".join(
        [
            "vcd VERB [key=value ...]",
            "",
            *(f"  {verb:{width}}  {line}" for verb, line in verbs().items()),
            "",
            "vcd VERB --help lists the keys and groups of a verb. Completion in bash:",
            '  eval "$(vcd train --shell-completion install=bash)"',
        ]
    )


def main() -> None:
    """Hand over to the verb; without one, list them."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(page())
    elif name in ("-sc", "--shell-completion") and arguments == ["query=bash"]:
        _complete(os.environ.get("COMP_LINE", ""))
    elif name in verbs():
        _run(name, arguments)
    else:
        near = difflib.get_close_matches(name, verbs(), cutoff=0.5)
        meant = f" (did you mean {' or '.join(near)}?)" if near else ""
        sys.exit(f"error: there is no verb '{name}'{meant}; choose from: {', '.join(verbs())}")


def _run(verb: str, arguments: list[str]) -> None:
    sys.argv = ["vcd", *arguments]  # Hydra's completion is for the command of this name
    importlib.import_module(f"vcd.{verb}").main()


def _complete(line: str) -> None:
    """What Hydra's bash function asks for: the verbs that may be meant, or, after one, what Hydra knows of its keys."""
    _, verb, rest = (*line.split(maxsplit=2), "", "")[:3]
    if not rest and not (verb and line.endswith(" ")):
        print(" ".join(name for name in verbs() if name.startswith(verb)))
    elif verb in verbs() and verb != "sweep":
        os.environ["COMP_LINE"] = f"vcd {rest}"
        _run(verb, ["-sc", "query=bash"])


if __name__ == "__main__":
    main()
