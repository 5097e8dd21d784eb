"""python -m vcd.restore ckpt=... images=photo.png: undo a degradation, by every way that the model has."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vcd.cli import entry, listed
from vcd.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from vcd.models.base import Diffusion

log = logging.getLogger("vcd")
SHOWN = 16  # images on the sheet


@entry("restore")
def main(cfg: DictConfig) -> None:
    """Restore images; write each as a PNG, a sheet of all, and restore.csv: PSNR, SSIM and consistency."""
    from vcd import checkpoints, restoring
    from vcd.data import own
    from vcd.files import check_writable, write_text
    from vcd.quiet import quiet
    from vcd.randomness import PerImage

    quiet()
    if cfg.ckpt is None:
        raise UserError("say which checkpoint restores: ckpt=runs/.../last.ckpt")
    if cfg.images is None:
        raise UserError("say what to restore: images=photo.png, a folder or a zip")
    out = Path(str(cfg.out)) if cfg.out else Path(str(cfg.ckpt)).parent / "restored"
    check_writable(out, "out", folder=True)
    model, run = checkpoints.load(str(cfg.ckpt), checkpoints.device_of(cfg.device), cfg.raw, trust=listed(cfg.trust))
    if cfg.get("degradation") is not None:
        _exchange_degradation(model, cfg, run)
    D = model.degradation
    level = D.T if cfg.level is None else cfg.level
    if not isinstance(level, int) or not 1 <= level <= D.T:
        raise UserError(f"level={level}: choose from 1 (hardly degraded) to {D.T}, the last level of this checkpoint")
    places = OmegaConf.to_container(cfg.images) if OmegaConf.is_config(cfg.images) else cfg.images
    places = [str(place) for place in places] if isinstance(places, list) else str(places)
    channels, size, _ = model.image_shape
    given = model.space.encode(own.read(places, size=size, channels=channels, key="images").to(model.device))

    randomness = PerImage(cfg.seed, range(len(given)), model.device)
    x_t, x0, eps = (given, None, None) if cfg.degraded else _degrade(model, given, level, randomness.take())
    found = _chosen(restoring.ways(model, eps), cfg.ways, type(model).__name__)
    estimates: dict[str, Tensor] = {}
    for way in found:
        for k in range(cfg.samples if model.has_latents else 1):
            draw = PerImage(cfg.seed + 1 + k, range(len(given)), model.device)
            name = f"{way}-{k + 1}" if model.has_latents and cfg.samples > 1 else way
            estimates[name] = restoring.restore(model, way, x_t, level, draw, eps)
    out.mkdir(parents=True, exist_ok=True)
    rows = _table(model, estimates, x_t, x0, eps, level)
    write_text(out / "restore.csv", "\n".join(",".join(row) for row in rows) + "\n")
    _pictures(model, out, estimates, x_t, x0)
    _sheet(model, out / "restore.png", found, estimates, x_t, x0)
    for name, *means in _means(rows):
        log.info("%-16s %s", name, "   ".join(means))
    for name in ("restore.png", "restore.csv", "png"):
        log.info("%-16s %s", "written", out / name)


def _exchange_degradation(model: "Diffusion", cfg: DictConfig, run: DictConfig) -> None:
    """The degradation asked for, where the network has learned to undo its kind."""
    from hydra.utils import instantiate

    asked = OmegaConf.create(OmegaConf.to_container(run))
    asked.degradation = OmegaConf.to_container(cfg.degradation)
    try:
        D = instantiate(asked.degradation).to(model.device)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"degradation: it cannot be built for this checkpoint ({str(error).splitlines()[0]})"
        ) from error
    known = model.degradation
    kind = [type(module) for module in D.modules()]
    if kind != [type(module) for module in known.modules()] or D.T != known.T:
        raise UserError(
            f"this checkpoint learned to undo {type(known).__name__} of {known.T} levels, not {type(D).__name__} of {D.T}: a "
            "network does not know what another degradation lost; leave `degradation` out, or train with it"
        )
    log.warning("the settings of the degradation are not those of training: expect less of the restoration")
    model.degradation = D


def _degrade(model: "Diffusion", x0: "Tensor", level: int, randomness: Any) -> "tuple[Tensor, Tensor, Tensor | None]":
    """The images at `level`, the images, and what was drawn."""
    import torch

    eps = model.degradation.draw(x0, randomness)
    return model.degradation(x0, torch.full((len(x0),), level, device=x0.device), eps), x0, eps


def _chosen(ways: dict[str, Any], asked: Any, name: str) -> list[str]:
    """The ways to take; UserError for one that the model does not have."""
    if asked is None:
        return list(ways)
    chosen = [asked] if isinstance(asked, str) else list(asked)
    if missing := [way for way in chosen if way not in ways]:
        raise UserError(f"ways: this {name} cannot restore by {', '.join(map(str, missing))}; it has {', '.join(ways)}")
    return chosen


def _table(
    model: "Diffusion",
    estimates: "dict[str, Tensor]",
    x_t: "Tensor",
    x0: "Tensor | None",
    eps: "Tensor | None",
    level: int,
) -> list[list[str]]:
    """One row per image and estimate, the degraded image first; empty where a number cannot be known."""
    from vcd.metrics.fidelity import fidelity
    from vcd.restoring import consistency

    rows = [["way", "image", "psnr_db", "ssim", "consistency_rms"]]
    decode = model.space.decode
    for name, x in {"degraded": x_t, **estimates}.items():
        quality = None if x0 is None else fidelity(decode(x).cpu(), decode(x0).cpu())
        error = None if name == "degraded" else consistency(model.degradation, x, x_t, level, eps)
        for i in range(len(x)):
            numbers = [None if quality is None else quality[key][i] for key in ("psnr", "ssim")]
            numbers.append(None if error is None else error[i])
            rows.append([name, str(i), *("" if n is None else f"{n:.5g}" for n in numbers)])
    return rows


def _means(rows: list[list[str]]) -> list[list[str]]:
    """Of every way: its name and the means over images, in words."""
    header, *body = rows
    lines = []
    for name in dict.fromkeys(row[0] for row in body):
        line = [name]
        for column in range(2, len(header)):
            values = [float(row[column]) for row in body if row[0] == name and row[column]]
            if values:
                line.append(f"{header[column]} {sum(values) / len(values):.4g}")
        lines.append(line)
    return lines


def _pictures(
    model: "Diffusion", out: Path, estimates: "dict[str, Tensor]", x_t: "Tensor", x0: "Tensor | None"
) -> None:
    """Every image as a PNG of its own: png/WAY-000.png."""
    import shutil

    from PIL import Image

    shutil.rmtree(out / "png", ignore_errors=True)  # more images than this time, perhaps
    (out / "png").mkdir()
    true = {} if x0 is None else {"true": x0}
    for name, x in {"degraded": x_t, **true, **estimates}.items():
        for i, image in enumerate(model.space.decode(x).cpu().permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image.squeeze()).save(out / "png" / f"{name}-{i:03d}.png")


def _sheet(
    model: "Diffusion", path: Path, ways: list[str], estimates: "dict[str, Tensor]", x_t: "Tensor", x0: "Tensor | None"
) -> None:
    """One row per image: degraded, every estimate, the spread of the samples of a way, the true image where it is known."""
    import torch

    from vcd.figures import sheet

    true = {} if x0 is None else {"true": x0}
    seen = {name: model.space.decode(x[:SHOWN]).cpu() for name, x in {"degraded": x_t, **estimates, **true}.items()}
    columns = {name: seen[name] for name in ("degraded", *estimates)}
    for way in ways:
        samples = [x.float() / 127.5 for name, x in seen.items() if name.startswith(f"{way}-")]
        if len(samples) > 1:
            spread = torch.stack(samples).std(0)
            most = spread.max().clamp(min=1e-6)
            columns[f"spread\n(white: {most:.2g})"] = (255 * spread / most).round().byte()
    images = torch.stack([*columns.values(), *(seen[name] for name in true)], 1)  # (images, columns, c, h, w)
    titles = [name.replace("_", " ").replace("algorithm", "alg.") for name in (*columns, *true)]
    sheet(path, [("", images)], titles)


if __name__ == "__main__":
    main()
