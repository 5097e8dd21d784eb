"""python -m vcd.sweep status|resume|cancel|collect DIR: look after a folder of runs."""

import argparse
import sys
import time
from pathlib import Path

from vcd.errors import UserError
from vcd.help import called
from vcd.mistakes import explain

CODES = "exit codes: 0 all runs finished, 3 some are still queued or running, 1 some failed, were killed or cancelled"


def main() -> None:
    """Read the command line; print; exit with the code of the sweep's state."""
    parser = argparse.ArgumentParser(prog=called("sweep"), description="Look after a folder of runs.", epilog=CODES)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in {"status": "how every run is doing", "resume": "submit again what has ended unfinished",
                       "cancel": "end what is under way; it can be resumed", "collect": "write DIR/runs.csv"}.items():  # fmt: skip
        added = verbs.add_parser(verb, help=text, description=text, epilog=CODES)
        added.add_argument("DIR", type=Path, help="the folder of run folders: runs=DIR of vcd.train")
        if verb == "status":
            added.add_argument(
                "--watch", action="store_true", help="again every five seconds, until nothing is under way"
            )
    given = parser.parse_args()
    try:
        sys.exit(VERBS[given.verb](given))
    except UserError as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:  # of an extra
        if (sentence := explain(error, "sweep")) is None:
            raise
        sys.exit(f"error: {sentence}")


def status(given: argparse.Namespace) -> int:
    from vcd.sweeps import rows, table

    while True:
        found = rows.read(given.DIR)
        if given.watch and sys.stdout.isatty():
            print("\033[H\033[J", end="")
        print(table.text(found), flush=True)
        if not given.watch or not any(row.state in rows.UNDER_WAY for row in found):
            return rows.code(found)
        time.sleep(5)


def resume(given: argparse.Namespace) -> int:
    from vcd.sweeps import rows, slurm

    if not slurm.resubmit(given.DIR, rows.read(given.DIR)):
        print("nothing to resume: all runs are finished or under way")
    return 0


def cancel(given: argparse.Namespace) -> int:
    from vcd.sweeps import rows

    ended = rows.cancel(rows.read(given.DIR))
    print(f"{len(ended)} runs cancelled; go on with them: python -m vcd.sweep resume {given.DIR}")
    return 0


def collect(given: argparse.Namespace) -> int:
    from vcd.files import write_text
    from vcd.sweeps import rows, table

    found = rows.read(given.DIR)
    write_text(given.DIR / "runs.csv", table.collect(found))
    print(given.DIR / "runs.csv")
    return rows.code(found)


VERBS = {"status": status, "resume": resume, "cancel": cancel, "collect": collect}

if __name__ == "__main__":
    main()
