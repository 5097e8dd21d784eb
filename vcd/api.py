"""A trained model from Python: images in, images out. What the commands do, they do with the same parts.

Images are bytes, uint8 (n, channels, height, width), on the CPU. Image i is a function of (checkpoint, seed, i), up to
rounding. Where images are given, files will do as well: a path, several, a folder or a zip, brought to the model's size.
"""

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path as Folder
from typing import final

import torch
from jaxtyping import UInt8
from omegaconf import DictConfig
from torch import Tensor

from vcd import checkpoints, hub, labels, restoring, steering
from vcd.data import own
from vcd.errors import UserError
from vcd.models.base import Diffusion
from vcd.randomness import PerImage
from vcd.samplers import Sampler
from vcd.steering import Path

Images = UInt8[Tensor, "n c h w"]
File = str | os.PathLike[str]
Given = Tensor | File | Sequence[File]  # images as bytes, or files of them
Label = int | Sequence[int] | None
BATCH = 256  # images at a time, as in vcd.sample


def load(
    path: File, device: str = "auto", *, trust: str | Sequence[str] = (), raw: bool = False, revision: str | None = None,
    token: str | bool | None = None,
) -> "Trained":  # fmt: skip
    """The model of a checkpoint, such as last.ckpt of a run folder, with its averaged weights, ready to use.

    path: a checkpoint, a folder that `vcd export` wrote, the name of a model that comes with vcd, "digits", or, where it is
    none of them, user/name on the Hugging Face Hub, of this revision, with this token. device: auto, a GPU where there is
    one; cpu, cuda, cuda:1, ... trust: your own modules that the checkpoint may name; their code then runs. raw: the last
    weights instead of the averaged ones. UserError where it is missing, damaged or not a model of vcd.

    Examples:
        >>> model = vcd.load("digits")
        >>> model.sample(4, seed=0).shape  # (n, channels, height, width), uint8
        torch.Size([4, 1, 8, 8])
    """
    found = hub.find(os.fspath(path), revision=revision, token=token)
    checkpoint = checkpoints.Checkpoint(found, [trust] if isinstance(trust, str) else list(trust))
    model, config = checkpoint.model(checkpoints.device_of(device), raw=raw)
    return Trained(model, config, checkpoint, raw)


