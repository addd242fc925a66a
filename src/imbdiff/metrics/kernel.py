"""Unbiased kernel distance ``KD[extractor]``: squared maximum mean discrepancy with the cubic polynomial kernel.

Equation: k(x, y) = (x.y / D + 1)^3; MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), estimated without the diagonal
(Gretton et al. 2012, eq. 3; Binkowski et al. 2018). Unbiased at every n, so it may be negative, and it serves where
there are too few images for a Fréchet distance.
"""

from __future__ import annotations

import numpy as np

from imbdiff.metrics.statistics import class_weights, jackknife_groups, jackknife_half_width
from imbdiff.runtime.streams import rng

GROUPS = 20
MIN_PER_CLASS = 3
"""Images of a class, in either set, for the class to take part: within-class pairs must remain with one left out."""
MIN_ROWS = 20
"""Images of either set for the number to be printed: one in each group of the jackknife."""
MAX_ROWS = 2000
"""Rows of either set that are used; a random part of a larger set."""


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, M) float64 of k(x, y) = (x.y / D + 1)^3 for rows (N, D) and (M, D)."""
    return (np.asarray(x, np.float64) @ np.asarray(y, np.float64).T / x.shape[1] + 1.0) ** 3


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 of rows `x` (N, D) and `y` (M, D), N and M >= 2, all rows weighing the same."""
    zx, zy = np.zeros(len(x), np.int64), np.zeros(len(y), np.int64)
    one = np.ones(1)
    return (
        _within(polynomial_kernel(x, x), zx, one)
        + _within(polynomial_kernel(y, y), zy, one)
        - 2 * float(polynomial_kernel(x, y).mean())
    )


def kernel(
    x: np.ndarray, y: np.ndarray, x_labels: np.ndarray, y_labels: np.ndarray, proportions: np.ndarray, seed: int = 0
) -> dict[str, float | str | None]:
    """Distance of features `x` from `y`, both as the mixture of their classes with shares `proportions` (C,).

    Stratified: the expectation over a pair is sum_kl p_k p_l (mean over pairs of class k with class l), pairs of a row
    with itself left out, so the estimate is unbiased for the mixture however many images each class has.

    Returns:
        value, low, high, n_x, n_y (rows used), refused; the interval by the delete-a-group jackknife over both sets.
    """
    x, x_labels = _part(x, x_labels, rng(seed, "kernel", "part-x"))
    y, y_labels = _part(y, y_labels, rng(seed, "kernel", "part-y"))
    c = len(proportions)
    enough = (np.bincount(x_labels, minlength=c) >= MIN_PER_CLASS) & (
        np.bincount(y_labels, minlength=c) >= MIN_PER_CLASS
    )
    proportions = np.where(enough, proportions, 0.0)
    kx, ky = proportions[x_labels] > 0, proportions[y_labels] > 0
    x, y, x_labels, y_labels = x[kx], y[ky], x_labels[kx], y_labels[ky]
    result: dict[str, float | str | None] = {"value": None, "low": None, "high": None, "n_x": len(x), "n_y": len(y)}
    result["refused"] = None
    if min(len(x), len(y)) < MIN_ROWS:
        result["refused"] = (
            f"at least {MIN_ROWS} images in both sets, from classes with at least {MIN_PER_CLASS} in both, are needed; "
            f"here {len(x)} and {len(y)}"
        )
        return result
    proportions = proportions / proportions.sum()
    # by class, so that the pairs of a class are a block
    ox, oy = np.argsort(x_labels, kind="stable"), np.argsort(y_labels, kind="stable")
    x, y, x_labels, y_labels = x[ox], y[oy], x_labels[ox], y_labels[oy]
    kxx, kyy, kxy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    wx, wy = class_weights(x_labels, proportions), class_weights(y_labels, proportions)
    within_x, within_y = _within(kxx, x_labels, proportions), _within(kyy, y_labels, proportions)
    value = within_x + within_y - 2 * float(wx @ kxy @ wy)
    left_x, left_y = [], []
    gx = jackknife_groups(x_labels, GROUPS, rng(seed, "kernel", "x"))
    gy = jackknife_groups(y_labels, GROUPS, rng(seed, "kernel", "y"))
    to_y, to_x = kxy @ wy, wx @ kxy
    for g in range(GROUPS):
        keep, w, within = _leave_out(kxx, x_labels, gx != g, proportions)
        left_x.append(within + within_y - 2 * float(w @ to_y[keep]))
        keep, w, within = _leave_out(kyy, y_labels, gy != g, proportions)
        left_y.append(within_x + within - 2 * float(to_x[keep] @ w))
    half = jackknife_half_width([left_x, left_y])
    result.update(value=value, low=value - half, high=value + half)
    return result


def _within(k: np.ndarray, labels: np.ndarray, proportions: np.ndarray) -> float:
    """sum_kl p_k p_l mean of k over pairs of class k and l, the diagonal left out; `labels` sorted."""
    w = class_weights(labels, proportions)
    total = float(w @ k @ w)
    counts = np.bincount(labels, minlength=len(proportions))
    ends = np.cumsum(counts)
    diagonal = np.diagonal(k)
    for end, n in zip(ends[counts > 0], counts[counts > 0], strict=True):
        rows = slice(end - n, end)
        with_itself = w[end - 1] ** 2 * float(diagonal[rows].sum())
        block = float(w[rows] @ k[rows, rows] @ w[rows])
        total += (block - with_itself) * n / (n - 1) - block
    return total


def _leave_out(
    k: np.ndarray, labels: np.ndarray, keep: np.ndarray, proportions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    rows = np.flatnonzero(keep)
    labels = labels[rows]
    return rows, class_weights(labels, proportions), _within(k[np.ix_(rows, rows)], labels, proportions)


def _part(x: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= MAX_ROWS:
        return x, labels
    rows = np.sort(generator.permutation(len(x))[:MAX_ROWS])
    return x[rows], labels[rows]
