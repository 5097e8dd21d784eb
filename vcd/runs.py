"""A run's folder is its identity: the same command finds it again, resumes it, or says that it is finished."""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vcd.errors import UserError

log = logging.getLogger("vcd")
BEAT = 30  # seconds after which a run is heard of again
SILENCE = 300  # seconds after which it is taken for dead, where nothing else tells

# What may differ between two starts of one run: where things are and how they are watched, not what is computed.
INCIDENTAL = (
    *(
        "hydra",
        "runs",
        "run_dir",
        "data",
        "threads",
        "checkpoint_every",
        "keep_every",
        "logger",
        "callbacks",
        "dataset.source.root",
    ),
    *(
        f"trainer.{key}"
        for key in (
            "devices",
            "num_nodes",
            "strategy",
            "accelerator",
            "enable_progress_bar",
            "estimate_memory",
            "compile",
            "log_every_n_steps",
            "val_check_interval",
        )
    ),
)


def digest(root: DictConfig) -> str:
    """Eight hexadecimal digits of every key that changes the outcome, but the seed."""
    cfg = OmegaConf.masked_copy(root, [k for k in root if k not in (*INCIDENTAL, "seed")])
    cfg._set_parent(root)  # interpolations into what was left out still resolve
    plain = OmegaConf.to_container(cfg, resolve=True)
    for key in INCIDENTAL:
        *path, leaf = key.split(".")
        node = plain
        for part in path:
            node = node.get(part) or {}
        node.pop(leaf, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def identity(*, _root_: DictConfig) -> str:
    """`${identity:}`: dataset-model-degradation-digest-seed, the name of a run's folder."""
    whole = _root_ if "hydra" in _root_ else HydraConfig.instance().cfg  # Hydra takes its node out before the task
    choices = OmegaConf.select(whole, "hydra.runtime.choices") if whole is not None else None
    names = [choices[group] for group in ("dataset", "model", "degradation")] if choices else []
    return "-".join([*names, digest(_root_), f"seed{_root_.seed}"])


def register_resolvers() -> None:
    """Make `${identity:}` known; called by entry points before Hydra reads the config."""
    OmegaConf.register_new_resolver("identity", identity, replace=True)


class RunFolder:
    """config.yaml, status.json, last.ckpt, metrics.csv and pictures of one run."""

    def __init__(self, cfg: DictConfig):
        self.path = Path(cfg.run_dir).resolve()
        self._cfg = cfg
        self.identity = f"{digest(cfg)}-seed{cfg.seed}"
        self.last = self.path / "last.ckpt"
        self._status = self.path / "status.json"

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration, resolved."""
        return OmegaConf.to_container(self._cfg, resolve=True)

    def claim(self) -> "RunFolder":
        """Make the folder, or check that the one there is this run's own."""
        if self._status.exists() and (found := self.status["identity"]) != self.identity:
            raise UserError(
                f"run_dir={self.path} belongs to another configuration ({found}, this one is {self.identity}; "
                "compare its config.yaml): choose another run_dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    def open(self) -> "RunFolder":
        """The folder, with its config.yaml and status.json."""
        self.claim()
        if rank() == 0 and not (self.path / "config.yaml").exists():
            write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config)))
        if rank() == 0 and not self._status.exists():
            self.set_status("queued", **self._started_by())
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
            done = threading.Event()
            after.callback((self.path / "lock").unlink, missing_ok=True)
            after.callback(done.set)
            threading.Thread(target=self._beat, args=(done,), daemon=True).start()
            yield

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._status)

    @staticmethod
    def _started_by() -> dict[str, Any]:
        """command: the arguments of vcd.train that lead here again, from the folder cwd."""
        task = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        return {"command": [*task, "hydra.mode=RUN"], "cwd": os.getcwd()}

    @property
    def status(self) -> dict[str, Any]:
        return json.loads(self._status.read_text())

    def set_status(self, state: str, **facts: Any) -> None:
        """state: queued, running, preempted, finished, failed or cancelled. Facts that are not given anew stay."""
        if rank():
            return
        record = self.status if self._status.exists() else {}
        record.pop("error", None)
        record |= {
            "identity": self.identity,
            "state": state,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **whereabouts(),
            **facts,
        }
        with contextlib.suppress(OSError):  # a full disk is reported by what had to be written
            write_atomically(self._status, json.dumps(record, indent=2) + "\n")

    def fail(self, error: BaseException, sentence: str | None) -> None:
        """What went wrong: its sentence, or its first line, in status.json, and the traceback in error.txt."""
        if rank() == 0:
            with contextlib.suppress(OSError):
                write_atomically(self.path / "error.txt", "".join(traceback.format_exception(error)))
            self.set_status("failed", error=(sentence or f"{type(error).__name__}: {error}").splitlines()[0])

    @property
    def finished(self) -> bool:
        return self._status.exists() and self.status["state"] == "finished"

    def results(self) -> list[tuple[str, Path]]:
        """What there is to look at, the checkpoint last."""
        names = {"samples": "samples.png", "sequences": "sequences.png", "animation": "sequences.gif",
                 "curves": "curves.png", "metrics": "metrics.csv", "checkpoint": "last.ckpt"}  # fmt: skip
        return [(name, self.path / file) for name, file in names.items() if (self.path / file).exists()]


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


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
