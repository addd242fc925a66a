"""Inception score: how sure a classifier is of each image, and how evenly its classes occur.

Equation (Salimans et al. 2016): IS = exp( mean_x KL(p(y|x) || p(y)) ), p(y) the mean of p(y|x) over the rows of the
split, and the mean over 10 splits. It is between 1 and the number of classes C. No real image takes part, so the
score of reference images is given with it.

p(y) comes from the rows of one split only, whose entropy is too low by up to (C - 1) / (2 n) for n rows a split (Miller
1955): the score is biased downwards, the more, the more splits. Scores of other n or other splits do not compare.
"""

from __future__ import annotations

import numpy as np

from imbdiff.metrics.intervals import jackknife_half_width
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.runtime.errors import DataError

SPLITS = 10
PER_CLASS = 4
"""Rows of a split for each class of the classifier, at least: what the field's own protocol has, 50,000 images in 10
splits for 1,008 classes. The logarithm is then too low by at most 1/8; by less, the less sure the classifier is."""


def inception_score(probabilities: np.ndarray, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and standard deviation (of the splits, not of the mean; N in the denominator) of the score.

    Args:
        probabilities: (N, C) >= 0, rows sum to 1. Rows i N // splits to (i + 1) N // splits are split i, as in the
            authors' code: shuffle rows that are sorted by class.

    Raises:
        DataError: not (N, C) probabilities, or fewer rows than splits.
    """
    p = _checked(probabilities)
    if splits < 1 or len(p) < splits:
        raise DataError(f"{len(p)} rows cannot make {splits} splits", "use fewer splits")
    scores = _scores(p, _split(len(p), splits), splits, np.ones((len(p), 1)))[0]
    return float(scores.mean()), float(scores.std())


def inception_score_measure(fake: Rows, real: Rows, *, seed: int = 0, splits: int = SPLITS) -> dict[str, Estimate]:
    """ "IS" of the probabilities of `fake`, of as many rows as `real` has; `seed` is not used.

    Rows are put into splits by hash and count with their weights, within a split. The interval is the delete-a-group
    jackknife; it covers the expectation at this n and these splits, bias included.
    """
    fake = fake.part(min(len(fake), len(real)))
    assert fake.probabilities is not None
    p = _checked(fake.probabilities[fake.index])
    need = splits * PER_CLASS * p.shape[1]
    if len(fake) < need:
        reason = (
            f"{splits} splits and {p.shape[1]} classes need at least {need} images; here {len(fake)}: "
            "use more images or fewer splits"
        )
        return {"IS": Estimate.refuse(reason, fake, splits=splits)}
    split = np.empty(len(fake), np.int64)
    split[np.lexsort((fake.labels, fake.keys))] = _split(len(fake), splits)  # the order of the keys knows no class
    means = _scores(p, split, splits, fake.left_out_weights()).mean(axis=1)
    value, half = float(means[-1]), jackknife_half_width([means[:-1]])
    # between 1 and the number of classes by definition
    low, high = max(1.0, value - half), min(float(p.shape[1]), value + half)
    return {"IS": Estimate.of(value, min(low, value), max(high, value), fake, splits=splits)}


def _scores(p: np.ndarray, split: np.ndarray, splits: int, weights: np.ndarray) -> np.ndarray:
    """(G, splits) scores of the splits under each of the `weights` (N, G)."""
    own = _negative_entropy(p)
    result = np.empty((weights.shape[1], splits))
    for i in range(splits):
        rows = split == i
        w = weights[rows] / weights[rows].sum(axis=0)
        result[:, i] = np.exp(w.T @ own[rows] - _negative_entropy(w.T @ p[rows]))
    return result


def _negative_entropy(p: np.ndarray) -> np.ndarray:
    """sum p log p over the last axis, with 0 log 0 = 0."""
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=1)


def _split(n: int, splits: int) -> np.ndarray:
    """(n,) split of each row: i where i n // splits <= row < (i + 1) n // splits."""
    return np.searchsorted(np.arange(1, splits + 1) * n // splits, np.arange(n), side="right")


def _checked(probabilities: np.ndarray) -> np.ndarray:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not np.isfinite(p).all() or (len(p) and (p.min() < 0 or np.abs(p.sum(axis=1) - 1).max() > 1e-3)):
        raise DataError(
            f"the Inception score needs (N, C) probabilities that sum to 1, not {p.shape}",
            "apply softmax to the outputs of the classifier",
        )
    return p / p.sum(axis=1, keepdims=True)
