"""python -m vcd.train: train a model, resume it, or say that it is finished."""

import logging
import signal

from omegaconf import DictConfig, OmegaConf

from vcd import stages
from vcd.cli import entry, explain
from vcd.resolvers import register_resolvers
from vcd.runs import RunFolder
from vcd.signals import Listener, told

log = logging.getLogger("vcd")
register_resolvers()


@entry("train", checks_parts=False)  # torch is imported when signals are heard
def main(cfg: DictConfig) -> float | None:
    """Train the model of `cfg` in its run folder; print where pictures, curves and checkpoint are.

    Returns the last validation loss, for hydra/sweeper=optuna.
    """
    run = stages.ready(cfg).open(OmegaConf.to_yaml(cfg, resolve=True))
    if run.finished:
        log.info("this run is finished, there is nothing to do; another seed or another key makes another run")
    else:
        with run.held(), Listener() as listener:
            attempt(cfg, run, listener)
            listener.obey()  # told when all was done: the run is finished, what would come after it is not begun
    for name, file in run.results():
        log.info("%-11s %s", name, file)
    return run.status.get("val_loss")


def attempt(cfg: DictConfig, run: RunFolder, listener: Listener) -> None:
    """Train; however that ends, the run's status says so."""
    try:
        run.set_status("running")
        from vcd import schema, training  # and torch, only now that signals are heard

        schema.check_parts(cfg)
        training.train(cfg, run, listener)
    except BaseException as error:
        listener.patient = True
        if (signum := told(error)) is None:
            run.fail(error, explain(error, "train"))
            listener.obey()
            raise
        run.set_status("cancelled" if signum == signal.SIGINT else "preempted")
        saved = "saved; the same command goes on from there" if run.last.exists() else "there was nothing to save yet"
        log.info("told to stop (%s): %s", signal.Signals(signum).name, saved)
        listener.hand_over()
        raise SystemExit(128 + signum) from error


if __name__ == "__main__":
    main()
