"""The curves of a run, drawn from its metrics.csv."""

import csv
from pathlib import Path


def draw(metrics: Path, picture: Path) -> Path:
    """Loss, reconstruction, KL and, level by level, where the information enters."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(metrics, newline="") as file:
        rows = list(csv.DictReader(file))

    def curve(name: str) -> tuple[list[int], list[float]]:
        points = [(int(r["step"]), float(r[name])) for r in rows if r.get(name)]
        return [p[0] for p in points], [p[1] for p in points]

    names = list(rows[0]) if rows else []
    terms = [(t, u) for t, u in (("loss", "loss"), ("reconstruction_sse", "squared error, summed over pixels"),
                                 ("kl_bits", "KL in bits a step")) if f"val/{t}" in names]  # fmt: skip
    figure, axes = plt.subplots(2, max(2, len(terms)), figsize=(4 * max(2, len(terms)), 6.5), squeeze=False, dpi=110)
    for axis, (term, unit) in zip(axes[0], terms, strict=False):
        for stage in ("train", "val"):
            axis.plot(*curve(f"{stage}/{term}"), marker="." if stage == "val" else None, label=stage)
        axis.set(xlabel="step", ylabel=unit, yscale="log" if term != "kl_bits" else "linear", title=term)
        axis.legend()
    for axis, (term, unit) in zip(axes[1], terms, strict=False):
        levels = [n for n in names if n.startswith(f"val/{term}/t")]
        for i, name in enumerate(levels):
            axis.plot(*curve(name), marker=".", color=plt.cm.viridis(i / max(1, len(levels) - 1)), label=name.split("/")[-1])
        axis.set(xlabel="step", ylabel=unit, title=f"{term} by level (validation)")
        axis.set_yscale("log" if term != "kl_bits" else "linear")
        if len(levels) <= 16:
            axis.legend(fontsize=7, ncols=2)
    for axis in axes.flat:
        axis.set_visible(bool(axis.lines))
    figure.tight_layout()
    figure.savefig(picture)
    plt.close(figure)
    return picture
