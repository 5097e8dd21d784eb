"""wandb and TensorBoard beside metrics.csv."""

import logging
import netrc
import os
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, final

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from vcd import __version__
from vcd.files import read_steps
from vcd.identity import incidental
from vcd.signals import shielded

log = logging.getLogger("vcd")
ROOT = Path(__file__).resolve().parent.parent


# What a run folder may not say about its wandb run.
UNTOLD: dict[str, Any] = {
    "project": "vcd", "name": None, "group": None, "job_type": None, "tags": (), "overrides": (), "offline": None,
}  # fmt: skip


class Tracker(ABC):
    """What a logger can do besides metrics. Steps are those of the metrics: the first is 0."""

    @abstractmethod
    def start(self, history: Mapping[int, Mapping[str, float]], pictures: Path) -> None:
        """Open what is written to, and repeat what was logged before the step at which this start resumes.

        Killed processes lose what they had not written yet; metrics.csv and the PNG files lose nothing.
        """

    @abstractmethod
    def show(self, pictures: Mapping[str, Path], step: int) -> None:
        """Pictures of this step, by name: the very pixels of the PNG files."""

    @abstractmethod
    def conclude(self, samples: Path, sequences: Path, step: int) -> None:
        """The pictures at the end of the run."""

    @abstractmethod
    def finish(self, failed: bool) -> None:
        """Write all that is not yet written, and close."""


