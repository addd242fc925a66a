"""What the interval of a difference between two classifiers resamples, and how several differences are judged together.

Two designs. *Paired*: one split and one generator, several seeds of the classifier, the same test images: a bootstrap.
*Nested*: several triples of split, generator and classifier: a Student interval over the triples, because percentiles
of so few values are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from imbdiff.runtime.errors import DataError
from imbdiff.runtime.streams import rng

REPLICATES = 2000
LEVEL = 0.95
CHUNK = 100

Triple = tuple[np.ndarray, np.ndarray]
"""(S, N) correct in one arm minus correct in the other, -1, 0 or 1, per seed and test image; (N,) class per image."""


def paired_interval(
    difference: np.ndarray, labels: np.ndarray, level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `difference` (S, N) and its interval over seeds and test images.

    Bootstrap: images are resampled within each class, seeds as a whole; the deviations of seeds are widened by
    sqrt(S / (S - 1)), because S of S values with replacement understate their variance by that much. Percentiles at
    `level`, in [-1, 1].

    Args:
        difference: correct in one arm minus correct in the other, -1, 0 or 1, per seed and test image.
        labels: (N,) class of each image.
    """
    low, high = percentiles(paired_replicates(difference, labels, seed), level)
    return float(difference.astype(np.float64).mean()), low, high


def paired_replicates(
    difference: np.ndarray, labels: np.ndarray, seed: int = 0, replicates: int = REPLICATES
) -> np.ndarray:
    """Bootstrap values of :func:`paired_interval`, (R,), or (P, R) for P comparisons (P, S, N) of the same images.

    R is `replicates` rounded up to whole hundreds. All comparisons are of the same resamples. What widening puts beyond
    -1 or 1 is that end: no difference of accuracies lies there.
    """
    d = difference.astype(np.float64)
    s, n = d.shape[-2:]
    generator = rng(seed, "verdict bootstrap")
    rows = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    found = []
    widen = np.sqrt(s / (s - 1)) if s > 1 else 1.0
    # several at a time: (chunk, N) weights
    for _ in range(math.ceil(replicates / CHUNK)):
        weights = np.zeros((CHUNK, n))
        for mine in rows:
            weights[:, mine] = generator.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=CHUNK)
        per_seed = np.moveaxis(d @ weights.T / n, -2, -1)
        mean = per_seed.mean(axis=-1, keepdims=True)
        drawn = np.broadcast_to(generator.integers(0, s, size=(CHUNK, s)), per_seed.shape)
        found.append(mean[..., 0] + widen * np.take_along_axis(per_seed - mean, drawn, axis=-1).mean(axis=-1))
    return np.clip(np.concatenate(found, axis=-1), -1.0, 1.0)


def percentiles(replicates: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def percentile_p(replicates: np.ndarray) -> tuple[float, float]:
    """p-values of "above 0" and of "below 0", each 1 - the highest level whose :func:`percentiles` lie there.

    Two-sided: twice the share of replicates on the other side, 0 among them; the share is interpolated between
    replicates as the percentiles are, so that p < 1 - level says exactly that the interval excludes 0. At least
    2 / (R + 1), as R replicates show no less (Davison and Hinkley 1997, section 4.2).
    """
    least = 2 / (len(replicates) + 1)
    above, below = (min(1.0, max(least, 2 * _share_up_to_zero(np.sort(v)))) for v in (replicates, -replicates))
    return above, below


def _share_up_to_zero(ordered: np.ndarray) -> float:
    """The largest q with np.quantile(ordered, q) <= 0; 0 where there is none."""
    count = int(np.searchsorted(ordered, 0.0, side="right"))
    if not count:
        return 0.0
    if count == len(ordered):
        return 1.0
    a, b = float(ordered[count - 1]), float(ordered[count])
    return (count - 1 - a / (b - a)) / (len(ordered) - 1)


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


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): p of rank r among M, times M - r + 1, no smaller than before it.

    An adjusted value below 0.05 may be called a difference: all such claims of one family together are free of error
    with 95 % at least, however the comparisons depend on each other.
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def holm_steps(p_values: Sequence[float], alpha: float = 1 - LEVEL) -> list[float]:
    """The error alpha / (M - r + 1) at which each p-value is judged; from the first that is not below it, that one's.

    An interval at 1 - this excludes 0 exactly where the adjusted p-value is below `alpha`.
    """
    steps, size = [alpha] * len(p_values), len(p_values)
    left = size
    for i in np.argsort(p_values, kind="stable"):
        steps[i] = alpha / left
        if p_values[i] < steps[i]:
            left = max(left - 1, 1)
    return steps
