"""How many threads torch, NumPy and scikit-learn take: each of them would take all cores."""

import os
import sys

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)  # the libraries read them when they are imported


def take(threads: int) -> None:
    """Let this process take so many, and those that it starts unless they say otherwise."""
    os.environ.update(dict.fromkeys(VARIABLES, str(threads)))
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def shared(processes: int) -> dict[str, str]:
    """The environment of one of so many processes at a time: with threads=null it takes its share of the cores."""
    each = max(1, len(os.sched_getaffinity(0)) // processes)
    return {**os.environ, **dict.fromkeys(VARIABLES, str(each))}
