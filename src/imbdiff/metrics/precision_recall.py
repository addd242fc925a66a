"""Improved precision and recall: the share of fakes that lie where real images are, and the reverse.

Equations (Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models"): with
NN_k(x, X) the k-th nearest other row of x in its own set X,

    precision = 1/M sum_j [ some i:  |y_j - x_i| <= |x_i - NN_k(x_i, X)| ]        y fake, x real
    recall    = 1/N sum_i [ some j:  |x_i - y_j| <= |y_j - NN_k(y_j, Y)| ]

Papers of this field use k = 3 and k = 5 and different extractors; so k stands in the name, and the extractor beside it.
F8 and F1/8 are not made of these two: see `prd.py`.
"""

from __future__ import annotations

import numpy as np

from imbdiff.metrics.neighbour_measures import count_inside, neighbour_measures
from imbdiff.metrics.neighbours import CAP
from imbdiff.metrics.points import Points
from imbdiff.metrics.rows import Estimate, Rows


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3, chunk: int | None = None) -> tuple[float, float]:
    """Precision and recall of `fake` (M, D) against `real` (N, D), all rows weighing the same.

    Args:
        k: which nearest other row gives the radius, >= 1.
        chunk: rows screened at a time; changes memory, not the result.

    Raises:
        DataError: k rows or fewer in either set, or rows that are not (N, D) finite numbers.
    """
    x, y = Points(real), Points(fake)
    inside = count_inside(y, x, k, None, chunk)
    return (
        float(y.counts[:, 0] @ (inside.precision[:, 0] > 0)) / y.size,
        float(x.counts[:, 0] @ (inside.recall[:, 0] > 0)) / x.size,
    )


def precision_recall_measure(
    fake: Rows, real: Rows, *, seed: int = 0, k: int = 3, cap: int = CAP
) -> dict[str, Estimate]:
    """ "precision" and "recall" with 95 % intervals; all about them in `neighbour_measures`."""
    return neighbour_measures(fake, real, seed=seed, k=k, dense_k=None, cap=cap)
