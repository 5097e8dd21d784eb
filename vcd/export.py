"""python -m vcd.export ckpt=...: a trained model as a folder to share, or on the Hugging Face Hub."""

import logging
import tempfile
from pathlib import Path

from omegaconf import DictConfig

from vcd.cli import entry, listed
from vcd.errors import UserError
from vcd.files import check_writable

log = logging.getLogger("vcd")


@entry("export")
def main(cfg: DictConfig) -> None:
    """Write the folder, or push it: weights, config and model card. `vcd.load` and every ckpt=... take it."""
    from vcd import checkpoints, hub, sharing

    if cfg.ckpt is None:
        raise UserError("say which checkpoint to export: ckpt=runs/.../last.ckpt")
    if cfg.out and cfg.push:
        raise UserError("out=... writes a folder and push=... uploads it: give one of them")
    checkpoint = checkpoints.Checkpoint(str(cfg.ckpt), listed(cfg.trust))
    out = Path(str(cfg.out)) if cfg.out else checkpoint.home / f"{Path(str(cfg.ckpt)).stem}-{cfg.format}"
    model, config = checkpoint.model(checkpoints.device_of(cfg.device), raw=cfg.raw)
    chosen = dict(format=cfg.format, license=cfg.license, raw=cfg.raw, half=cfg.half)
    if cfg.push:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            sharing.export(checkpoint, model, config, folder, place=cfg.push, **chosen)
            link = hub.push(folder, cfg.push, private=cfg.private, token=None, revision=None, message=hub.MESSAGE)
        log.info("%-10s %s", "pushed", link)
        return
    check_writable(out, "out", folder=True)
    sharing.export(checkpoint, model, config, out, **chosen)
    for path in sorted(out.rglob("*")):
        if path.is_file():
            log.info("%-10s %s", f"{path.stat().st_size / 1e3:,.0f} kB", path)


if __name__ == "__main__":
    main()
