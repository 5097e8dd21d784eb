"""Timing that can be trusted: every figure is compared within one run, interleaved, as medians over repeats."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def arguments(what: str, *, repeats: int) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds; every row is a median over them")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="the table as JSON, with machine and versions")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def seconds(call: Callable[[], Any], device: str = "cpu", now: Callable[[], float] = time.perf_counter) -> float:
    """Of one call, whatever it has queued on the device included, by a clock."""
    began = now()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return now() - began


def interleaved(
    calls: dict[str, Callable[[], Any]],
    repeats: int,
    device: str = "cpu",
    warmup: int = 1,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call, A B A B ..., so that what else the machine does hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warmup + repeats):
        for name, call in calls.items():
            took = seconds(call, device, now)
            if i >= warmup:
                taken[name].append(took)
    return taken


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times as fast: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = f"{names[0]}, {len(names)} cores" if names else name
    facts = {"cpu": name, "capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
             "python": platform.python_version(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}  # fmt: skip
    if os.environ.get("VCD_REHEARSAL"):  # set by gpu.py
        return facts | {"rehearsal": "yes"}
    return facts | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def report(title: str, rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Print the rows as a Markdown table, and write them, where asked, with the machine."""
    show(title, rows)
    save(title, rows, out)


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a Markdown table, with the machine."""
    print(
        f"\n{title}; {', '.join(f'{key} {value}' for key, value in machine().items())}\n\n{markdown(rows)}", flush=True
    )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table; a column for every key of any row."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = [heads, ["---"] * len(heads), *([_cell(row.get(head)) for head in heads] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def save(title: str, rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Write the rows as JSON, with the machine, where asked."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"title": title, "machine": machine(), "rows": list(rows)}, indent=1) + "\n")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")
