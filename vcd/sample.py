"""python -m vcd.sample ckpt=...: images from a checkpoint alone, without data set or run folder."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vcd.cli import entry, listed
from vcd.errors import UserError
from vcd.evaluate import named, replaced
from vcd.files import check_writable, explained

if TYPE_CHECKING:
    import numpy as np

    from vcd.models.base import Diffusion

log = logging.getLogger("vcd")


@entry("sample")
def main(cfg: DictConfig) -> None:
    """Draw `n` images; write samples.npy (uint8 NHWC), PNGs, a grid, the sequences, and sample.json, which says how."""
    from vcd import checkpoints
    from vcd.callbacks import compiled

    if cfg.ckpt is None:
        raise UserError("say which checkpoint to sample from: ckpt=runs/.../last.ckpt")
    parts = replaced(cfg)
    checkpoint = checkpoints.Checkpoint(str(cfg.ckpt), listed(cfg.trust))
    model, _ = checkpoint.model(checkpoints.device_of(cfg.device), raw=cfg.raw, parts=parts)
    if cfg.compile:
        compiled.compile_in_place(model, compiled.backend_of(cfg.compile, "compile"), "compile")
    usual = Path(str(cfg.ckpt)).parent / f"samples-seed{cfg.seed}-n{cfg.n}{named(parts, cfg.raw)}"
    out = Path(str(cfg.out)) if cfg.out else usual
    check_writable(out, "out", folder=True)
    if out.exists() and any(out.iterdir()) and not (out / "sample.json").exists():
        raise UserError(f"out={out} holds files that are not samples; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with explained(out / "samples.npy"):
        written = write(model, cfg, out, sha256=checkpoint.sha256)
    for name, path in written.items():
        log.info("%-10s %s", name, path)


def write(model: "Diffusion", cfg: DictConfig, out: Path, *, sha256: str) -> dict[str, Path]:
    """Sample in batches, never holding more than one batch of states, and write everything into `out`.

    NotFinite where an image is not finite.
    """
    import shutil

    import torch
    from PIL import Image
    from tqdm import tqdm

    from vcd import labels
    from vcd.callbacks.pictures import FRAMES, write_sequences
    from vcd.images import write_png
    from vcd.randomness import PerImage

    out.mkdir(parents=True, exist_ok=True)
    label: Any = OmegaConf.to_container(cfg.label) if OmegaConf.is_config(cfg.label) else cfg.label
    facts = {"ckpt": str(cfg.ckpt), "sha256": sha256, "n": cfg.n, "seed": cfg.seed, "label": label, "raw": cfg.raw,
             "prior": type(getattr(model, "prior", None)).__name__, "sampler": type(model.sampler).__name__,
             "delta": model.sampler.delta, "temperature": getattr(model, "temperature", None),
             "guidance": model.guess.weight if model.guess is not None else None}  # fmt: skip
    _say(out, facts, finished=False)
    shutil.rmtree(out / "png", ignore_errors=True)  # more images than this time, perhaps
    written = {}
    array, sequences = None, []
    for first in tqdm(range(0, cfg.n, cfg.batch_size), desc="sampling", unit="batch"):
        indices = range(first, min(first + cfg.batch_size, cfg.n))
        keep = FRAMES if first < cfg.rows else 2  # states to keep: never thousands
        condition = labels.condition(model, label, indices)
        trajectory = model.sample(PerImage(cfg.seed, indices, model.device), condition=condition, keep=keep)
        images = model.space.decode(trajectory.x0).cpu()
        pixels = images.permute(0, 2, 3, 1).numpy()
        if array is None:
            array = _allocated(out / "samples.npy", (cfg.n, *pixels.shape[1:]))
            written["array"] = out / "samples.npy"
        if first < cfg.rows:
            sequences.append(trajectory.states[:, : cfg.rows - first].cpu())
        array[indices.start : indices.stop] = pixels
        if cfg.png:
            (out / "png").mkdir(exist_ok=True)
            for i, image in zip(indices, pixels, strict=True):
                Image.fromarray(image.squeeze()).save(out / "png" / f"{i:06d}.png")
            written["images"] = out / "png"
    assert array is not None
    array.flush()
    written["grid"] = write_png(out / "samples.png", torch.from_numpy(array[:256]).permute(0, 3, 1, 2))
    if sequences:
        written["sequences"] = write_sequences(out / "sequences.png", torch.cat(sequences, dim=1), model.space)
    _say(out, facts, finished=True)
    return written


def _allocated(path: Path, shape: tuple[int, ...]) -> "np.memmap":
    """The mapped file, with its room on the disk: to run out of it while writing into a map ends the process."""
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # not on every system
        with open(path, "rb+") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError:
                path.unlink()
                raise
    return array


def _say(out: Path, facts: dict[str, Any], *, finished: bool) -> None:
    """sample.json: it also marks the folder as one that may be written over, however far the sampling came."""
    import json

    from vcd.files import write_text

    write_text(out / "sample.json", json.dumps({**facts, "finished": finished}, indent=2) + "\n")


if __name__ == "__main__":
    main()
