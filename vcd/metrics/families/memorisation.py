"""Whether samples are copies of training images, and whether they cover the classes."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vcd.images import write_png
from vcd.metrics.evaluation import Comparison, Evaluation, some
from vcd.metrics.results import Number, Result
from vcd.spaces import to_float

NEEDS_FEATURES = True  # of labelled data: which class a sample is of
SHOWN = 10  # samples in the picture, those nearest to a training image


def measure(e: Evaluation) -> Result:
    """Distances of samples to their nearest training images, against those of test images; and the classes covered."""
    n, rows = e.n, some(len(e.test), e.n, seed=0)
    own, at = nearest(e.images, e.train.images, e.device)
    held, _ = nearest(e.test.batch(rows), e.train.images, e.device)
    protocol = e.protocol(Comparison("", "train", "val", rows), distance="root mean square over pixels in [-1, 1]")
    close = {**protocol, "nearer than": "the nearest 1 % of held-out images"}
    copies = (own <= held.quantile(0.01)).double().mean().item()
    result = Result(
        {
            f"nearest_train_{n}": Number(own.median().item(), "neither", held.median().item(), "", protocol),
            f"copies_{n}": Number(copies, "lower", 0.01, "", close),
        }
    )
    if len(e.reference.classes) > 1 and e.extractor.own_classes:
        result.add(_classes(e))
    shown = own.argsort()[:SHOWN]
    pairs = torch.cat([e.images[shown], e.train.batch(at[shown])])
    picture = e.out.with_name(f"nearest{e.out.stem.removeprefix('metrics')}.png")
    result.pictures.append(write_png(picture, pairs, columns=len(shown)))
    return result


def _classes(e: Evaluation) -> Result:
    """How far the shares of the classes, as the classifier sees them, are from those of the reference."""
    c, labels, names = e.comparisons[0], e.reference.labels, e.reference.classes
    own, held = e.features[1].argmax(1), e.features_of(c.other)[1][c.stand_ins].argmax(1)
    value, floor = (total_variation(seen, labels, len(names)) for seen in (own, held))
    number = Number(value, "lower", floor, "", e.protocol(c, **e.extractor.protocol))
    curve = {
        "names": list(names),
        "samples": own.bincount(minlength=len(names)).tolist(),
        "data": (labels.bincount(minlength=len(names)).double() / len(labels)).tolist(),
    }
    return Result({f"classes_tv_{e.n}": number}, {"classes": curve})


def nearest(
    images: UInt8[Tensor, "n c h w"],
    train: UInt8[Tensor, "m c h w"],
    device: torch.device | str = "cpu",
    chunk: int = 4096,
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """The root-mean-square distance of every image, in [-1, 1] units, to its nearest training image, and which that is."""
    x = to_float(images.to(device)).flatten(1)
    best, which = torch.full((len(x),), torch.inf, device=device), torch.zeros(len(x), dtype=torch.int64, device=device)
    for first in range(0, len(train), chunk):
        distance, at = torch.cdist(x, to_float(train[first : first + chunk].to(device)).flatten(1)).min(1)
        closer = distance < best
        best, which = torch.where(closer, distance, best), torch.where(closer, at + first, which)
    return (best / x.shape[1] ** 0.5).cpu(), which.cpu()


def total_variation(a: Int[Tensor, " n"], b: Int[Tensor, " m"], classes: int) -> float:
    """Half the sum of |p - q| over classes, between two sets of labels: 0 equal, 1 disjoint."""
    p, q = (torch.bincount(x, minlength=classes).double() / len(x) for x in (a, b))
    return (p - q).abs().sum().item() / 2
