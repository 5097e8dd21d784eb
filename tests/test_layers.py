"""Dependencies point one way: no circle, and nothing imports from a layer above its own, not even for a type."""

import ast
import graphlib
import re
from pathlib import Path

from pytorch_lightning import LightningModule

import vcd

ROOT = Path(vcd.__file__).parent

# From the bottom to the top; a name stands for the module or for the whole folder.
LAYERS = [
    [
        "",
        "errors",
        "discovery",
        "files",
        "help",
        "migrations",
        "quiet",
        "signals",
        "compat",
        "seeds",
        "threads",
        "randomness",
    ],
    ["style", "annealing", "learning_rates", "levels", "schedules", "noise_schedules", "spaces", "gammas"],
    ["curves", "mistakes", "schema", "batch", "images", "monitoring"],
    ["degradations"],
    ["restorer", "predictions"],
    ["guess"],
    [
        "samplers",
        "solvers",
        "exact_steps",
        "weights",
        "level_samplers",
        "perturbations",
        "self_conditioning",
        "priors",
        "starts",
        "networks",
    ],
    ["bounds", "likelihood", "data"],
    ["models"],
    ["stored", "exports", "hub"],
    [
        "checkpoints",
        "identity",
        "labels",
        "memory",
        "steering",
        "refining",
        "spectra",
        "restoring",
        "figures",
        "runs",
        "loggers",
        "tracking",
    ],
    ["metrics", "callbacks", "hardware", "request", "tasks"],
    ["stages", "sharing", "schedulers", "resolvers"],
    ["sweeps", "comparison", "training"],
    ["api"],
    [
        "__main__",
        "cli",
        "compare",
        "control",
        "degrade",
        "evaluate",
        "export",
        "refit",
        "report",
        "restore",
        "sample",
        "sweep",
        "train",
    ],
]
# What points upwards by intent: comparisons and SLURM jobs *are* calls of these commands.
BY_INTENT = {("comparison.making", "evaluate"), ("sweeps.slurm", "train")}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """Every module of vcd that this one imports anywhere: at the top, in a function, under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {part if part.removeprefix("vcd.") in MODULES else str(node.module) for part in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {module.removeprefix("vcd").removeprefix(".") for module in found if module.partition(".")[0] == "vcd"}


def layer(name: str) -> int:
    found = [i for i, names in enumerate(LAYERS) if {name, name.partition(".")[0]} & set(names)]
    assert len(found) == 1, f"{name} is in {len(found)} layers: give it one"
    return found[0]


def test_there_is_no_circle():
    order = list(graphlib.TopologicalSorter({name: imports(name) - {name} for name in MODULES}).static_order())
    assert set(order) == set(MODULES)


def test_nothing_points_back():
    upwards = {(name, other) for name in MODULES for other in imports(name) if layer(other) > layer(name)}
    assert upwards <= BY_INTENT


def test_no_layer_names_what_is_not_there():
    assert {name for names in LAYERS for name in names} <= {name.partition(".")[0] for name in MODULES}


def test_private_names_of_libraries_are_in_compat_alone():
    trees = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
    trees |= {path.stem: ast.parse(path.read_text()) for path in (ROOT.parent / "hydra_plugins").rglob("*.py")}
    ours = {"_target_", "_exit"}  # of Hydra's configs; os._exit is documented
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                ours.add(node.attr)
    ours -= set(dir(LightningModule))  # nor overridden
    private = re.compile(r"_[^_]")
    for name, tree in trees.items():
        if name == "compat":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private.match(node.attr):
                assert node.attr in ours, f"{name}: {ast.unparse(node)}"
            elif isinstance(node, ast.ImportFrom):
                parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
                assert not any(private.match(part) and part not in ours for part in parts), (
                    f"{name}: {ast.unparse(node)}"
                )
