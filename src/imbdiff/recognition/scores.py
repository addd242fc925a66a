"""Accuracies of one classifier as the field reports them, and their mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from imbdiff.data.stats import Groups
from imbdiff.recognition.calibration import calibration_error, chance_error, pooled, reliability


def scores(
    predicted: np.ndarray,
    labels: np.ndarray,
    groups: Groups,
    claimable: Sequence[bool],
    confidence: np.ndarray | None = None,
) -> dict[str, Any]:
    """What `predicted` (N,) is worth against `labels` (N,).

    Args:
        claimable: (C,) whether claims are made of a class; the others count in "accuracy" and "ece" alone, and as
            images that may wrongly be put into a class.
        confidence: (N,) softmax probability of the predicted class; without it, nothing is said of calibration.

    Returns:
        "accuracy" over all images; "per_class", None for classes that no claim is made of or that have no image;
        "balanced_accuracy", the mean over the others.
        "groups": accuracy over the images of each group's claimable classes, None where the group has none. Every image
        counts once, so that where test images per class differ, this is not the mean over the group's classes.
        "group_sd": standard deviation of these over the groups, with the number of groups as divisor (the "Std" of
        long-tail tables); None for a single group, or where a group has no accuracy.
        "macro_f1", "macro_precision": means over the classes of "per_class" that are known; a class that is never
        predicted counts as 0 in both.
        With `confidence`: "reliability" (15 bins), "ece", the expected calibration error over all images, "ece_chance",
        what it would be of a perfectly calibrated classifier, and "ece_by_group", over the images of "groups". The
        error of few images is large by chance alone.

    Raises:
        DataError: confidences that are no probabilities, or of another number of images.
    """
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
    precision, f1 = _macro(predicted, labels, known)
    found: dict[str, Any] = {
        "accuracy": float(right.mean()) if len(right) else None,
        "balanced_accuracy": float(np.mean([per_class[k] for k in known])) if known else None,
        "groups": by_group,
        "group_sd": _balance(list(by_group.values())),
        "macro_f1": f1,
        "macro_precision": precision,
        "per_class": per_class,
    }
    if confidence is not None:
        confidence = np.asarray(confidence)
        rows = reliability(confidence, right)
        found["ece"], found["ece_chance"] = calibration_error(rows), chance_error(rows)
        found["ece_by_group"] = {
            name: calibration_error(reliability(confidence[mine], right[mine])) for name, mine in of_group.items()
        }
        found["reliability"] = rows
    return found


def _balance(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known)) if len(known) == len(values) > 1 else None


def _macro(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> tuple[float | None, float | None]:
    """Mean precision and mean F1 = 2 hits / (images + predictions) of `classes`, from all images; 0 / 0 is 0."""
    if not classes:
        return None, None
    c = int(max(predicted.max(), labels.max())) + 1
    hits, images, predictions = (
        np.bincount(chosen, minlength=c)[list(classes)] for chosen in (labels[predicted == labels], labels, predicted)
    )
    precision = hits / np.maximum(predictions, 1)
    return float(precision.mean()), float((2 * hits / np.maximum(images + predictions, 1)).mean())


def spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"mean", "sd"} of several :func:`scores`; the sd with n - 1, and None for a single run.

    A number that some run does not have is None. What only some runs hold at all, such as calibration, is left out.
    "reliability" stands in "mean" alone: the bins of all runs together, with their images added up.
    """
    keys = [key for key in runs[0] if key in _NUMBERS and all(key in run for run in runs)]
    mean = {key: _over([run[key] for run in runs], np.mean) for key in keys}
    sd = {key: _over([run[key] for run in runs], _sd) for key in keys}
    if all(run.get("reliability") for run in runs):
        mean["reliability"] = pooled([run["reliability"] for run in runs])
    return {"mean": mean, "sd": sd}


_NUMBERS = (
    "accuracy", "balanced_accuracy", "groups", "group_sd", "macro_f1", "macro_precision", "per_class", "ece",
    "ece_chance", "ece_by_group",
)  # fmt: skip


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _over(values: Sequence[Any], function: Callable[[Any], Any]) -> Any:
    """`function` over the runs of a number, or of each number of a dict or list."""
    first = values[0]
    if isinstance(first, Mapping):
        return {name: _over([value[name] for value in values], function) for name in first}
    if isinstance(first, list):
        return [_over(list(column), function) for column in zip(*values, strict=True)]
    if any(value is None for value in values):
        return None
    result = function(values)
    return None if result is None else float(result)
