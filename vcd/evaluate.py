"""python -m vcd.evaluate ckpt=... (or images=DIR): numbers that can be trusted, each with its floor and its protocol."""

import functools
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vcd.cli import entry, listed
from vcd.errors import NotFinite, UserError
from vcd.files import check_writable
from vcd.metrics.results import place

if TYPE_CHECKING:
    from torch import Tensor

    from vcd.checkpoints import Checkpoint
    from vcd.data.base import ImageData
    from vcd.metrics.extractor import Extractor
    from vcd.metrics.results import Number
    from vcd.models.base import Diffusion

log = logging.getLogger("vcd")
FEW = 2000  # below this, distances between distributions are mostly noise


@entry("evaluate")
def main(cfg: DictConfig) -> None:
    """Measure; print a table and write metrics.json with the provenance of every number."""
    from hydra.utils import instantiate

    from vcd import checkpoints, figures
    from vcd.metrics import family
    from vcd.metrics.evaluation import Evaluation, Once
    from vcd.metrics.results import Result, not_finite
    from vcd.quiet import quiet

    quiet()
    device = checkpoints.device_of(cfg.device)
    families = [family.find(name) for name in listed(cfg.metrics)]
    least = max((f.least_images for f in families), default=2)
    if cfg.n < least:
        raise UserError(f"n={cfg.n}: it must be at least {least}")
    parts = replaced(cfg)
    usual = place(Path(cfg.ckpt) if cfg.ckpt else None)
    out = Path(str(cfg.out)) if cfg.out else usual.with_stem(usual.stem + named(parts, cfg.raw))
    if not cfg.prefetch:
        check_writable(out, "out")
    checkpoint = None if cfg.ckpt is None else checkpoints.Checkpoint(cfg.ckpt, listed(cfg.trust))
    model = None if checkpoint is None else checkpoint.model(device, raw=cfg.raw, parts=parts)[0]
    if model is not None and model.space.lossy and any(f.needs_features for f in families):
        families.append(family.find("autoencoder"))  # the floor of the others
    data = Once(reference(cfg, None if checkpoint is None else checkpoint.config))
    asking = [f.name for f in families if f.needs_a_model]
    if not cfg.prefetch and model is None and (cfg.images is None or asking):
        without = f" and no {' or '.join(asking)}, which ask a model" if asking else ""
        raise UserError(f"say what to evaluate: ckpt=runs/.../last.ckpt, or images=DIR{without}")
    extractor = instantiate(cfg.extractor)

    @functools.cache
    def ready() -> "Extractor":
        return extractor.ready(data).to(device)

    if cfg.prefetch:
        log.info("everything is there: %s", ready().protocol)
        return
    _check_size(data, least)
    if any(f.needs_features for f in families):
        ready()  # before the sampling, for what is missing here
    images, subject = _subject(cfg, model, checkpoint, parts, data)
    if len(images) < least:
        what = (
            f"images={cfg.images} has"
            if cfg.images is not None
            else f"ckpt={cfg.ckpt}: of the finite samples there are"
        )
        raise UserError(f"{what} {len(images)}, and these metrics need at least {least}")
    _warn_of_few(len(images), len(data.load("val" if cfg.split == "train" else "train")))
    out.parent.mkdir(parents=True, exist_ok=True)
    evaluation = Evaluation(
        images=images, model=model, data=data, split=cfg.split, make_extractor=ready, out=out, seed=cfg.seed,
        cache=Path(cfg.data.root).expanduser() / "cache", restored=cfg.restored, levels=cfg.levels, device=device,
    )  # fmt: skip
    result = Result()
    for i, one in enumerate(families):
        log.info("[%d/%d] %s", i + 1, len(families), one.name)
        found = one.measure(evaluation)
        if one.needs_a_model and (odd := not_finite(found.numbers)):
            raise NotFinite(
                f"{one.name}: {', '.join(odd)} is not finite: the model diverges; try an earlier checkpoint"
            )
        result.add(found)
    if families and not result.numbers:
        raise UserError(f"metrics=[{','.join(listed(cfg.metrics))}]: there is none for this model")
    if odd := not_finite(result.numbers):
        log.warning("not finite: %s", ", ".join(odd))
    write(out, subject, result.plain())
    for line in table(result.numbers):
        log.info("%s", line)
    if (drawn := figures.evaluation(out.with_suffix(".png"), result.curves)) is not None:
        result.pictures.append(drawn)
    for name, path in [*(("picture", p) for p in result.pictures), ("metrics", out)]:
        log.info("%-10s %s", name, path)
    as_trained = not parts and not cfg.raw
    if cfg.ckpt and Path(cfg.ckpt).stem == "last" and as_trained:  # the summary is of the whole run
        from vcd.tracking import evaluated

        evaluated(Path(cfg.ckpt).parent, json.loads(out.read_text()))


