"""What each step contributes: spectra, KL in bits, and in which frequencies exchanging it changes the image."""

import logging
from collections.abc import Mapping
from pathlib import Path

from vcd import figures, spectra
from vcd.models.base import Diffusion
from vcd.request import Request, steerable, table

log = logging.getLogger("vcd")
HEADER = (
    "model", "t", "kl_bits", "changed_energy", "mean_frequency", "cycles_per_image", "power", "share_of_change",
)  # fmt: skip


def run(models: Mapping[str, Diffusion], request: Request, out: Path) -> list[Path]:
    blocks, rows = [], []
    for name, model in steerable(models).items():
        b = spectra.measure(model, *request.pair(model))
        blocks.append((name, b))
        for i, t in enumerate(b.levels):
            log.info("%s t=%d: %.2f bits; exchanging it changes %.3g per image, mean frequency %.2f cycles per image",
                     name, t, b.kl_bits[i], b.energy[i].sum(), b.centroid[i])  # fmt: skip
            values = zip(b.power[i].tolist(), b.share[i].tolist(), strict=True)
            rows += [(name, t, f"{b.kl_bits[i]:.4f}", f"{b.energy[i].sum():.6g}", f"{b.centroid[i]:.4f}", f, f"{p:.6g}", f"{s:.6g}")
                     for f, (p, s) in enumerate(values)]  # fmt: skip
    figures.bands(out / "bands.png", blocks)
    return [out / "bands.png", table(out / "bands.csv", HEADER, rows)]
