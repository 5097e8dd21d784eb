"""The weight of the KL term over the course of training."""

import math


def kl_weight(step: int, A: int) -> float:
    """VCD's annealing: 1.55e-4 for the first A/3 iterations, then sin^2 from 0 to 1 over A iterations; 1 when A = 0."""
    if A == 0:
        return 1.0
    since = step - A / 3
    if since < 0:
        return 1.55e-4
    return math.sin(math.pi / 2 * min(since / A, 1.0)) ** 2