def _check_size(data: "ImageData", least: int) -> None:
    for split in ("train", "val"):
        if (count := len(data.load(split))) < least:
            raise UserError(f"the {split} split of {data.name} has {count} images, and these metrics need at least "
                            f"{least}: take a larger data set, or metrics=[restoration,bound]")  # fmt: skip


def _warn_of_few(n: int, held_out: int) -> None:
    if n < FEW:
        log.warning("%d images are few: compare with the floor, and with numbers of the same n only", n)
    if n > held_out:
        log.warning("there are only %d images for the floor: it is measured with these, at a smaller n", held_out)


def replaced(cfg: DictConfig) -> dict[str, Any]:
    """What replaces parts of the model, as plain values: prior, sampler, delta, guidance and temperature of this command."""
    parts = {group: cfg[group] for group in ("prior", "sampler") if cfg.get(group) is not None}
    numbers = {"sampler.delta": cfg.delta, "guess.weight": cfg.guidance, "temperature": cfg.temperature}
    given = {name: value for name, value in numbers.items() if value is not None}
    return OmegaConf.to_container(OmegaConf.create({**parts, **given}))  # type: ignore[return-value]


def named(parts: dict[str, Any], raw: bool) -> str:
    """What is not as in the run, for names of files: `-ddim8-temperature0.8`; empty where everything is."""
    found = ["raw"] if raw else []
    for name, value in parts.items():
        if isinstance(value, dict):
            steps = value.get("steps") if name == "sampler" else None
            found.append(f"{value['_target_'].rpartition('.')[2].lower()}{steps or ''}")
        else:
            found.append(f"{'guided' if name == 'guess.weight' else name.rpartition('.')[2]}{value:g}")
    return "".join(f"-{name}" for name in found)


def reference(cfg: DictConfig, run: DictConfig | None) -> "ImageData":
    """The data set to compare with: the one named, or the run's own. UserError when the images do not fit."""
    from hydra.utils import instantiate

    from vcd import stored
    from vcd.data.base import ImageData

    own = cfg if cfg.get("dataset") is not None else run
    if own is None:
        raise UserError("say what to compare with: dataset=mnist, for instance")
    node = own.dataset
    source: Any = OmegaConf.to_container(node.source, resolve=True)
    if "root" in source:
        source["root"] = cfg.data.root
    if run is not None:
        for key in ("size", "channels"):
            if node[key] != run.dataset[key]:
                raise UserError(f"the checkpoint makes images of {key} {run.dataset[key]}, dataset={node.name} has "
                                f"{node[key]}: take dataset={run.dataset.name}")  # fmt: skip
        if node.name != run.dataset.name:
            log.warning("the checkpoint was trained on %s and is compared with %s", run.dataset.name, node.name)
    if own is cfg:
        return instantiate(source)
    return stored.Reader(f"ckpt={cfg.ckpt}", listed(cfg.trust)).make(source, ImageData, "dataset.source")


