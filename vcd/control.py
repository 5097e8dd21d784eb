"""python -m vcd.control task=... ckpt=...: steer a checkpoint through its latents, step by step."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vcd.cli import entry, listed
from vcd.errors import UserError
from vcd.files import check_writable

log = logging.getLogger("vcd")


@entry("control")
def main(cfg: DictConfig) -> None:
    """Do `task` with every checkpoint; write its figure, and what is measured as CSV."""
    from vcd import checkpoints, discovery, tasks
    from vcd.models.base import Diffusion
    from vcd.quiet import quiet
    from vcd.request import Request

    quiet()
    found = discovery.find(str(cfg.task), tasks, "task")
    if not callable(task := getattr(found, "run", found)):
        raise UserError(f"task={cfg.task} has no function run(models, request, out)")
    if not cfg.ckpt:
        raise UserError("say which checkpoint to steer: ckpt=runs/.../last.ckpt, or several: ckpt=[A,B]")
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    paths = [str(path) for path in listed(plain["ckpt"])]
    for key in ("images", "sources"):  # a file may be called 3
        plain[key] = None if plain[key] is None else [str(place) for place in listed(plain[key])]
    plain["temperatures"] = [float(t) for t in listed(plain["temperatures"])]
    out = Path(str(cfg.out)) if cfg.out else Path(paths[0]).parent / "control"
    check_writable(out, "out", folder=True)
    models = dict[str, Diffusion]()
    for path in paths:
        model, _ = checkpoints.load(path, checkpoints.device_of(cfg.device), cfg.raw, trust=listed(cfg.trust))
        name = type(model).__name__
        models[name if name not in models else f"{name} {len(models) + 1}"] = model
    out.mkdir(parents=True, exist_ok=True)
    if found.__doc__:
        log.info("%s: %s", cfg.task, " ".join(found.__doc__.split("\n\n")[0].split()))
    request = Request(**{field.name: plain[field.name] for field in fields(Request)})
    for file in task(models, request, out):
        log.info("%-12s %s", cfg.task, file)


if __name__ == "__main__":
    main()
