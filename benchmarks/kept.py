"""A table that is written as it is measured: what is killed goes on behind its last row."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from measure import machine, show

TRIES = 2  # of a row that ended the process the first time: it may have been the time limit
UNFINISHED = 3  # the exit code of a step that stopped at its time limit


@final
class Kept:
    """Rows by key in a JSON file; `seconds`: no row begins after so many."""

    def __init__(self, title: str, out: Path, *, seconds: float = float("inf")):
        self.out, self.ends = out, time.monotonic() + seconds
        found = json.loads(out.read_text()) if out.exists() else {"rows": []}
        self.table = {"title": title, "machine": machine(), "finished": False, "rows": found["rows"]}

    def measure(self, key: dict[str, Any], call: Callable[[], dict[str, Any]]) -> None:
        """`key` and what `call` returns, as one row; an exception is the row's `error`. Done before: nothing happens.

        Exits with UNFINISHED where time is up.
        """
        row = next((row for row in self.table["rows"] if key.items() <= row.items()), None)
        if row is not None and row.get("tries", TRIES) >= TRIES:
            return
        if time.monotonic() > self.ends:
            print("time is up: the same command goes on here", flush=True)
            sys.exit(UNFINISHED)
        if row is None:
            self.table["rows"].append(row := dict(key))
        row |= {"tries": row.get("tries", 0) + 1, "error": "it ended the process"}
        self.save()
        try:
            found = call()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        for name in ("tries", "error"):
            del row[name]
        row |= found
        self.save()
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)

    def save(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(self.table, indent=1) + "\n")
        part.replace(self.out)

    def finish(self) -> list[dict[str, Any]]:
        """Mark the table as whole, print it, and return its rows."""
        self.table["finished"] = True
        self.save()
        show(self.table["title"], self.table["rows"])
        return self.table["rows"]