@final
class Wandb(WandbLogger, Tracker):
    """One run of Weights and Biases, whose own step is the training step, so that steps go on after an interruption.

    Offline every start writes a file of its own: each holds all that came before, so that the last one is whole.
    wandb's own process may be gone before the run is (SLURM's SIGTERM ends it): that costs a warning, never the run.
    """

    _gone = False

    @rank_zero_only
    def start(self, history: Mapping[int, Mapping[str, float]], pictures: Path) -> None:
        with shielded():  # wandb is a process of its own
            run = self.experiment
        if run.offline:
            for step, metrics in sorted(history.items()):
                self.log_metrics(metrics, step)
                self.show(_of_step(pictures, step), step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        at = {} if step is None else {"trainer/global_step": step}
        with self._forgiving():
            self.experiment.log({**metrics, **at}, step=step)

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # wandb raises what its connection does
            if not self._gone:
                log.warning(
                    "wandb is gone (%s: %s): the run goes on; metrics.csv has everything", type(error).__name__, error
                )
            self._gone = True

    @rank_zero_only
    def show(self, pictures: Mapping[str, Path], step: int) -> None:
        import wandb

        images = {name: wandb.Image(str(path), caption=f"{name}, step {step + 1}") for name, path in pictures.items()}
        if images:
            self.log_metrics(images, step)

    @rank_zero_only
    def conclude(self, samples: Path, sequences: Path, step: int) -> None:
        """A table of one row: wandb joins those of a group, so that all variants stand side by side."""
        import wandb

        run = self.experiment
        table = wandb.Table(columns=["variant", "run", "seed", "steps", "samples", "sequences"])
        table.add_data(
            run.job_type, run.name, run.config["seed"], step, wandb.Image(str(samples)), wandb.Image(str(sequences))
        )
        self.log_metrics({"variants": table}, step)

    @rank_zero_only
    def finish(self, failed: bool) -> None:
        with self._forgiving():
            self.experiment.finish(exit_code=int(failed))


@final
class TensorBoard(TensorBoardLogger, Tracker):
    """Event files in the run folder's tensorboard/; those of an earlier start are superseded."""

    @rank_zero_only
    def start(self, history: Mapping[int, Mapping[str, float]], pictures: Path) -> None:
        for step, metrics in sorted(history.items()):
            self.log_metrics(metrics, step)
            self.show(_of_step(pictures, step), step)

    @rank_zero_only
    def show(self, pictures: Mapping[str, Path], step: int) -> None:
        for name, path in pictures.items():
            pixels = np.asarray(Image.open(path))
            self.experiment.add_image(name, pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")

    @rank_zero_only
    def conclude(self, samples: Path, sequences: Path, step: int) -> None:
        self.show({"final samples": samples, "final sequences": sequences}, step)

    @rank_zero_only
    def finish(self, failed: bool) -> None:
        self.experiment.close()


def _of_step(folder: Path, step: int) -> dict[str, Path]:
    """The pictures that vcd.callbacks.pictures drew after this step."""
    named = {name: folder / f"{name}-{step + 1:07d}.png" for name in ("samples", "sequences")}
    return {name: path for name, path in named.items() if path.exists()}


def wandb(*, config: dict, resumed: bool, folder: str, overrides: Sequence[str], project: str, name: str | None, group: str | None,
          job_type: str, tags: Sequence[str], offline: bool | None) -> Wandb:  # fmt: skip
    """Weights and Biases for one run folder: its run id is kept there, so that a resumed run goes on in its curves.

    offline=None: what WANDB_MODE says, or else offline unless there are an API key and a network. The commit and what
    differs from it are recorded where the code lies in a git checkout.
    """
    from wandb import Settings

    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    kept = path / "wandb_id"
    if not kept.exists():
        kept.write_text(secrets.token_hex(4))
    mode = wandb_mode(offline)
    environment = os.environ.get("WANDB_MODE")
    os.environ["WANDB_DATA_DIR"] = str(
        path / "wandb"
    )  # what is still to be uploaded stays with the run, not in the home
    logger = Wandb(
        project=project, name=name or short(overrides) or path.name, group=group or path.parent.name, job_type=job_type,
        tags=list(tags), id=kept.read_text().strip(), save_dir=path, offline=mode == "offline", mode=mode,
        config={**config, "run_folder": str(path), "vcd_version": __version__},
        settings=Settings(git_root=str(ROOT) if (ROOT / ".git").exists() else None, save_code=True),
    )  # fmt: skip
    if environment is not None:
        os.environ["WANDB_MODE"] = environment
    return logger


def wandb_mode(offline: bool | None = None) -> Literal["online", "offline"]:
    """ "online" or "offline": as told, or else what WANDB_MODE says, or else online where there are an API key and a network."""
    if offline is None:
        offline = os.environ.get("WANDB_MODE", "online" if _reachable() else "offline") != "online"
    return "offline" if offline else "online"


def _reachable(host: str = "api.wandb.ai") -> bool:
    try:
        known = "WANDB_API_KEY" in os.environ or netrc.netrc().authenticators(host)
        if known:
            socket.create_connection((host, 443), timeout=3).close()
        return bool(known)
    except (OSError, netrc.NetrcParseError):
        return False


def evaluated(folder: Path, found: Mapping[str, Any]) -> bool:
    """Put what metrics.json holds into the wandb run of `folder`: values into its summary, by their names, and under
    `evaluation` each with its floor, unit and protocol. Whether wandb knows the run; what goes wrong is a warning.

    Offline this is one more start of the run, with all that came before, as every start has it.
    """
    if not (folder / "wandb_id").exists():
        return False
    os.environ.setdefault("WANDB_SILENT", "true")
    stored = OmegaConf.load(folder / "config.yaml") if (folder / "config.yaml").exists() else OmegaConf.create()
    told = {key: OmegaConf.select(stored, f"logger.wandb.{key}", default=UNTOLD[key]) for key in UNTOLD}
    mode, number = wandb_mode(told["offline"]), (folder / "wandb_id").read_text().strip()
    try:
        import wandb as api

        if mode == "online":  # name and tags stay as they are there, whoever changed them
            run = api.init(project=told["project"], id=number, dir=folder, resume="allow", mode=mode)
        else:
            tracker = wandb(config=cast(dict, OmegaConf.to_container(stored)), resumed=True, folder=str(folder), **told)
            history = _history(folder / "metrics.csv")
            tracker.start(history, folder / "pictures")
            if history and (folder / "sequences.png").exists():
                tracker.conclude(folder / "samples.png", folder / "sequences.png", max(history))
            run = tracker.experiment
        values = {name: metric["value"] for name, metric in found["metrics"].items()}
        run.summary.update({**values, "evaluation": {key: found[key] for key in found if key != "curves"}})
        run.finish()
    except Exception as error:  # wandb raises what its connection does
        reason = str(error).partition("\n")[0]
        log.warning("wandb does not have these numbers (%s: %s); metrics.json does", type(error).__name__, reason)
    else:
        log.info("%-10s %s (%s)", "wandb", f"the summary of run {number}", mode)
    return True


def _history(metrics: Path) -> dict[int, dict[str, float]]:
    """metrics.csv, where it is there: step -> what was logged."""
    rows = read_steps(metrics) if metrics.exists() else []
    return {int(row["step"]): {k: float(v) for k, v in row.items() if v and k != "step"} for row in rows}


def short(overrides: Sequence[str]) -> str:
    """What sets a run apart, for a name: overrides without those that change nothing of the outcome; the last ones, if long."""
    own = [o for o in overrides if not incidental(o.lstrip("+~").split("=")[0])]
    while len(" ".join(own)) > 128:
        own = own[1:]
    return " ".join(own)


def tensorboard(*, config: dict, resumed: bool, folder: str) -> TensorBoard:
    """TensorBoard for one run folder."""
    return TensorBoard(save_dir=str(folder), name="", version="tensorboard", purge_step=0 if resumed else None)