@final
class Trained:
    """A trained model and what can be done with it. `model` is the LightningModule, `config` that of its run, if any.

    Examples:
        >>> model = vcd.load("digits")
        >>> images = model.sample(4, seed=0)
        >>> torch.equal(images[:2], model.decode(model.draw(2, seed=0)))  # by way of their latents
        True
        >>> mixed = model.exchange(images[:2], images[2:], levels=model.levels[:2])
        >>> restored = model.restore(model.degrade(images, level=2), level=2)
    """

    def __init__(
        self, model: Diffusion, config: DictConfig | None = None, checkpoint: checkpoints.Checkpoint | None = None,
        raw: bool = False,
    ):  # fmt: skip
        self.model, self.config = model.eval(), config
        self._checkpoint, self._raw = checkpoint, raw

    @classmethod
    def from_pretrained(cls, path: File, **options: object) -> "Trained":
        """`vcd.load`, by the name that users of the Hugging Face Hub look for."""
        return load(path, **options)  # type: ignore[arg-type]  # it says which there are

    def __repr__(self) -> str:
        c, h, w = self.model.image_shape
        return f"Trained({type(self.model).__name__}, T={self.T}, {c}x{h}x{w}, on {self.model.device})"

    @property
    def T(self) -> int:
        """The last level: T is fully degraded, 0 clean."""
        return self.model.degradation.T

    @property
    def levels(self) -> list[int]:
        """The levels that sampling visits, T first, without 0: those at which a step takes a latent."""
        return steering.levels_of(self.model)

    # --- unconditional ------------------------------------------------------------------------------------------------

    def sample(
        self, n: int | Sequence[int] = 16, *, seed: int = 0, label: Label = None, steps: int | None = None,
        sampler: Sampler | None = None, temperature: float | None = None, batch: int = BATCH,
    ) -> Images:  # fmt: skip
        """Images: the first n of this seed, or those at the indices n. Those of `vcd sample` for the same seed.

        label: a class, or several in turn, of a model that was trained with `network.unet.classes`; None: any. steps: how
        many levels are visited; None: as the run has it. sampler: another one than the run's. temperature: spread of the
        latents, below 1 the more typical; None: the run's. batch: images at a time. UserError where the model knows no such
        label, has no latents or cannot be asked in so many steps; NotFinite where an image is not finite.
        """
        images, done = [], 0
        with self._sampling(steps, sampler, temperature) as model:
            for some in _batches(n, batch):
                told = labels.condition(model, label, range(done, done + len(some)))
                x0 = model.sample(PerImage(seed, some, model.device), condition=told, keep=2).x0
                images.append(model.space.decode(x0).cpu())
                done += len(some)
        return torch.cat(images)

    def sequences(
        self, n: int | Sequence[int] = 8, *, seed: int = 0, label: Label = None, frames: int | None = None,
        steps: int | None = None, sampler: Sampler | None = None,
    ) -> tuple[list[int], UInt8[Tensor, "n k c h w"]]:  # fmt: skip
        """The way from x_T to x_0 of the images that `sample` gives: k levels, T first, and every image at each of them.

        frames: about how many levels, evenly spread; None: all that are visited.
        """
        with self._sampling(steps, sampler) as model:
            indices = _indices(n)
            told = labels.condition(model, label, range(len(indices)))
            way = model.sample(PerImage(seed, indices, model.device), condition=told, keep=frames)
            states = torch.stack([model.space.decode(x).cpu() for x in way.states.flip(0)], 1)
        return way.levels.flip(0).tolist(), states

    # --- latents ------------------------------------------------------------------------------------------------------

    def draw(self, n: int | Sequence[int] = 16, *, seed: int = 0, temperature: float | None = None) -> Path:
        """The paths of generated images: `decode` makes them those of `sample`.

        temperature: spread of the latents, 0 the most typical, above 1 bolder; None: that of `sample`. UserError for a model
        without latents.
        """
        model = steering.variational(self.model)
        return steering.draw(model, PerImage(seed, _indices(n), model.device), temperature)

    def encode(self, images: Given, *, seed: int = 0, temperature: float = 0.0) -> Path:
        """The paths of images: x_T and a latent per step, from the encoder at the states that decoding reaches.

        temperature: 0 takes the posterior's mean, 1 a sample of it. UserError for a model without latents.
        """
        model, x0 = steering.variational(self.model), self._x0(images)
        return steering.encode(model, x0, PerImage(seed, range(len(x0)), model.device), temperature)[0]

    def decode(self, path: Path) -> Images:
        """The images of paths."""
        model = steering.variational(self.model)
        return model.space.decode(steering.decode(model, path, keep=2).x0).cpu()

    def exchange(
        self, target: Path | Given, source: Path | Given, levels: int | Sequence[int], *,
        place: Sequence[int | float] | None = None,
    ) -> Images:  # fmt: skip
        """The targets with the sources' latents at `levels`, in pairs; level T brings the source's x_T along.

        target, source: images, which are encoded, or paths. place: (top, left, bottom, right) in fractions of the image:
        only there, for a model that was trained with `injection=spatial`. UserError where the pairs do not match, or a
        level or the place does not exist.
        """
        a, b = (given if isinstance(given, Path) else self.encode(given) for given in (target, source))
        if len(a) != len(b):
            raise UserError(f"exchange: {len(a)} targets and {len(b)} sources: give as many of each")
        chosen = [levels] if isinstance(levels, int) else list(levels)
        if wrong := [t for t in chosen if not 1 <= t <= self.T]:
            raise UserError(f"exchange: there is no level {wrong[0]}; choose from 1 to T={self.T}")
        units = None if place is None else steering.at_place(steering.variational(self.model), place)
        return self.decode(steering.exchange(a, replace(b, noise=a.noise), chosen, units))

    # --- restoration --------------------------------------------------------------------------------------------------

    @property
    def ways(self) -> list[str]:
        """How the model can restore: algorithm_1 and algorithm_2 of cold diffusion, direct, its own sampler."""
        return list(restoring.ways(self.model))

    def degrade(self, images: Given, level: int | None = None, *, seed: int = 0) -> Images:
        """The images at `level` of the degradation that the model learned to undo; None: T."""
        x0 = self._x0(images)
        t = torch.full((len(x0),), self._level(level), device=x0.device)
        eps = self.model.degradation.draw(x0, PerImage(seed, range(len(x0)), x0.device))
        return self.model.space.decode(self.model.degradation(x0, t, eps)).cpu()

    def restore(self, images: Given, level: int | None = None, *, way: str | None = None, seed: int = 0) -> Images:
        """Degraded images, restored from `level` (None: T), as `vcd restore degraded=true` does.

        way: one of `ways`; None: "own" where the model has it, else "direct". A model with latents draws them from its
        prior: another seed makes another restoration. UserError for a way that the model does not have.
        """
        x_t, model = self._x0(images), self.model
        found = self.ways
        way = ("own" if "own" in found else "direct") if way is None else way
        if way not in found:
            raise UserError(f"way={way}: this {type(model).__name__} cannot restore so; it has {', '.join(found)}")
        randomness = PerImage(seed, range(len(x_t)), model.device)
        return model.space.decode(restoring.restore(model, way, x_t, self._level(level), randomness)).cpu()

    # --- sharing ------------------------------------------------------------------------------------------------------

    def export(self, folder: File, *, license: str = "mit", half: bool = False, format: str = "safetensors") -> Folder:
        """Write the model as a new folder that `load` takes, with a model card: what `vcd export` writes.

        half: weights as float16. format: safetensors, or diffusers, which adds its scheduler's config. UserError where the
        folder holds something, or where vcd.train did not train the model: then nothing says how it is built.
        """
        out = Folder(folder)
        self._export(out, license=license, half=half, format=format)
        return out

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, revision: str | None = None,
        commit_message: str = hub.MESSAGE, license: str = "mit", half: bool = False, format: str = "safetensors",
    ) -> str:  # fmt: skip
        """Export to user/name on the Hugging Face Hub, in one commit, and return its address; `load` then takes the name.

        token: None: that of `hf auth login`. UserError where that fails, and as in `export`.
        """
        with tempfile.TemporaryDirectory() as scratch:
            out = Folder(scratch) / "model"
            self._export(out, place=repo_id, license=license, half=half, format=format)
            return hub.push(out, repo_id, private=private, token=token, revision=revision, message=commit_message)

    def _export(self, out: Folder, *, license: str, half: bool, format: str, place: str | None = None) -> None:
        if self._checkpoint is None or self.config is None:
            raise UserError(
                "only a model that vcd.load has read can be shared: a checkpoint of vcd train says how it is built"
            )
        from vcd import sharing  # and what draws pictures

        sharing.export(self._checkpoint, self.model, self.config, out, key="folder", place=place, license=license,
                       half=half, format=format, raw=self._raw)  # fmt: skip

    # --- what is given ------------------------------------------------------------------------------------------------

    def read(self, files: File | Sequence[File]) -> Images:
        """Images from files, brought to the model's size and channels; UserError, once, for all that cannot be read."""
        channels, size, _ = self.model.image_shape
        places = [os.fspath(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
        return own.read(places, size=size, channels=channels, key="images")

    def _x0(self, images: Given) -> Tensor:
        """x of images, where the model lives."""
        given = images if isinstance(images, Tensor) else self.read(images)
        shape = self.model.image_shape
        if given.dtype != torch.uint8 or given.ndim != 4 or tuple(given.shape[1:]) != shape:
            raise UserError(
                f"images are {given.dtype} of shape {tuple(given.shape)}: this model takes torch.uint8 of shape "
                f"(n, {', '.join(map(str, shape))}), or files"
            )
        return self.model.space.encode(given.to(self.model.device))

    def _level(self, level: int | None) -> int:
        level = self.T if level is None else level
        if not 1 <= level <= self.T:
            raise UserError(f"level={level}: choose from 1 (hardly degraded) to T={self.T}")
        return level

    @contextmanager
    def _sampling(
        self, steps: int | None, sampler: Sampler | None, temperature: float | None = None
    ) -> Iterator[Diffusion]:
        """The model, meanwhile with this sampler in so many steps, and with latents of this temperature."""
        model, before = self.model, self.model.sampler
        chosen = copy.copy(before if sampler is None else sampler)
        if steps is not None:
            if steps < 1:
                raise UserError(f"steps={steps} must be at least 1")
            chosen.steps = steps
        chosen.check(model.degradation, model.prediction)
        spread = nullcontext() if temperature is None else steering.variational(model).tempered(temperature)
        model.sampler = chosen
        try:
            with spread:
                yield model
        finally:
            model.sampler = before


def _indices(n: int | Sequence[int]) -> Sequence[int]:
    """Of images; UserError where there is none."""
    indices = range(n) if isinstance(n, int) else list(n)
    if not len(indices):
        raise UserError(f"n={n}: ask for one image at least")
    return indices


def _batches(n: int | Sequence[int], batch: int) -> Iterator[Sequence[int]]:
    indices = _indices(n)
    for first in range(0, len(indices), batch):
        yield indices[first : first + batch]
