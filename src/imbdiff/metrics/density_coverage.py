"""Density and coverage: how many real balls hold a fake on average, and the share of real balls that hold any.

Equations (Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models"): with B_i the ball of the
real row x_i to its k-th nearest other real row,

    density  = 1/(k M) sum_j #{ i : y_j in B_i }              >= 0, about 1 for real images, not bounded by 1
    coverage = 1/N sum_i [ some y_j in B_i ]

Only real rows have balls: one fake outlier, whose ball would be wide, changes little. Real images against real ones
have an expected coverage of 1 - (N - 1)...(N - k) / ((M + N - 1)...(M + N - k)), about 1 - 2^-k at M = N.
"""

from __future__ import annotations

import numpy as np

from imbdiff.metrics.neighbour_measures import count_inside, neighbour_measures
from imbdiff.metrics.neighbours import CAP
from imbdiff.metrics.points import Points
from imbdiff.metrics.rows import Estimate, Rows


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5, chunk: int | None = None) -> tuple[float, float]:
    """Density and coverage of `fake` (M, D) against `real` (N, D), all rows weighing the same.

    Args:
        k: which nearest other real row gives the radius, >= 1.
        chunk: rows screened at a time; changes memory, not the result.

    Raises:
        DataError: k real rows or fewer, or rows that are not (N, D) finite numbers.
    """
    x, y = Points(real), Points(fake)
    inside = count_inside(y, x, None, k, chunk)
    return (
        float(y.counts[:, 0] @ inside.density[:, 0]) / (k * y.size),
        float(x.counts[:, 0] @ (inside.coverage_fake[:, 0] > 0)) / x.size,
    )


def density_coverage_measure(
    fake: Rows, real: Rows, *, seed: int = 0, k: int = 5, cap: int = CAP
) -> dict[str, Estimate]:
    """ "density" and "coverage" with 95 % intervals; all about them in `neighbour_measures`."""
    return neighbour_measures(fake, real, seed=seed, k=None, dense_k=k, cap=cap)
