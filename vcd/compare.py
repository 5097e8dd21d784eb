"""python -m vcd.compare: one table of evaluated runs, and, on request, their training and evaluation first."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vcd.cli import entry, listed
from vcd.errors import UserError
from vcd.files import check_writable

log = logging.getLogger("vcd")


@entry("compare")
def main(cfg: DictConfig) -> None:
    """Train and evaluate what is asked for and not there yet; then write the table, the pictures and the page."""
    from vcd import checkpoints, report
    from vcd.comparison import making, pictures, table
    from vcd.files import write_text
    from vcd.quiet import quiet

    quiet()
    trust = listed(cfg.trust)
    out = check_writable(Path(str(cfg.out)), "out", folder=True)
    folders, called = _folders(cfg), dict[Path, str]()
    root = f"data.root={Path(str(cfg.data.root)).expanduser()}"  # a ~ is no value on a command line of Hydra's
    if cfg.train:
        variants: Any = OmegaConf.to_container(cfg.train)
        common = [*cfg.common, root]
        if cfg.seconds:
            steps = making.steps_in(cfg.seconds, variants, common, out / "probes", cfg.processes)
            log.info("steps in %g seconds: %s", cfg.seconds, steps)
            variants = {name: [*o, f"trainer.max_steps={steps[name]}"] for name, o in variants.items()}
        trained = making.train(variants, common, out / "runs", cfg.processes)
        called = dict(zip(trained, variants, strict=True))
        folders += trained
    if not folders:
        raise UserError("say what to compare: runs=[A,B], below=DIR or experiment=compare_mnist_cpu")
    if cfg.evaluate is not None:
        overrides = [*cfg.evaluate, root, f"device={cfg.device}"]
        making.evaluate(folders, overrides + ([f"trust=[{','.join(trust)}]"] if trust else []), cfg.processes)
    compared = table.group([table.read(folder, listed(cfg.leave_out)) for folder in folders], called)
    found = table.table(compared)
    out.mkdir(parents=True, exist_ok=True)
    written = {"markdown": out / "table.md", "csv": out / "table.csv"}
    write_text(written["markdown"], table.markdown(found))
    write_text(written["csv"], table.plain(found))
    if cfg.latex:
        written["latex"] = out / "table.tex"
        write_text(written["latex"], table.latex(found))
    device = checkpoints.device_of(cfg.device)
    how: dict[str, Any] = {"seed": cfg.seed, "device": device, "trust": trust}
    written["samples"] = pictures.picture(compared, out / "samples.png", n=cfg.n, **how)
    curves = pictures.curves(compared)
    written["curves"] = pictures.draw(curves, out / "curves.png")
    looks = [report.look(v.runs[0].folder, n=36, pairs=6, called=v.name, **how) for v in compared]
    written["page"] = out / "comparison.html"
    write_text(written["page"], report.render(looks, found.cells(), list(pictures.panels(curves))))
    log.info("%s", table.markdown(found))
    for name, path in written.items():
        log.info("%-10s %s", name, path)


def _folders(cfg: DictConfig) -> list[Path]:
    """The run folders named, and those below `below`, or of the table that `vcd.sweep collect` wrote."""
    from vcd.sweeps import table as sweep_table

    folders = [Path(str(f)).expanduser() for f in listed(cfg.runs or [])]
    if cfg.below:
        sweep = Path(str(cfg.below)).expanduser()
        if sweep.suffix == ".csv":
            return folders + sweep_table.finished(sweep)
        if not sweep.is_dir():
            raise UserError(f"below={cfg.below}: there is no such folder")
        found = sorted(path.parent for path in sweep.glob("*/status.json"))
        if not found:
            raise UserError(f"below={cfg.below} holds no run folders")
        folders += found
    return folders


if __name__ == "__main__":
    main()
