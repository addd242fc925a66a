"""Accuracies and calibration of one classifier as the field reports them, and their mean and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import itemgetter
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
        ece_by_group: over the images of `groups`.
        reliability: bins of confidence, see :func:`reliability`.
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
    ece_by_group: Mapping[str, float | None] | None = None
    reliability: Sequence[Mapping[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

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
        DataError: confidences that are no probabilities, or of another number of images.
    """
    from sklearn.metrics import precision_recall_fscore_support

    right = predicted == labels
    of_class = np.asarray(groups.of_class)
    usable = np.asarray(claimable, dtype=bool)
    per_class: list[float | None] = []
    for k in range(len(of_class)):
        mine = labels == k
        per_class.append(float(right[mine].mean()) if usable[k] and mine.any() else None)
    known = [k for k, value in enumerate(per_class) if value is not None]
    of_group = {name: usable[labels] & (of_class[labels] == groups.names.index(name)) for name in groups.present}
    by_group = {name: float(right[mine].mean()) if mine.any() else None for name, mine in of_group.items()}
    precision = f1 = None
    if known:
        precision, _, f1, _ = (
            None if v is None else float(v)
            for v in precision_recall_fscore_support(labels, predicted, labels=known, average="macro", zero_division=0)
        )
    calibration: dict[str, Any] = {}
    if confidence is not None:
        confidence = np.asarray(confidence)
        rows = reliability(confidence, right)
        by = {name: calibration_error(reliability(confidence[m], right[m])) for name, m in of_group.items()}
        calibration = {"ece": calibration_error(rows), "ece_chance": chance_error(rows)}
        calibration |= {"ece_by_group": by, "reliability": rows}
    return Scores(
        accuracy=float(right.mean()) if len(right) else None,
        balanced_accuracy=float(np.mean([per_class[k] for k in known])) if known else None,
        groups=by_group,
        group_sd=_balance(list(by_group.values())),
        macro_f1=f1,
        macro_precision=precision,
        per_class=per_class,
        **calibration,
    )


def _balance(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known)) if len(known) == len(values) > 1 else None


# -- calibration: bins of their own, because scikit-learn's calibration_curve gives no counts, which errors are made of


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
    return _weighted(rows, lambda row: abs(row["accuracy"] - row["confidence"]))


def chance_error(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The calibration error to be expected of a classifier that is right exactly as often as it says, with these bins.

    Each bin's hits are then binomial with n = n_b, p = confidence_b; their mean absolute deviation in closed form is
    2 v (1 - p)^(n - v + 1) p^v C(n, v), v = floor(n p) + 1 (De Moivre; Diaconis and Zabell 1991).
    """
    return _weighted(rows, lambda row: _deviation(row["n"], row["confidence"]) / row["n"])


def _weighted(rows: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> float | None:
    total = sum(row["n"] for row in rows)
    return float(sum(row["n"] * value(row) for row in rows if row["n"]) / total) if total else None


def _deviation(n: int, p: float) -> float:
    v = math.floor(n * p) + 1
    if not 0 < p < 1 or v > n:  # n p may be rounded up to n
        return 0.0
    log = math.lgamma(n + 1) - math.lgamma(v + 1) - math.lgamma(n - v + 1)
    return 2 * v * math.exp(log + (n - v + 1) * math.log1p(-p) + v * math.log(p))


def pooled(several: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The bins of several classifiers as one: numbers of images added, means weighted by them."""
    made: list[dict[str, Any]] = []
    for rows in zip(*several, strict=True):
        n = sum(row["n"] for row in rows)
        means = {key: _weighted(rows, itemgetter(key)) for key in ("confidence", "accuracy")}
        made.append({"n": n, **means})
    return made


# -- over seeds


def mean_of(runs: Sequence[Scores]) -> Scores:
    """The mean over runs; a number that some run does not have is None. Bins of confidence are pooled."""
    bins = [run.reliability for run in runs if run.reliability is not None]
    return _combined(runs, np.mean, pooled(bins) if len(bins) == len(runs) else None)


def sd_of(runs: Sequence[Scores]) -> Scores:
    """The standard deviation over runs, with n - 1; None for a single run. It has no bins of confidence."""
    return _combined(runs, lambda values: np.std(values, ddof=1) if len(values) > 1 else None, None)


def _combined(runs: Sequence[Scores], function: Callable[[Any], Any], bins: Any) -> Scores:
    names = [field.name for field in fields(Scores) if field.name != "reliability"]
    return Scores(**{name: _over([getattr(run, name) for run in runs], function) for name in names}, reliability=bins)


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
