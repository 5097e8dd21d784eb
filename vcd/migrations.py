"""What was renamed or moved since earlier versions: their configs and weights, brought to today's form.

Every change finds what it changes by its old form, so that what is in today's form already passes unchanged.
"""

import copy
from collections.abc import Iterator
from typing import Any

Config = dict[str, Any]

# old `_target_`: new
RENAMED = {
    # 0.2
    "vcd.networks.injection.Start": "vcd.networks.injection.Input",
    "vcd.predictions.Residual": "vcd.predictions.Eps",
    "vcd.starts.Natural": "vcd.starts.natural",
}
PARTIAL = ("vcd.networks.injection.", "vcd.starts.natural")  # made where their other arguments are known, since 0.2
TRAINED_ON = {  # the perturbation says which model it is, since 0.2
    "vcd.perturbations.Rollout": "vcd.models.vcd.VCD",
    "vcd.perturbations.Gaussian": "vcd.models.vwd.VWD",
    "vcd.perturbations.Unperturbed": "vcd.models.plain.Plain",
}
# old buffer of degradation=noise: new; None: there is none any more. Since 0.2
STATE: dict[str, str | None] = {"sqrt_alpha_bar": "signal", "sqrt_one_minus_alpha_bar": "noise", "alpha_bar": None}


def renamed(target: str) -> str:
    """What a class or function is called today."""
    return RENAMED.get(target, target)


def migrate_config(config: Config) -> Config:
    """The config of a run of any earlier version, plain and resolved, in today's form."""
    config = copy.deepcopy(config)
    for node in _nodes(config):
        target = renamed(node["_target_"])
        node["_target_"] = target
        if target.startswith(PARTIAL):
            node["_partial_"] = True
        if target == "vcd.networks.encoder.Encoder":
            node.setdefault("width", 0.5)
        if target == "vcd.priors.Mixture" and "passes" not in node:  # the default of 0.1, which was too few
            node["passes"] = 4
            node["images"] = 20_000 if node.get("images") == 6000 else node["images"]
        if target == "vcd.priors.Mixture" and "shrinkage" not in node:  # younger than it; and the default was too few
            node["shrinkage"] = 30
            node["images"] = 60_000 if node.get("images") == 20_000 else node["images"]
        if target == "vcd.perturbations.Rollout" and "most" in node:
            node["longest"] = node.pop("most")
    model = _part(config, "model")
    for place in (config, model):  # a run's parts stand on their own, and in its model
        perturbation, sampler = _part(place, "perturbation"), _part(place, "sampler")
        if sampler and "delta" not in sampler:
            sampler["delta"] = perturbation.pop("delta", 0.0)
    if model.get("_target_") in ("vcd.models.vcd.VCD", "vcd.models.vwd.VWD"):
        perturbation = _part(model, "perturbation")
        model["_target_"] = TRAINED_ON.get(perturbation.get("_target_", ""), model["_target_"])
    for default in ("heat", "kernel"):  # of interpolations, which are resolved
        _part(config, "dataset").pop(default, None)
    return config


def migrate_state(state: dict[str, Any]) -> dict[str, Any]:
    """The parameters and buffers of a model of any earlier version under today's names."""
    found = {}
    for name, value in state.items():
        module, _, last = name.rpartition(".")
        noise = f"{module}.sqrt_alpha_bar" in state
        new = STATE.get(last, last) if noise else last
        if new is not None:
            found[f"{module}.{new}" if module else new] = value
    return found


def _nodes(config: Any) -> Iterator[Config]:
    """Every node that names what to make of it."""
    if isinstance(config, dict):
        if isinstance(config.get("_target_"), str):
            yield config
        config = list(config.values())
    if isinstance(config, list):
        for child in config:
            yield from _nodes(child)


def _part(config: Config, name: str) -> Config:
    part = config.get(name)
    return part if isinstance(part, dict) else {}
