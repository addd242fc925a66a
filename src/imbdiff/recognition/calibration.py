"""Whether a classifier is right as often as it says: reliability per bin of confidence, and its mean gap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imbdiff.runtime.errors import DataError

BINS = 15


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """Bins of equal width over [0, 1]: how many images, how sure the classifier was, how often it was right.

    A bin holds its upper end and not its lower one; the first holds 0 too (Guo et al. 2017, section 2).

    Args:
        confidence: (N,) softmax probability of the predicted class, 0 to 1.
        right: (N,) whether the prediction is right.

    Returns:
        per bin "n", "confidence" and "accuracy" (means over its images; None where it has none).

    Raises:
        DataError: a confidence for another number of images, or one that is no probability.
    """
    p = np.asarray(confidence, dtype=np.float64)
    hit = np.asarray(right, dtype=np.float64)
    if p.shape != hit.shape:
        raise DataError(f"{p.size} confidences for {hit.size} predictions")
    # float32 softmax may end a rounding error above 1
    bad = ~(np.isfinite(p) & (p >= 0) & (p <= 1 + 1e-5))
    if bad.any():
        raise DataError(f"{p[bad][0]} is no probability: confidences lie in 0 to 1", "give them after the softmax")
    p = np.minimum(p, 1.0)
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p, side="left")
    n = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, values, minlength=bins) for values in (p, hit)]
    return [
        {"n": int(n[b]), "confidence": float(sums[0][b] / n[b]), "accuracy": float(sums[1][b] / n[b])}
        if n[b]
        else {"n": 0, "confidence": None, "accuracy": None}
        for b in range(bins)
    ]


def calibration_error(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Expected calibration error, sum_b n_b / N |accuracy_b - confidence_b| (Guo et al. 2017, Eq. 3); None for N = 0.

    It is never below 0, so that chance alone makes it positive: see :func:`chance_error`.
    """
    total = sum(row["n"] for row in rows)
    if not total:
        return None
    return float(sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows if row["n"]) / total)


def chance_error(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The calibration error to be expected of a classifier that is right exactly as often as it says, with these bins.

    Each bin's hits are then binomial with n = n_b, p = confidence_b; their mean absolute deviation in closed form is
    2 v (1 - p)^(n - v + 1) p^v C(n, v), v = floor(n p) + 1 (De Moivre; Diaconis and Zabell 1991).
    """
    total = sum(row["n"] for row in rows)
    if not total:
        return None
    return float(sum(_deviation(row["n"], row["confidence"]) for row in rows if row["n"]) / total)


def _deviation(n: int, p: float) -> float:
    if not 0 < p < 1:
        return 0.0
    v = math.floor(n * p) + 1
    if v > n:  # n p rounded up to n
        return 0.0
    log = math.lgamma(n + 1) - math.lgamma(v + 1) - math.lgamma(n - v + 1)
    return 2 * v * math.exp(log + (n - v + 1) * math.log1p(-p) + v * math.log(p))


def pooled(several: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The bins of several classifiers as one: numbers of images added, means weighted by them."""
    made: list[dict[str, Any]] = []
    for rows in zip(*several, strict=True):
        n = sum(row["n"] for row in rows)
        means = {
            key: sum(row["n"] * row[key] for row in rows if row["n"]) / n if n else None
            for key in ("confidence", "accuracy")
        }
        made.append({"n": n, **means})
    return made
