"""What the interval of a difference between two classifiers resamples, and how several differences are judged together.

One split and one generator, several seeds of the classifier, the same test images: a bootstrap over seeds and images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from imbdiff.runtime.streams import rng

REPLICATES = 2000
LEVEL = 0.95
CHUNK = 100


def paired_interval(
    difference: np.ndarray,
    labels: np.ndarray,
    level: float = LEVEL,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> tuple[float, float, float]:
    """Mean of `difference` (S, N) and its interval over seeds and test images.

    Bootstrap: images are resampled within each class (with `groups`, whole groups within the class of the first image
    of each), seeds as a whole; the deviations of seeds are widened by
    sqrt(S / (S - 1)), because S of S values with replacement understate their variance by that much. Percentiles at
    `level`, in [-1, 1].

    Args:
        difference: correct in one arm minus correct in the other, -1, 0 or 1, per seed and test image.
        labels: (N,) class of each image.
        groups: (N,) what images of one patient or the like share; None where each stands for itself.
    """
    low, high = percentiles(paired_replicates(difference, labels, seed, groups=groups), level)
    return float(difference.astype(np.float64).mean()), low, high


def paired_replicates(
    difference: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    replicates: int = REPLICATES,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Bootstrap values of :func:`paired_interval`, (R,), or (P, R) for P comparisons (P, S, N) of the same images.

    R is `replicates` rounded up to whole hundreds. All comparisons are of the same resamples. What widening puts beyond
    -1 or 1 is that end: no difference of accuracies lies there.
    """
    d = difference.astype(np.float64)
    s, n = d.shape[-2:]
    generator = rng(seed, "verdict bootstrap")
    units, first = np.arange(n), np.arange(n)
    if groups is not None:
        _, first, units = np.unique(groups, return_index=True, return_inverse=True)
    rows = [np.flatnonzero(labels[first] == k) for k in np.unique(labels[first])]
    found = []
    widen = np.sqrt(s / (s - 1)) if s > 1 else 1.0
    # several at a time: (chunk, units) weights
    for _ in range(math.ceil(replicates / CHUNK)):
        weights = np.zeros((CHUNK, len(first)))
        for mine in rows:
            weights[:, mine] = generator.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=CHUNK)
        of_images = weights if groups is None else weights[:, units]
        per_seed = np.moveaxis(d @ of_images.T / of_images.sum(axis=1), -2, -1)
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
    if count in (0, len(ordered)):
        return float(count > 0)
    a, b = float(ordered[count - 1]), float(ordered[count])
    return (count - 1 - a / (b - a)) / (len(ordered) - 1)


def holm(p_values: Sequence[float], alpha: float = 1 - LEVEL) -> tuple[list[float], list[float]]:
    """p-values adjusted for their number M (Holm 1979), and the error at which each is judged.

    Adjusted: p of rank r, times M - r + 1, no smaller than the one before. The error is alpha / (M - r + 1), and from
    the first p that is not below it, that one's: an interval at 1 - error excludes 0 exactly where the adjusted p-value
    is below `alpha`. All differences claimed so are free of error with 1 - alpha at least, however the comparisons
    depend on each other.
    """
    adjusted, errors = [0.0] * len(p_values), [alpha] * len(p_values)
    worst, left = 0.0, len(p_values)
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i], errors[i] = worst, alpha / left
        if p_values[i] < errors[i]:
            left = max(left - 1, 1)
    return adjusted, errors