def _subject(
    cfg: DictConfig,
    model: "Diffusion | None",
    checkpoint: "Checkpoint | None",
    parts: dict[str, Any],
    data: "ImageData",
) -> tuple["Tensor", dict[str, Any]]:
    """The images, and where they come from."""
    from vcd.data import own
    from vcd.metrics import samples

    if cfg.images is not None or model is None or checkpoint is None:
        images = own.read(cfg.images, size=data.size, channels=data.channels, key="images")
        return images, {"images": str(Path(cfg.images).resolve()), "n": len(images)}
    drawn = samples.generate(model, checkpoint, n=cfg.n, seed=cfg.seed, batch_size=cfg.batch_size,
                             processes=cfg.processes, raw=cfg.raw, parts=parts)  # fmt: skip
    images, finite = drawn["images"], drawn["finite"]
    if not finite.all():
        log.warning("%d of %d samples are not finite: they are left out", (~finite).sum(), len(finite))
        images = images[finite]
    if by_others := cfg.raw and _fitted(model):
        log.warning("raw=true: the prior was fitted to latents of the averaged weights, not of these; prior=independent "
                    "is fitted to none")  # fmt: skip
    run, step = checkpoint.config, checkpoint.step
    seconds = drawn["seconds"].item()
    return images, {
        "ckpt": str(checkpoint.path.resolve()), "sha256": checkpoint.sha256, "model": type(model).__name__,
        "data": run.dataset.name, "degradation": type(model.degradation).__name__, "T": model.degradation.T,
        "sampler": type(model.sampler).__name__, "prior": type(model.prior).__name__ if hasattr(model, "prior") else None,
        "prior_fitted_to": "averaged weights" if by_others else None,
        "delta": model.sampler.delta, "temperature": getattr(model, "temperature", None),
        "guidance": model.guess.weight if model.guess is not None else None,
        "raw": cfg.raw, "training_seed": run.seed, "seed": cfg.seed, "n": cfg.n,
        "not_finite": int((~finite).sum()), "parameters": sum(p.numel() for p in model.parameters()), "steps": step,
        "images_seen": step * run.batch_size, "sampling_seconds": round(seconds, 3),
        "images_per_second": round(cfg.n / max(seconds, 1e-9), 3),
        "evaluations_per_sample": len(model.sampler.grid(model.degradation.T)) - 1,
    }  # fmt: skip


def _fitted(model: "Diffusion") -> bool:
    """Whether its prior holds what was fitted after training."""
    prior = getattr(model, "prior", None)
    return prior is not None and any(buffer.numel() for buffer in prior.buffers())


def write(out: Path, subject: dict[str, Any], result: dict[str, Any]) -> None:
    """metrics.json: the subject, the machine and the versions, and every number with its protocol."""
    import platform
    import time
    from importlib.metadata import version

    import torch

    from vcd import __version__
    from vcd.files import write_text

    packages = {name: version(name) for name in ("torch", "torchmetrics", "torch-fidelity", "scikit-learn")}
    machine = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    facts = {"schema": "vcd-metrics-1", "date": time.strftime("%Y-%m-%d"), "machine": machine,
             "versions": {"vcd": __version__, "python": platform.python_version(), **packages}, "subject": subject}  # fmt: skip
    write_text(out, json.dumps(_finite(facts | result), indent=2, allow_nan=False) + "\n")


def _finite(node: Any) -> Any:
    """The same with null for what is not finite: JSON knows neither NaN nor infinity."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def table(numbers: dict[str, "Number"]) -> list[str]:
    """Lines for the terminal: name, value, floor."""
    width = max((len(name) for name in numbers), default=6)
    lines = [f"{'metric':{width}} {'value':>11} {'real data':>11}   better"]
    for name, number in numbers.items():
        floor = "" if number.floor is None else f"{number.floor:11.5g}"
        lines.append(f"{name:{width}} {number.value:11.5g} {floor:>11}   {number.better} {number.unit}".rstrip())
    return lines


if __name__ == "__main__":
    main()
