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
Images = Sequence[np.ndarray] | None


def nested_interval(
    triples: Sequence[Triple], level: float = LEVEL, seed: int = 0, images: Images = None
) -> tuple[float, float, float]:
    """Mean over triples (split, generator, classifier) of the mean difference, and its interval.

    With D_i the mean of triple i over its seeds and test images, s their standard deviation over T triples:
    mean D ± t(T - 1) s / sqrt(T). Where triples have test images of their own, s holds the variation of splits,
    generators, classifiers and test images together; with triples of unequal precision the interval covers more than
    `level`, not less (Ibragimov and Müller 2010). It is never narrower than mean D ± z sqrt(v), v the variance that
    resampling test images within their classes gives the mean: few triples can agree by chance, and by more than
    their test images allow.

    Where triples share test images, s holds nothing of these, and v counts each image once (its differences over
    triples are summed before they are squared: a cluster); both parts are added: sqrt((t s)^2 / T + z^2 v). That is
    too wide rather than too narrow where only some are shared. Ends are cut at -1 and 1.

    A single triple says nothing of other splits and generators: that is :func:`paired_interval` with `seed`.

    Args:
        triples: T >= 1 of (difference, labels); S and N may differ between triples.
        images: (N,) of each triple, what identifies its test images; None: no triple has an image of another.

    Raises:
        DataError: no triple, or one whose shapes do not fit together.
    """
    centre, s, v = nested_parts(triples, images)
    if len(triples) == 1:
        return paired_interval(*triples[0], level, seed)
    half = _half_width(level, len(triples), s, v, _shared(images))
    return centre, max(-1.0, centre - half), min(1.0, centre + half)


def nested_p(triples: Sequence[Triple], images: Images = None, seed: int = 0) -> float:
    """Two-sided p-value against a mean difference of 0: 1 - the highest level whose interval excludes 0.

    At least 1e-12; of a single triple, at least 2 / (R + 1) with R replicates.
    """
    centre, s, v = nested_parts(triples, images)
    if len(triples) == 1:
        return min(percentile_p(paired_replicates(*triples[0], seed)))
    low, high = 1e-12, 1.0  # a level nearer to 1 is 1 in floating point before long
    for _ in range(60):
        middle = (low + high) / 2
        if _half_width(1 - middle, len(triples), s, v, _shared(images)) < abs(centre):
            high = middle
        else:
            low = middle
    return high


def nested_parts(triples: Sequence[Triple], images: Images = None) -> tuple[float, float, float]:
    """(mean of D_i, their standard deviation s, variance v of the mean due to test images) of :func:`nested_interval`;
    s is 0 for one triple.

    With c_j the sum over the triples that have test image j of (its difference, averaged over seeds, minus the mean of
    its class) sqrt(n / (n - 1)) / (N T), n the triple's images of that class: v = sum_j c_j^2. One class of one
    triple gives n_k s_k^2 / N^2. A class of a single image adds nothing.
    """
    if not triples:
        raise DataError("no triples to compare")
    means, parts = [], []
    for d, labels in triples:
        if d.ndim != 2 or d.shape[1:] != labels.shape or not d.size:
            raise DataError(f"differences of shape {d.shape} for {labels.shape[0]} test images: (S, N) is needed")
        of_image = d.astype(np.float64).mean(axis=0)
        means.append(of_image.mean())
        _, label, n = np.unique(labels, return_inverse=True, return_counts=True)
        centred = of_image - (np.bincount(label, of_image) / n)[label]
        parts.append(centred / (len(labels) * len(triples)) * np.sqrt(n / np.maximum(n - 1, 1))[label])
    if images is None:
        v = sum(float((part**2).sum()) for part in parts)
    else:
        names = [str(name) for own in images for name in own]
        if [len(own) for own in images] != [len(part) for part in parts]:
            raise DataError("each triple needs the identities of its own test images, one an image")
        _, image = np.unique(names, return_inverse=True)
        v = float((np.bincount(image, np.concatenate(parts)) ** 2).sum())
    return float(np.mean(means)), float(np.std(means, ddof=1)) if len(triples) > 1 else 0.0, v


def _shared(images: Images) -> bool:
    """Whether an image is in two triples."""
    return images is not None and len({str(name) for own in images for name in own}) < sum(map(len, images))


def _half_width(level: float, triples: int, s: float, v: float, shared: bool) -> float:
    from scipy.stats import norm
    from scipy.stats import t as student

    between = float(student.ppf((1 + level) / 2, triples - 1)) * s / math.sqrt(triples) if s else 0.0
    images = float(norm.ppf((1 + level) / 2)) * math.sqrt(v) if v else 0.0
    return math.hypot(between, images) if shared else max(between, images)
