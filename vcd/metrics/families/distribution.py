"""How far a set of images is from another, by features: order does not matter, and a set is at distance 0 from itself.

a: features of samples (n, d); b: of the reference (m, d). Fréchet distance and inception score are torch-fidelity's
functions.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vcd.metrics.evaluation import Comparison, Evaluation, some
from vcd.metrics.results import Number, Result

Features = Float[Tensor, "n d"]
NEIGHBOURS = 5  # of precision, recall, density and coverage
PAIRS = 10_000  # images of a split, or as many as there are samples, where all pairs are looked at
NEEDS_FEATURES = True
LEAST_IMAGES = NEIGHBOURS + 1  # every image needs its neighbours


def measure(e: Evaluation) -> Result:
    """Fréchet and kernel distance from either split; inception score; and from the reference precision, recall, density
    and coverage."""
    (a, logits), n, letter, extractor = e.features, e.n, e.extractor.letter, e.extractor.protocol
    numbers = {}
    for c in e.comparisons:
        (b, _), h = e.features_of(c.split), e.features_of(c.other)[0][c.stand_ins]
        protocol = e.protocol(c, **extractor)
        numbers[f"f{letter}d_{n}{c.ending}"] = Number(frechet(a, b), "lower", frechet(h, b), "", protocol)
    for c in e.comparisons:
        b, h = few(e, c), e.features_of(c.other)[0][c.stand_ins]
        protocol = e.protocol(c, **extractor, reference_n=len(b), estimator="unbiased, all pairs, cubic kernel")
        distance, floor = kernel_distance(a, b), kernel_distance(h, b)
        numbers[f"k{letter}d_{n}{c.ending}"] = Number(distance, "lower", floor, "", protocol)
    c = e.comparisons[0]
    b, (h, h_logits) = few(e, c), (x[c.stand_ins] for x in e.features_of(c.other))
    protocol = e.protocol(c, **extractor, splits=1)
    numbers[f"{letter}s_{n}"] = Number(inception_score(logits), "higher", inception_score(h_logits), "", protocol)
    protocol = e.protocol(c, **extractor, reference_n=len(b), neighbours=NEIGHBOURS)
    own, floors = manifolds(a, b), manifolds(h, b)
    return Result(numbers | {f"{name}_{n}": Number(own[name], "higher", floors[name], "", protocol) for name in own})


def few(e: Evaluation, c: Comparison) -> Features:
    """Features of the split, of not too many images: for what looks at all pairs."""
    b, _ = e.features_of(c.split)
    return b[some(len(b), max(e.n, PAIRS), seed=1)]


def frechet(a: Features, b: Float[Tensor, "m d"]) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500)."""
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    statistics = (fid_features_to_statistics(x.double().cpu()) for x in (a, b))
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def kernel_distance(a: Features, b: Float[Tensor, "m d"], chunk: int = 2048) -> float:
    """The unbiased MMD^2 with the kernel (x.y / d + 1)^3 over all pairs (KID; Binkowski et al. 2018, arXiv:1801.01401)."""

    def mean(x: Tensor, y: Tensor, same: bool) -> float:
        """Of the kernel over pairs; over pairs of different images where both sets are the same."""
        total = sum(((part.double() @ y.double().T) / x.shape[1] + 1).pow(3).sum().item() for part in x.split(chunk))
        if same:
            total -= (x.double().square().sum(1) / x.shape[1] + 1).pow(3).sum().item()
        return total / (len(x) * (len(y) - same))

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def inception_score(logits: Float[Tensor, "n classes"]) -> float:
    """exp E KL(p(y|x) || p(y)) over all images at once (Salimans et al. 2016, arXiv:1606.03498)."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    return isc_features_to_metric(logits, splits=1)[KEY_METRIC_ISC_MEAN]


def manifolds(a: Features, b: Float[Tensor, "m d"], chunk: int = 2048) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020,
    arXiv:2002.09797), by balls that reach to the fifth neighbour."""
    k = NEIGHBOURS
    radius_a, radius_b = (_reach(x, k, chunk) for x in (a, b))
    precise, density = torch.zeros(len(a), dtype=torch.bool), 0.0
    recalled, nearest = torch.zeros(len(b), dtype=torch.bool), torch.full((len(b),), torch.inf)
    for i, part in zip(torch.arange(len(a)).split(chunk), a.split(chunk), strict=True):
        distance = torch.cdist(part, b).cpu()
        inside = distance <= radius_b
        precise[i], density = inside.any(1), density + inside.sum().item()
        recalled |= (distance <= radius_a[i, None]).any(0)
        nearest = torch.minimum(nearest, distance.amin(0))
    return {"precision": precise.double().mean().item(), "recall": recalled.double().mean().item(),
            "density": density / (k * len(a)), "coverage": (nearest <= radius_b).double().mean().item()}  # fmt: skip


def _reach(x: Features, k: int, chunk: int) -> Float[Tensor, " n"]:
    """The distance of every point to its k-th neighbour in the set."""
    return torch.cat([torch.cdist(part, x).cpu().kthvalue(k + 1, dim=1).values for part in x.split(chunk)])
