"""The first picture of the README: how images are made, and what an exchange of latents does to real ones.

python scripts/first_picture.py CKPT OUT.png    of a run on MNIST; bash scripts/pictures.sh mnist trains one
"""

import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure

import vcd
from vcd import style
from vcd.images import grid

MADE = [0, 1, 4, 9, 7, 13]  # of seed 0: chosen, for their variety
PAIRS = [0, 1, 5, 6, 8, 11]  # of held-out images, the first twelve with the next twelve: chosen likewise


def main(ckpt: str, out: str) -> None:
    model = vcd.load(ckpt)
    levels, states = model.sequences(MADE, seed=0)
    with initialize_config_dir(str(vcd.CONF), version_base="1.3"):
        cfg = compose("degrade", [f"dataset={model.config.dataset.name}"])
    images = instantiate(cfg.dataset.source).load("val").batch(torch.arange(24))
    a, b = model.encode(images[PAIRS]), model.encode(images[[i + 12 for i in PAIRS]])
    T = model.T
    exchanged = torch.stack([model.exchange(a, b, range(t, T + 1)) for t in range(T + 1, 0, -1)], 1)
    with style.styled():
        figure = Figure(figsize=(style.PAGE, 3.15))
        left, right = figure.subplots(1, 2)
        _sheet(left, states, [f"$x_{{{t}}}$" for t in levels], "Made: from noise to a digit")
        names = ["A", f"{T}", *(f"{T}–{t}" for t in range(T - 1, 1, -1)), "B"]
        _sheet(right, exchanged, names, "Steered: A with B's latents at steps t")
        style.save(figure, Path(out), bbox_inches="tight")


def _sheet(axis, images, titles, above) -> None:
    picture = grid(images.flatten(0, 1), columns=images.shape[1], scale=2)
    axis.imshow(picture, interpolation="nearest")
    axis.set_xticks([(i + 0.5) * picture.width / len(titles) for i in range(len(titles))], titles)
    axis.xaxis.tick_top()
    axis.set(yticks=[])
    axis.set_title(above)
    style.bare(axis)


if __name__ == "__main__":
    main(*sys.argv[1:])
