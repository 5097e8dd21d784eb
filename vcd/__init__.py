"""Variational Cold Diffusion: diffusion with any degradation, steered by variational latents.

    model = vcd.load("digits")  # or "runs/.../last.ckpt"
    images = model.sample(16, seed=0)

The names below are imported when they are first asked for, so that `import vcd` takes no time; their types are in
`__init__.pyi`.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "load": "vcd.api",
    "Trained": "vcd.api",
    "Diffusion": "vcd.models.base",
    "VCD": "vcd.models.vcd",
    "VWD": "vcd.models.vwd",
    "Degradation": "vcd.degradations.base",
    "DegradationDataModule": "vcd.data.datamodule",
    "Digits": "vcd.data.digits",
    "Black": "vcd.starts",
    "UNet": "vcd.networks.unet",
    "Encoder": "vcd.networks.encoder",
    "UserError": "vcd.errors",
    "CONF": "vcd.help",
}  # fmt: skip
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vcd' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
