"""A view of a wandb project that shows the curves of vcd: over all, and level by level.

    pip install wandb-workspaces
    python scripts/wandb_workspace.py ENTITY/PROJECT RUN_FOLDER          # where there is a network, after `wandb login`
    python scripts/wandb_workspace.py ENTITY/PROJECT RUN_FOLDER --list   # only say what it would show

RUN_FOLDER is any run of the project: its metrics.csv says which curves there are. All runs of the project are shown.
"""

import argparse
import csv
from pathlib import Path

TERMS = {"loss": "Loss", "reconstruction_sse": "Reconstruction", "kl_bits": "KL in bits"}


def sections(metrics: Path) -> dict[str, list[list[str]]]:
    """Section -> its plots, each a list of metrics: validation and training over all, and validation by level."""
    with metrics.open(newline="") as file:
        names = next(csv.reader(file))
    over_all = [[f"{stage}/{term}" for stage in ("val", "train") if f"{stage}/{term}" in names] for term in TERMS]
    found = {"Over all": [plot for plot in over_all if plot]}
    for term, title in TERMS.items():
        if levels := [name for name in names if name.startswith(f"val/{term}/t")]:
            found[f"{title}, level by level"] = [[name] for name in levels]
    return found


def view(entity: str, project: str, found: dict[str, list[list[str]]]):
    """The same as a workspace of wandb's, which nobody knows of until it is saved."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    parts = [
        ws.Section(name=name, is_open=True, panels=[wr.LinePlot(title=plot[0], x="Step", y=plot) for plot in plots])
        for name, plots in found.items()
    ]
    return ws.Workspace(entity=entity, project=project, name="vcd: level by level", sections=parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("run", metavar="RUN_FOLDER", type=Path)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    entity, _, project = given.project.partition("/")
    if not (entity and project):
        parser.error("say whose project it is: ENTITY/PROJECT, such as me/vcd")
    if not (given.run / "metrics.csv").exists():
        parser.error(f"{given.run} holds no metrics.csv: give a run folder, such as one below runs/")
    found = sections(given.run / "metrics.csv")
    for name, plots in found.items():
        print(f"{name}: {', '.join(' and '.join(plot) for plot in plots)}")
    if not given.list:
        print(view(entity, project, found).save().url)


if __name__ == "__main__":
    main()
