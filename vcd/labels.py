"""The class that is asked for, of models that were trained with labels."""

from collections.abc import Sequence

import torch

from vcd.batch import UNCONDITIONAL, Condition
from vcd.errors import UserError
from vcd.models.base import Diffusion


def condition(model: Diffusion, label: int | Sequence[int] | None, indices: Sequence[int]) -> Condition:
    """What the network is told of the images at `indices`: one class for all, or several in turn, image i the i-th.

    UserError where the model knows no labels, or not these, or has latents: these carry the class, and win.
    """
    if label is None:
        return UNCONDITIONAL
    asked = [label] if isinstance(label, int) else [int(one) for one in label]
    if model.classes is None:
        raise UserError(
            "label=...: this model knows no labels: train with network.unet.classes=10, the classes of the data"
        )
    if model.has_latents:
        raise UserError(
            f"label=...: the latents of a {type(model).__name__} decide what an image shows, whatever label it is told: "
            "sample by label with a model without latents, such as model=ddpm"
        )
    if wrong := [one for one in asked if not 0 <= one < model.classes]:
        raise UserError(f"label={wrong[0]}: this model knows the classes 0 to {model.classes - 1}")
    if not asked:
        raise UserError("label=[] is empty: give a class, or several")
    return Condition(label=torch.tensor([asked[i % len(asked)] for i in indices], device=model.device))


def check(model: Diffusion, classes: int) -> None:
    """UserError where the data has labels that the network has no place for."""
    if model.classes is not None and model.classes < classes:
        raise UserError(
            f"network.unet.classes={model.classes}, and the data has {classes} classes: set network.unet.classes={classes}"
        )
