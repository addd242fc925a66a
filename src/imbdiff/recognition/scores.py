"""Accuracies of one classifier, and their mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imbdiff.data.stats import Groups


def scores(predicted: np.ndarray, labels: np.ndarray, groups: Groups, claimable: Sequence[bool]) -> dict[str, Any]:
    """Accuracies of `predicted` (N,) against `labels` (N,).

    Returns:
        "accuracy" over all images; "per_class", None for classes that no claim is made of; "balanced_accuracy", the
        mean over the others; "groups", accuracy over the images of each group's claimable classes, None where the group
        has none.
    """
    right = predicted == labels
    of_class = np.asarray(groups.of_class)
    usable = np.asarray(claimable, dtype=bool)
    per_class: list[float | None] = []
    for k in range(len(of_class)):
        mine = labels == k
        per_class.append(float(right[mine].mean()) if usable[k] and mine.any() else None)
    known = [value for value in per_class if value is not None]
    by_group: dict[str, float | None] = {}
    for name in groups.present:
        mine = usable[labels] & (of_class[labels] == groups.names.index(name))
        by_group[name] = float(right[mine].mean()) if mine.any() else None
    return {
        "accuracy": float(right.mean()) if len(right) else None,
        "balanced_accuracy": float(np.mean(known)) if known else None,
        "groups": by_group,
        "per_class": per_class,
    }


def spread(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"mean", "sd"} of several :func:`scores`; the sd with n - 1, and None for a single run."""
    return {"mean": _over(runs, np.mean), "sd": _over(runs, lambda v: np.std(v, ddof=1) if len(v) > 1 else None)}


def _over(runs: Sequence[dict[str, Any]], function: Any) -> dict[str, Any]:
    def one(values: Sequence[float | None]) -> float | None:
        if any(v is None for v in values):
            return None
        result = function(values)
        return None if result is None else float(result)

    classes = range(len(runs[0]["per_class"]))
    return {
        "accuracy": one([run["accuracy"] for run in runs]),
        "balanced_accuracy": one([run["balanced_accuracy"] for run in runs]),
        "groups": {name: one([run["groups"][name] for run in runs]) for name in runs[0]["groups"]},
        "per_class": [one([run["per_class"][k] for run in runs]) for k in classes],
    }
