"""Draw docs/restoration.png: test images degraded to level T and brought back by every way, from benchmarks/degradations.sh.

python benchmarks/restored.py runs/degradations docs/restoration.png
"""

import argparse
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vcd import checkpoints
from vcd.figures import sheet
from vcd.metrics.families.restoration import restored
from vcd.randomness import PerImage

WAYS = ("degraded", "algorithm_1", "algorithm_2", "direct")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    given = parser.parse_args()
    blocks = []
    for name in ("inpaint", "downsample", "deblur", "decolour"):
        model, run = checkpoints.load(given.runs / name / "last.ckpt")
        source = instantiate(OmegaConf.to_container(run.dataset.source, resolve=True))
        images = source.load("val").balanced(given.rows + 1)[1:]
        found = restored(model, model.space.encode(images), model.degradation.T, PerImage(0, range(len(images))))
        columns = [*(model.space.decode(found[way]) for way in WAYS), images]
        blocks.append((f"{name}\nfrom level {model.degradation.T}", torch.stack(columns, 1)))
    sheet(given.out, blocks, [*(way.replace("_", " ") for way in WAYS), "true"])
    print(given.out)
