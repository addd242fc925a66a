"""Unbiased kernel distance ``KD[extractor]``: squared maximum mean discrepancy with the cubic polynomial kernel.

Equation: k(x, y) = (x.y / D + 1)^3; MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), estimated without the diagonal
(Gretton et al. 2012, eq. 3; Binkowski et al. 2018). Unbiased at every n, so it may be negative, and it serves where
there are too few images for a Fréchet distance.
"""

from __future__ import annotations

import numpy as np

from imbdiff.metrics.intervals import distance_interval, variance_of_sum
from imbdiff.metrics.rows import Estimate, Rows, in_both, too_few

MIN_PER_CLASS = 2
"""Images of a class, in either set, for the class to take part: pairs within the class are needed."""
MIN_ROWS = 20
"""Images of either set for the number to be printed."""
LEAST_WEIGHT = 0.95
"""Share of the class mix that classes with pairs must hold."""
MAX_ROWS = 4000
"""Rows of either set that are used; of a larger set the ones that :meth:`Rows.part` gives."""


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, M) float64 of k(x, y) = (x.y / D + 1)^3 for rows (N, D) and (M, D)."""
    k = np.asarray(x, np.float64) @ np.asarray(y, np.float64).T
    k /= x.shape[1]
    k += 1.0
    cube = k * k
    cube *= k
    return cube


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 of rows `x` (N, D) and `y` (M, D), N and M >= 2, all rows weighing the same."""
    kxx, kyy = polynomial_kernel(x, x), polynomial_kernel(y, y)
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kxx, kyy)]
    return float(within[0] + within[1] - 2 * polynomial_kernel(x, y).sum() / (len(x) * len(y)))


def kernel(fake: Rows, real: Rows, *, seed: int = 0, max_rows: int = MAX_ROWS) -> dict[str, Estimate]:
    """``KD`` of two sets, each as the mixture of its classes with the shares of its weights.

    Stratified: the expectation over a pair is sum_kl p_k p_l (mean over pairs of class k with class l), pairs of a row
    with itself left out, so the estimate is unbiased for the mixture however many images each class has.

    *Interval.* The plug-in variance of the row means 2 (E k(x, x') - E k(x, y)) has expectation V1 + 2 V2; V2, the
    variance of the degenerate part, is the sum of squares of the kernels centred by class in both arguments (see
    :mod:`imbdiff.metrics.intervals`).

    Classes with a single image in either set are left out of both; `extra` has how many and the weight of the others,
    and the number is refused where that is below 95 %. Refused below 20 images of either set.
    """
    enough = in_both(fake, real, MIN_PER_CLASS)
    weight = float(real.weights[enough[real.labels]].sum())
    dropped = len(np.unique(real.labels[~enough[real.labels]]))
    most = max(max_rows, MIN_PER_CLASS * int(enough.sum()))
    fake, real = (r.select(enough[r.labels]).part(most, least=MIN_PER_CLASS) for r in (fake, real))
    about = {"classes_dropped": dropped, "weight_used": round(weight, 6)} if dropped else {}
    reason = too_few(fake, real, MIN_ROWS, MIN_PER_CLASS)
    if not reason and weight < LEAST_WEIGHT:
        reason = (
            f"{dropped} classes have fewer than {MIN_PER_CLASS} images to pair in one of the sets and hold "
            f"{100 * (1 - weight):.0f} % of the weight; look at groups, or give more images"
        )
    if reason:
        return {"KD": Estimate.refuse(reason, fake, real, **about)}
    x, y = fake.array.astype(np.float64), real.array.astype(np.float64)
    wx, wy = fake.weights, real.weights
    # one kernel matrix at a time: of 4,000 rows each takes 128 MB
    k = polynomial_kernel(x, y)
    to_y, to_x = k @ wy, wx @ k
    quadratic = 4 * _degenerate(k, fake, real)
    k = polynomial_kernel(x, x)
    rows_x, biased = _row_means(k, fake), float(wx @ k @ wx)
    quadratic += 2 * _degenerate(k, fake, fake)
    k = polynomial_kernel(y, y)
    rows_y, biased = _row_means(k, real), biased + float(wy @ k @ wy)
    quadratic += 2 * _degenerate(k, real, real)
    cross = 2 * float(wx @ to_y)
    value = float(wx @ rows_x + wy @ rows_y) - cross
    plug_in = variance_of_sum(fake, 2 * (rows_x - to_y)) + variance_of_sum(real, 2 * (rows_y - to_x))
    low, high = distance_interval(value, biased - cross, plug_in, quadratic)
    return {"KD": Estimate.of(value, low, high, fake, real, **about)}


def _row_means(k: np.ndarray, rows: Rows) -> np.ndarray:
    """(N,) sum_l p_l mean of k(i, j) over j != i of class l; in the own class without all that belongs together with i,
    if there is anything else."""
    total = k @ rows.weights
    for own in _classes(rows):
        n, w, block = own.stop - own.start, rows.weights[own.start], k[own, own]
        if rows.units is None:
            others, sums = n - 1, block.sum(axis=1) - np.diagonal(block)
        else:
            units = rows.units[own]
            same = units[:, None] == units
            same = np.where(same.all(axis=1, keepdims=True), np.eye(n, dtype=bool), same)
            others, sums = n - same.sum(axis=1), (block * ~same).sum(axis=1)
        total[own] += w * (n * sums / others - block.sum(axis=1))
    return total


def _degenerate(k: np.ndarray, first: Rows, second: Rows) -> float:
    """sum_ij w_i^2 w_j^2 k~_ij^2 over pairs of different rows, k~ the kernel `k` centred by class in both arguments.

    Works on `k` in place. Squares are scaled by n / (n - 1) of either class, for centring by the sample's own mean.
    Where rows belong together, what is squared are the sums over them.
    """
    for own in _classes(first):
        k[own] -= k[own].mean(axis=0)
    for own in _classes(second):
        k[:, own] -= k[:, own].mean(axis=1, keepdims=True)
    if first is second:
        np.fill_diagonal(k, 0.0)
        if first.units is not None:
            k[first.units[:, None] == first.units] = 0.0
    counts = (r.draws_of_class()[r.labels] for r in (first, second))
    a, b = (r.weights**2 * (n / np.maximum(n - 1, 1)) for r, n in zip((first, second), counts, strict=True))
    if first.units is None and second.units is None:
        return float(a @ (k * k) @ b)
    return float((second.sums(first.sums(k * np.sqrt(a)[:, None] * np.sqrt(b)).T) ** 2).sum())


def _classes(rows: Rows) -> list[slice]:
    """Where each class that occurs begins and ends."""
    starts = np.flatnonzero(np.diff(rows.labels, prepend=-1))
    return [slice(int(a), int(b)) for a, b in zip(starts, np.append(starts[1:], len(rows)), strict=True)]
