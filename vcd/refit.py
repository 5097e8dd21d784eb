"""python -m vcd.refit ckpt=... prior=flow: another prior for a trained model, fitted after the fact."""

import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from vcd.cli import entry, listed
from vcd.errors import UserError
from vcd.evaluate import reference
from vcd.files import check_writable

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("vcd")


@entry("refit")
def main(cfg: DictConfig) -> None:
    """Write a checkpoint like the one given, but with this prior: every command takes it as it is."""
    from hydra.utils import instantiate
    from tqdm import tqdm

    from vcd import checkpoints
    from vcd.data.datamodule import DegradationDataModule
    from vcd.quiet import quiet
    from vcd.seeds import seeded

    quiet()
    if cfg.ckpt is None:
        raise UserError("say which checkpoint is to have another prior: ckpt=runs/.../last.ckpt")
    path = Path(str(cfg.ckpt))
    if cfg.out:
        check_writable(Path(str(cfg.out)), "out")
    model, run = checkpoints.load(path, checkpoints.device_of(cfg.device), cfg.raw, trust=listed(cfg.trust))
    if not model.has_latents:
        raise UserError(f"ckpt={path}: a {type(model).__name__} has no latents, and so no prior")
    run.prior = run.model.prior = cfg.prior
    model.prior = instantiate(run.model.prior).to(model.device)
    data = DegradationDataModule(
        dataset=reference(cfg, run), degradation=model.degradation, prediction=model.prediction, space=model.space,
        batch_size=1, steps=1, flip=False, seed=cfg.seed,
    )  # fmt: skip

    def endless() -> Iterator["Tensor"]:
        with tqdm(desc="encoded for the prior", unit=" images", file=sys.stdout, disable=None) as bar:
            for batch in itertools.chain.from_iterable(data.train_batches() for _ in itertools.count()):
                yield batch
                bar.update(len(batch))

    with seeded(cfg.seed, model.device):
        model.fit_prior(endless())
    name = type(model.prior).__name__.lower()
    out = Path(str(cfg.out)) if cfg.out else path.with_name(f"{path.stem}-{name}.ckpt")
    checkpoints.store_prior(path, out, model, OmegaConf.to_container(run, resolve=True))  # type: ignore[arg-type]
    log.info("%-10s %s", "checkpoint", out)


if __name__ == "__main__":
    main()
