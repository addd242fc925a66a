"""Intra-class diversity: how far apart images of one class are, against real images of that class.

Equation: with d_k the mean of |x_i - x_j| over the pairs i < j of class k (a U-statistic: unbiased at every n >= 2),

    diversity = sum_k p_k d_k(synthetic) / sum_k p_k d_k(real),        p the class mix of the reference

1: as varied as real images; 0: one image a class. It sees neither whether images are right nor how they are spread.
"""

from __future__ import annotations

import numpy as np

from imbdiff.metrics.intervals import jackknife_half_width
from imbdiff.metrics.rows import Estimate, Rows, in_both, too_few
from imbdiff.runtime.errors import DataError

PAIRS = 1 << 21
"""Numbers in one block of work on pairs: 16 MiB of float64."""
PER_CLASS = 500
"""Rows of a class in either set that are used, those of the lowest keys."""
MIN_PER_CLASS = 5
"""Rows of a class in both sets for the class to take part: pairs must remain with a group left out."""
MIN_ROWS = 20
"""Rows of such classes in either set, at least: one in each group of the jackknife."""


def mean_pairwise_distance(x: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of rows of `x` (N, D).

    Raises:
        DataError: fewer than two rows.
    """
    if np.ndim(x) != 2 or len(x) < 2:
        raise DataError(f"a distance between rows needs (N, D) with at least two rows, not {np.shape(x)}")
    return float(_distances(np.asarray(x, np.float64)).sum() / (len(x) * (len(x) - 1)))


def diversity(fake: Rows, real: Rows, *, seed: int = 0, per_class: int = PER_CLASS) -> dict[str, Estimate]:
    """ "diversity": the ratio above, over the classes with 5 rows in both sets; n counts the rows used.

    `extra`: "synthetic_distance", "reference_distance", and "classes" that took part. The interval is the
    delete-a-group jackknife over both sets, by the logarithm, as the ratio of two lengths asks for. Where all synthetic
    rows of each class are equal, the jackknife has no width: the upper end is then 6 / n, as the share of rows that
    differ is up to 3 / n with 95 % confidence and each pair has two.
    """
    enough = in_both(fake, real, MIN_PER_CLASS)
    classes = np.flatnonzero(enough)
    real = real.select(enough[real.labels])
    share = np.bincount(real.labels, real.weights, minlength=len(enough))[classes]
    fake, real = _first(fake.select(enough[fake.labels]), per_class), _first(real, per_class)
    if reason := too_few(fake, real, MIN_ROWS, MIN_PER_CLASS):
        return {"diversity": Estimate.refuse(reason, fake, real)}
    mine, theirs = (_left_out(rows, classes) @ share for rows in (fake, real))
    if theirs.min() <= 0:
        reason = "the real images of each class are all the same: there is nothing to compare with"
        return {"diversity": Estimate.refuse(reason, fake, real)}
    value = float(mine[-1] / theirs[-1])
    distances = {"synthetic_distance": float(mine[-1]), "reference_distance": float(theirs[-1])}
    if mine.min() <= 0:
        low, high = 0.0, max(value, 6 / len(fake))
    else:
        half = jackknife_half_width([np.log(mine[:-1]), np.log(theirs[:-1])])
        low, high = float(value * np.exp(-half)), float(value * np.exp(half))
    return {"diversity": Estimate.of(value, low, high, fake, real, **distances, classes=classes.tolist())}


def _first(rows: Rows, per_class: int) -> Rows:
    """The first `per_class` rows (by key) of each class."""
    rank = np.arange(len(rows)) - np.searchsorted(rows.labels, rows.labels, side="left")
    return rows.select(rank < per_class)


def _left_out(rows: Rows, classes: np.ndarray) -> np.ndarray:
    """(G + 1, classes) mean pairwise distance of each class without group g; in the last row of all."""
    groups = rows.groups()
    count = int(groups.max()) + 1
    result = np.empty((count + 1, len(classes)))
    for i, k in enumerate(classes):
        mine = np.flatnonzero(rows.labels == k)
        d = _distances(rows.select(mine).array.astype(np.float64))
        member = np.eye(count)[groups[mine]]
        to_group = d @ member
        # a pair within the group is counted at both of its rows
        total = d.sum() - 2 * to_group.sum(axis=0) + (member * to_group).sum(axis=0)
        left = len(mine) - member.sum(axis=0)
        # a class that a group takes all but one row of keeps its value
        kept = np.where(left >= 2, total, d.sum())
        left = np.where(left >= 2, left, len(mine))
        result[:-1, i] = np.maximum(kept, 0) / (left * (left - 1))
        result[-1, i] = d.sum() / (len(mine) * (len(mine) - 1))
    return result


def _distances(x: np.ndarray) -> np.ndarray:
    """(N, N) Euclidean distances, 0 on the diagonal and between equal rows."""
    x = x - x.mean(axis=0)
    norms = (x * x).sum(axis=1)
    both = norms[:, None] + norms
    squared = both - 2 * x @ x.T
    # where nearly everything cancels, anew from the differences
    i, j = np.nonzero(np.triu(squared <= 1e-6 * both, 1))
    step = max(1, PAIRS // max(x.shape[1], 1))
    for start in range(0, len(i), step):
        a, b = i[start : start + step], j[start : start + step]
        squared[a, b] = squared[b, a] = ((x[a] - x[b]) ** 2).sum(axis=1)
    np.fill_diagonal(squared, 0.0)
    return np.sqrt(np.maximum(squared, 0.0))
