"""A trained model as a folder that others can use: the weights, what they are parts of, samples, and a model card."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import jinja2
import torch
from omegaconf import DictConfig, OmegaConf

from vcd import __version__, exports, help, identity, schedulers
from vcd.callbacks.pictures import write_sequences
from vcd.checkpoints import CONFIG, VERSION, Checkpoint
from vcd.errors import UserError
from vcd.files import atomic, write_text
from vcd.images import write_png
from vcd.metrics import results
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.runs import read_status

TEMPLATE = Path(__file__).with_name("card.md.jinja")
FORMATS = ("safetensors", "diffusers")
SAMPLES, ROWS, FRAMES = 64, 8, 13  # of the card's pictures


def export(
    checkpoint: Checkpoint, model: Diffusion, config: DictConfig, out: Path, *, key: str = "out", format: str = "safetensors",
    place: str | None = None, license: str = "mit", raw: bool = False, half: bool = False,
) -> None:  # fmt: skip
    """Write the model of a checkpoint, whose config that is, as the new folder `out`.

    place: what others will load it by; None: the folder's name. half: weights as float16, buffers as they are. format:
    diffusers adds its scheduler's config. UserError where the folder is there already, which `key` names, or a weight
    does not fit into float16.
    """
    scheduler = schedulers.config(model) if format == "diffusers" else None
    state, told = _state(model, half), checkpoint.facts
    facts = {
        VERSION: __version__,
        **told,
        "raw": raw,
        "half": half,
        CONFIG: exports.portable(OmegaConf.to_container(config, resolve=True)),  # type: ignore[arg-type]
    }
    with exports.new_folder(out, key) as folder:
        exports.write(folder, state, facts)
        if scheduler is not None:
            with atomic(folder / "scheduler" / "scheduler_config.json") as temporary:
                temporary.write_text(json.dumps(scheduler, indent=2) + "\n")
        _pictures(model, folder)
        card = dict(
            name=f"{config.dataset.name}-{type(model).__name__.lower()}-{told['identity']}", place=place or out.name,
            license=license, weights=_weights(raw, half), half=half, scheduler=scheduler is not None, version=__version__,
            steps=checkpoint.step, identity=told["identity"], trust=checkpoint.trust, command=_command(checkpoint),
            **_model(model), **_data(config), **_numbers(checkpoint, model, raw),
        )  # fmt: skip
        write_text(folder / exports.CARD, _card(card))


def _state(model: Diffusion, half: bool) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    if half:
        for name, value in model.named_parameters():
            state[name] = value.detach().half()
            if not state[name].isfinite().all():
                raise UserError(f"half=true: {name} has weights that float16 does not reach: leave half out")
    return state


def _weights(raw: bool, half: bool) -> str:
    return f"{'the last' if raw else 'averaged'} weights{' in half precision' if half else ''}"


def _pictures(model: Diffusion, folder: Path) -> None:
    way = model.sample(PerImage(0, range(SAMPLES), model.device), keep=FRAMES)
    write_png(folder / "samples.png", model.space.decode(way.x0).cpu())
    write_sequences(folder / "sequences.png", way.states[:, :ROWS], model.space)


def _card(facts: dict[str, Any]) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(TEMPLATE.read_text()).render(
        n=SAMPLES, pictures={"samples": "samples.png", "sequences": "sequences.png"}, **facts
    )
    return text.rstrip() + "\n"


def _model(model: Diffusion) -> dict[str, Any]:
    about = (type(model).__doc__ or type(model).__name__).strip().splitlines()[0].rstrip(".:")
    return {
        "model": type(model).__name__, "about": f"**{type(model).__name__}**: {about}.", "T": model.degradation.T,
        "shape": "x".join(map(str, model.image_shape)), "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def _data(config: DictConfig) -> dict[str, Any]:
    name = str(config.dataset.name)
    yaml = help.CONF / "dataset" / f"{name}.yaml"
    says = yaml.read_text().partition("\n")[0].removeprefix("# ") if yaml.is_file() else "images of the author's own."
    return {"data": name, "data_says": says, "batch_size": config.batch_size, "seed": config.seed}


def _command(checkpoint: Checkpoint) -> str | None:
    """What trained it, as status.json beside it says, without what has no bearing on the outcome; None where none does."""
    try:
        status = read_status(checkpoint.path.parent)
    except UserError:
        return None
    if status.get("identity") != checkpoint.facts["identity"]:
        return None
    pairs = [text.partition("=") for text in status.get("command", [])]
    return " ".join(
        f"{name}={exports.portable_value(value)}"
        for name, _, value in pairs
        if not identity.incidental(name.lstrip("+~"))
    )


def _numbers(checkpoint: Checkpoint, model: Diffusion, raw: bool) -> dict[str, Any]:
    """What vcd.evaluate has measured of this very file, sampled as it is by itself; nothing where it has not."""
    path = results.place(checkpoint.path)
    measured = results.read(path) if path.is_file() else None
    prior = getattr(model, "prior", None)
    asked = {"sha256": checkpoint.sha256, "raw": raw, "sampler": type(model.sampler).__name__,
             "prior": None if prior is None else type(prior).__name__, "delta": model.sampler.delta}  # fmt: skip
    if measured is None or any(measured["subject"].get(name) != value for name, value in asked.items()):
        return {"numbers": {}, "protocols": {}, "measured": None}
    protocols = defaultdict(list)
    for name, number in measured["metrics"].items():
        protocols[", ".join(f"{key} {value}" for key, value in number["protocol"].items())].append(name)
    return {"numbers": measured["metrics"], "protocols": dict(protocols), "measured": measured}
