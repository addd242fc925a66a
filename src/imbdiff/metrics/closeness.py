"""Closeness: are synthetic images nearer to the training images than held-out real images are? With an interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imbdiff.metrics.statistics import Z95


def closeness(synthetic: np.ndarray, held_out: np.ndarray) -> float:
    """P(a synthetic image is nearer to its nearest training image than a held-out one to its own), ties count half.

    The Mann-Whitney statistic (area under the ROC curve) of two samples of distances: 0.5 for images as new as real
    ones, 1 for copies, below 0.5 for images that are farther off than real ones.

    Args:
        synthetic: (m,) distances, m >= 1; held_out: (n,), n >= 1.
    """
    others = np.sort(held_out)
    right = np.searchsorted(others, synthetic, side="right")
    left = np.searchsorted(others, synthetic, side="left")
    return float((len(others) - (right + left) / 2).mean() / len(others))


def closeness_interval(value: float, m: int, n: int) -> tuple[float, float]:
    """95 % interval of :func:`closeness` from m and n images: both ends solve (value - a)^2 = z^2 V(a).

    V(a) = a (1 - a) [1 + N ((1 - a) / (2 - a) + a / (1 + a))] / (m n), N = (m + n) / 2 - 1: the variance of Hanley and
    McNeil (1982) in the form of Newcombe (2006, "Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic, part 2", method 5). Unlike DeLong's it does not shrink to nothing at 0 and 1, where copies
    are. It covers the draw of both sets of images; the training images are taken as given."""

    def outside(a: float) -> bool:
        spread = 1 + ((m + n) / 2 - 1) * ((1 - a) / (2 - a) + a / (1 + a))
        return (value - a) ** 2 > Z95 * Z95 * a * (1 - a) * spread / (m * n)

    ends = []
    for far in (0.0, 1.0):
        out, inside = far, value
        if not outside(out):
            ends.append(far)
            continue
        for _ in range(60):
            middle = (out + inside) / 2
            out, inside = (middle, inside) if outside(middle) else (out, middle)
        ends.append(inside)
    return ends[0], ends[1]


def combined(values: Sequence[tuple[float, float, float]], weights: Sequence[float]) -> tuple[float, float, float]:
    """Weighted mean of independent (value, low, high), with its interval (MOVER: Zou and Donner 2008).

    low = value - sqrt(sum w^2 (value_k - low_k)^2), high in the same way, weights scaled to sum to 1.
    """
    v = np.asarray(values, dtype=np.float64)
    w = np.asarray(weights, dtype=np.float64)
    w = w / w.sum()
    value = float(w @ v[:, 0])
    low = value - float(np.sqrt((w**2) @ (v[:, 0] - v[:, 1]) ** 2))
    high = value + float(np.sqrt((w**2) @ (v[:, 2] - v[:, 0]) ** 2))
    return value, max(0.0, low), min(1.0, high)
