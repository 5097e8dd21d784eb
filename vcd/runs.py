"""A run's folder is its identity: the same command finds it again, resumes it, or says that it is finished."""

import contextlib
import fcntl
import glob
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vcd import __version__, files, identity
from vcd.errors import UserError

log = logging.getLogger("vcd")
BEAT = 30  # seconds after which a run is heard of again
SILENCE = 300  # seconds after which it is taken for dead, where nothing else tells
NAME = re.compile(r"(?P<dataset>[^-]+)-.+-[0-9a-f]{8}-(?P<seed>seed-?\d+)")  # as `${identity:}` makes it
LEFT = ("train.log", f"{files.PREFIX}*")  # what a start that was refused or killed at once may have left


class RunFolder:
    """config.yaml, status.json, last.ckpt, metrics.csv and pictures of one run.

    run_dir: its folder, unless an earlier version of vcd began the run in one beside it. identity: that of its config.
    config: the config itself, so that a folder of another one can be told what differs.
    """

    def __init__(self, *, run_dir: str, identity: str, config: DictConfig | None = None):
        self.identity, self.config = identity, config
        self.path = home(Path(run_dir).resolve(), identity)
        self.last = self.path / "last.ckpt"
        self._status = self.path / "status.json"
        self._inode: int | None = None
        self._made = False  # by this very start

    def claim(self) -> "RunFolder":
        """Make the folder, or check that the one there is this run's own. UserError where it is not."""
        self._made = not self.path.exists()
        said = None
        try:
            said = read_status(self.path).get("identity") if self.path.is_dir() else None
        except UserError as error:
            log.warning("%s", error)
        if not self._made and said != self.identity and (stored := identity.stored(self.path)) != self.identity:
            self._refuse(said or stored)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._inode = self.path.stat().st_ino
        except OSError as error:
            raise UserError(f"run_dir={self.path} cannot be made ({error.strerror}): choose another run_dir") from error
        return self

    def _refuse(self, found: str | None) -> None:
        """UserError where the folder is another's. found: the identity of the run in it."""
        if not self.path.is_dir():
            raise UserError(f"run_dir={self.path} is a file: choose another run_dir")
        if found is not None:
            raise UserError(
                f"run_dir={self.path} belongs to another configuration ({self._differs(found)}): choose another run_dir"
            )
        if any(not any(entry.match(pattern) for pattern in LEFT) for entry in self.path.iterdir()):
            raise UserError(f"run_dir={self.path} holds other files, and no run of vcd: choose another run_dir")

    def _differs(self, found: str) -> str:
        """In what this configuration is another than that of the folder: the first three keys."""
        try:
            differs = [] if self.config is None else identity.differences(self.path, self.config)
        except Exception:  # its config.yaml is damaged, or gone
            differs = []
        more = f", and {len(differs) - 3} more in its config.yaml" if len(differs) > 3 else ""
        return "; ".join(differs[:3]) + more if differs else f"{found}, this one is {self.identity}"

    def open(self, config: str) -> "RunFolder":
        """The folder, with its config.yaml, which holds `config`, and its status.json."""
        self.claim()
        if rank() == 0 and not self.status:
            self.set_status("queued", **self._started_by())
        if rank() == 0 and not (self.path / "config.yaml").exists():
            files.write_text(self.path / "config.yaml", config)
        return self

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No other process trains here meanwhile, and status.json is touched every half minute. UserError if one does.

        The lock is the operating system's, so it ends with the process, however that ends. Where a lost node left one
        behind (NFS), SLURM's word counts, which started this very job again, or the other's silence.
        """
        if rank():
            yield
            return
        with open(self.path / "lock", "a") as file, contextlib.ExitStack() as after:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                holder = self.status
                again = holder.get("job") is not None and holder["job"] == whereabouts()["job"]
                if not again and silence(self.path) < SILENCE:
                    by = f"process {holder.get('pid')} on {holder.get('host')}"
                    raise UserError(
                        f"{self.path} is being trained already, by {by}: wait for it, or end it first"
                    ) from error
            except OSError:
                log.warning("%s: this file system has no locks; do not start the same run twice at a time", self.path)
            for folder in (self.path, self.path / "pictures"):
                files.sweep(folder)
            done = threading.Event()
            after.callback((self.path / "lock").unlink, missing_ok=True)
            after.callback(done.set)
            after.enter_context(self._logged())
            threading.Thread(target=self._beat, args=(done,), daemon=True).start()
            yield

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._status)

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """What is said goes to train.log as well."""
        handler = logging.FileHandler(self.path / "train.log", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()

    @staticmethod
    def _started_by() -> dict[str, Any]:
        """command: the arguments of vcd.train that lead here again, from the folder cwd."""
        task = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        return {"command": [*task, "hydra.mode=RUN"], "cwd": os.getcwd()}

    @property
    def status(self) -> dict[str, Any]:
        """status.json; empty where there is none, or none that can be read: the next status mends that."""
        with contextlib.suppress(UserError):
            return read_status(self.path)
        return {}

    def set_status(self, state: str, **facts: Any) -> None:
        """state: queued, running, preempted, finished, failed or cancelled. Facts that are not given anew stay.

        The traceback of an earlier failure goes with "finished".
        """
        if rank() or self._gone():
            return
        record = self.status or self._started_by()
        record.pop("error", None)
        record |= {
            "identity": self.identity,
            "state": state,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "vcd_version": __version__,
            **whereabouts(),
            **facts,
        }
        with contextlib.suppress(OSError):  # a full disk is reported by what had to be written
            files.write_text(self._status, json.dumps(record, indent=2) + "\n")
            if state == "finished":
                (self.path / "error.txt").unlink(missing_ok=True)

    def _gone(self) -> bool:
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return True

    def check(self) -> None:
        """UserError where the folder is no longer the one that was opened."""
        if self._gone():
            raise UserError(
                f"{self.path} was deleted while it was being trained, and with it all that was saved: "
                "the same command begins again"
            )

    def fail(self, error: BaseException, sentence: str | None) -> None:
        """What went wrong: its sentence, or its first line, in status.json, and the traceback in error.txt.

        A run that was refused before it began leaves no folder, unless somebody else has made it.
        """
        if rank() or self._gone():
            return
        if self._made and sentence is not None and "step" not in self.status:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            files.write_text(self.path / "error.txt", "".join(traceback.format_exception(error)))
        self.set_status("failed", error=(sentence or f"{type(error).__name__}: {error}").splitlines()[0])

    @property
    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    def results(self) -> list[tuple[str, Path]]:
        """What there is to look at, the checkpoint last."""
        names = {"samples": "samples.png", "sequences": "sequences.png", "animation": "sequences.gif",
                 "curves": "curves.png", "metrics": "metrics.csv", "checkpoint": "last.ckpt"}  # fmt: skip
        return [(name, self.path / file) for name, file in names.items() if (self.path / file).exists()]


def home(run_dir: Path, wanted: str) -> Path:
    """`run_dir`, or the folder beside it where an earlier version of vcd, which named it otherwise, began this very run."""
    named = NAME.fullmatch(run_dir.name)
    if named is None or (run_dir / "status.json").exists():
        return run_dir
    found: list[tuple[int, Path]] = []
    for sibling in sorted(run_dir.parent.glob(f"{glob.escape(named['dataset'])}-*-{named['seed']}")):
        with contextlib.suppress(UserError):  # of a damaged status.json
            status = read_status(sibling)
            earlier = bool(status) and status.get("vcd_version") != __version__
            if status.get("identity") == wanted or (earlier and identity.stored(sibling) == wanted):
                found.append((status.get("step") or 0, sibling))
    if not found:
        return run_dir
    folder = max(found)[1]
    log.info("an earlier version of vcd began this run: going on in %s", folder)
    return folder


def read_status(folder: Path) -> dict[str, Any]:
    """status.json of a run folder; empty where there is none. UserError where it cannot be read."""
    path = folder / "status.json"
    try:
        status = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): the same command of vcd.train mends it") from error
    if not isinstance(status, dict) or not isinstance(status.get("state"), str):
        raise UserError(f"{path} is not the status of a run: the same command of vcd.train mends it")
    return status


def silence(folder: Path) -> float:
    """Seconds since a run, which touches its status as long as it lives, was heard of."""
    return time.time() - (folder / "status.json").stat().st_mtime


def rank() -> int:
    """Which of the processes that train one run together this is, as torchrun, Lightning or SLURM number them."""
    return next((int(os.environ[key]) for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ), 0)


def whereabouts() -> dict[str, Any]:
    """host, process id and, in SLURM, the job: 12, or 12_3 of an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job}
