"""Accuracies and calibration of one classifier as the field reports them, and their mean and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from imbdiff.data.stats import Groups
from imbdiff.runtime.errors import DataError

BINS = 15


@dataclass(frozen=True)
class Scores:
    """What the predictions of a classifier are worth; a number that is not known is None.

    Attributes:
        accuracy: over all images.
        balanced_accuracy: mean over the known classes of `per_class`.
        groups: accuracy over the images of each group's claimable classes. Every image counts once, so that where test
            images per class differ, this is not the mean over the group's classes.
        group_sd: standard deviation of these over the groups, with the number of groups as divisor (the "Std" of
            long-tail tables); None for a single group, or where a group has no accuracy.
        macro_f1, macro_precision: means over the known classes; a class that is never predicted counts as 0 in both.
        per_class: accuracy of each class; None for classes that no claim is made of or that have no image.
        ece: expected calibration error over all images. The error of few images is large by chance alone.
        ece_chance: what it would be of a perfectly calibrated classifier.
    """

    accuracy: float | None
    balanced_accuracy: float | None
    groups: Mapping[str, float | None]
    group_sd: float | None
    macro_f1: float | None
    macro_precision: float | None
    per_class: Sequence[float | None]
    ece: float | None = None
    ece_chance: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scores:
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def scores(
    predicted: np.ndarray,
    labels: np.ndarray,
    groups: Groups,
    claimable: Sequence[bool],
    confidence: np.ndarray | None = None,
) -> Scores:
    """What `predicted` (N,) is worth against `labels` (N,).

    Args:
        claimable: (C,) whether claims are made of a class; the others count in "accuracy" and "ece" alone, and as
            images that may wrongly be put into a class.
        confidence: (N,) softmax probability of the predicted class; without it, there are no numbers of calibration.

    Raises:
        DataError: confidences that are no probabilities.
    """
    from sklearn.metrics import precision_recall_fscore_support

    right = predicted == labels
    of_class = np.asarray(groups.of_class)
    usable = np.asarray(claimable, dtype=bool)

    def accuracy(mine: np.ndarray) -> float | None:
        return float(right[mine].mean()) if mine.any() else None

    per_class = [accuracy(labels == k) if usable[k] else None for k in range(len(of_class))]
    known = [k for k, value in enumerate(per_class) if value is not None]
    by_group = {g: accuracy(usable[labels] & (of_class[labels] == groups.names.index(g))) for g in groups.present}
    values = [value for value in by_group.values() if value is not None]
    precision = f1 = None
    if known:
        precision, _, f1, _ = (
            None if v is None else float(v)
            for v in precision_recall_fscore_support(labels, predicted, labels=known, average="macro", zero_division=0)
        )
    bins = None if confidence is None else reliability(np.asarray(confidence), right)
    return Scores(
        accuracy=accuracy(np.ones(len(right), dtype=bool)),
        balanced_accuracy=float(np.mean([per_class[k] for k in known])) if known else None,
        groups=by_group,
        group_sd=float(np.std(values)) if len(values) == len(by_group) > 1 else None,
        macro_f1=f1,
        macro_precision=precision,
        per_class=per_class,
        ece=None if bins is None else calibration_error(*bins),
        ece_chance=None if bins is None else chance_error(*bins[:2]),
    )


# -- calibration: bins of our own, because scikit-learn's calibration_curve gives no counts, which errors are made of


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, ...]:
    """Of the bins with images, of equal width over [0, 1]: (n, mean confidence, accuracy), float64 each.

    A bin holds its upper end and not its lower one; the first holds 0 too (Guo et al. 2017, section 2).

    Args:
        confidence: (N,) softmax probability of the predicted class, 0 to 1.
        right: (N,) whether the prediction is right.

    Raises:
        DataError: a confidence that is no probability.
    """
    p = np.asarray(confidence, dtype=np.float64)
    # float32 softmax may end a rounding error above 1
    bad = ~(np.isfinite(p) & (p >= 0) & (p <= 1 + 1e-5))
    if bad.any():
        raise DataError(f"{p[bad][0]} is no probability: confidences lie in 0 to 1", "give them after the softmax")
    p = np.minimum(p, 1.0)
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p, side="left")
    n = np.bincount(place, minlength=bins).astype(np.float64)
    used = n > 0
    sums = [np.bincount(place, values, minlength=bins)[used] for values in (p, np.asarray(right, dtype=np.float64))]
    return n[used], sums[0] / n[used], sums[1] / n[used]


def calibration_error(n: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray) -> float | None:
    """Expected calibration error, sum_b n_b / N |accuracy_b - confidence_b| (Guo et al. 2017, Eq. 3); None for N = 0.

    It is never below 0, so that chance alone makes it positive: see :func:`chance_error`.
    """
    return float((n * np.abs(accuracy - confidence)).sum() / n.sum()) if len(n) else None


def chance_error(n: np.ndarray, confidence: np.ndarray) -> float | None:
    """The calibration error to be expected of a classifier that is right exactly as often as it says, with these bins.

    Each bin's hits are then binomial with n = n_b, p = confidence_b; their mean absolute deviation in closed form is
    2 v (1 - p)^(n - v + 1) p^v C(n, v), v = floor(n p) + 1 (De Moivre; Diaconis and Zabell 1991).
    """
    if not len(n):
        return None
    return float(sum(_deviation(int(m), float(p)) for m, p in zip(n, confidence, strict=True)) / n.sum())


def _deviation(n: int, p: float) -> float:
    v = math.floor(n * p) + 1
    if not 0 < p < 1 or v > n:  # n p may be rounded up to n
        return 0.0
    log = math.lgamma(n + 1) - math.lgamma(v + 1) - math.lgamma(n - v + 1)
    return 2 * v * math.exp(log + (n - v + 1) * math.log1p(-p) + v * math.log(p))


# -- over seeds


def mean_of(runs: Sequence[Scores]) -> Scores:
    """The mean over runs; a number that some run does not have is None."""
    return _combined(runs, np.mean)


def sd_of(runs: Sequence[Scores]) -> Scores:
    """The standard deviation over runs, with n - 1; None for a single run."""
    return _combined(runs, lambda values: np.std(values, ddof=1) if len(values) > 1 else None)


def _combined(runs: Sequence[Scores], function: Callable[[Any], Any]) -> Scores:
    return Scores(
        **{field.name: _over([getattr(run, field.name) for run in runs], function) for field in fields(Scores)}
    )


def _over(values: Sequence[Any], function: Callable[[Any], Any]) -> Any:
    """`function` over the runs of a number, or of each number of a dict or list."""
    if any(value is None for value in values):
        return None
    first = values[0]
    if isinstance(first, Mapping):
        return {name: _over([value[name] for value in values], function) for name in first}
    if isinstance(first, Sequence):
        return [_over(list(column), function) for column in zip(*values, strict=True)]
    result = function(values)
    return None if result is None else float(result)
