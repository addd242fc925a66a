"""Intervals over several triples of split, generator and classifier: Student's, as percentiles of few are too narrow.

A triple is (S, N) correct in one arm minus correct in the other, -1, 0 or 1, per seed and test image, and
the (N,) class of each image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from imbdiff.recognition.intervals import LEVEL, paired_interval, paired_replicates, percentile_p
from imbdiff.runtime.errors import DataError

Triple = tuple[np.ndarray, np.ndarray]


def nested_interval(
    triples: Sequence[Triple], level: float = LEVEL, seed: int = 0, shared: bool = False
) -> tuple[float, float, float]:
    """Mean over triples (split, generator, classifier) of the mean difference, and its interval.

    With D_i the mean of triple i over its seeds and test images, s their standard deviation over T triples:
    mean D ± t(T - 1) s / sqrt(T). Where triples have test images of their own, s holds the variation of splits,
    generators, classifiers and test images together; with triples of unequal precision the interval covers more than
    `level`, not less (Ibragimov and Müller 2010). It is never narrower than mean D ± z sqrt(v), v the variance that
    resampling test images within their classes gives the mean: few triples can agree by chance, and by more than
    their test images allow.

    With `shared` test images, s holds nothing of them; both parts are added: sqrt((t s)^2 / T + z^2 v). Ends are cut
    at -1 and 1.

    A single triple says nothing of other splits and generators: that is :func:`paired_interval` with `seed`.

    Args:
        triples: T >= 1 of (difference, labels); S and N may differ between triples.
        shared: all triples were tested with the same images in the same order.

    Raises:
        DataError: no triple, one whose shapes do not fit together, or shared test images that are not the same.
    """
    centre, s, v = nested_parts(triples, shared)
    if len(triples) == 1:
        return paired_interval(*triples[0], level, seed)
    half = _half_width(level, len(triples), s, v, shared)
    return centre, max(-1.0, centre - half), min(1.0, centre + half)


def nested_p(triples: Sequence[Triple], shared: bool = False, seed: int = 0) -> float:
    """Two-sided p-value against a mean difference of 0: 1 - the highest level whose interval excludes 0.

    At least 1e-12; of a single triple, at least 2 / (R + 1) with R replicates.
    """
    centre, s, v = nested_parts(triples, shared)
    if len(triples) == 1:
        return min(percentile_p(paired_replicates(*triples[0], seed)))
    low, high = 1e-12, 1.0  # a level nearer to 1 is 1 in floating point before long
    for _ in range(60):
        middle = (low + high) / 2
        if _half_width(1 - middle, len(triples), s, v, shared) < abs(centre):
            high = middle
        else:
            low = middle
    return high


def nested_parts(triples: Sequence[Triple], shared: bool = False) -> tuple[float, float, float]:
    """(mean of D_i, their standard deviation s, variance v of the mean due to test images) of :func:`nested_interval`;
    s is 0 for one triple.

    v: within classes, sum_k n_k s_k^2 / N^2 of the differences averaged over seeds (and, if shared, over triples).
    A class of a single image adds nothing.
    """
    if not triples:
        raise DataError("no triples to compare")
    for d, labels in triples:
        if d.ndim != 2 or d.shape[1:] != labels.shape or not d.size:
            raise DataError(f"differences of shape {d.shape} for {labels.shape[0]} test images: (S, N) is needed")
    if shared and any(not np.array_equal(labels, triples[0][1]) for _, labels in triples):
        raise DataError("the triples' test images are not the same", "give shared=False where each has its own")
    images = [d.astype(np.float64).mean(axis=0) for d, _ in triples]
    means = np.array([d.mean() for d in images])
    if shared:
        v = _image_variance(np.mean(images, axis=0), triples[0][1])
    else:
        v = sum(_image_variance(d, labels) for d, (_, labels) in zip(images, triples, strict=True)) / len(triples) ** 2
    return float(means.mean()), float(means.std(ddof=1)) if len(triples) > 1 else 0.0, v


def _image_variance(d: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for k in np.unique(labels):
        mine = d[labels == k]
        total += len(mine) * float(mine.var(ddof=1)) if len(mine) > 1 else 0.0
    return total / len(d) ** 2


def _half_width(level: float, triples: int, s: float, v: float, shared: bool) -> float:
    from scipy.stats import norm
    from scipy.stats import t as student

    between = float(student.ppf((1 + level) / 2, triples - 1)) * s / math.sqrt(triples) if s else 0.0
    images = float(norm.ppf((1 + level) / 2)) * math.sqrt(v) if v else 0.0
    return math.hypot(between, images) if shared else max(between, images)
