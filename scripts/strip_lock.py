"""Take every registry address out of a Pipfile.lock: the lock pins versions and hashes, the machine chooses the index."""

import json
import sys
from pathlib import Path


def stripped(text: str) -> str:
    """The same lock with `_meta.sources` empty (pipenv fails without the key) and no package bound to an index."""
    lock = json.loads(text)
    lock["_meta"]["sources"] = []
    for name, packages in lock.items():
        if name != "_meta":
            for package in packages.values():
                package.pop("index", None)
    return json.dumps(lock, indent=4, separators=(",", ": "), sort_keys=True) + "\n"


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "Pipfile.lock")
    text = stripped(path.read_text())
    if "://" in text:
        sys.exit(f"error: {path} still holds an address: a package is locked by URL")
    path.write_text(text)
