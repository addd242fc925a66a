"""Does class k look like k to a judge? The share of images that it puts into the class asked for.

It says whether images can be recognised, not whether they are varied: copies of the training images reach 1. Beside it
stands the same share for the real reference images, which is the judge's accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.inception_score import inception_score_measure
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.metrics.scopes import Scope
from imbdiff.metrics.statistics import wilson
from imbdiff.metrics.tables import number_row

PROTOCOL = (
    "share of synthetic images that the judge puts into the class asked for; 95 % Wilson interval; beside it the same "
    "for the reference images"
)


@dataclass
class Agreement:
    """Records for `evaluate`: numbers of the synthetic images, yardsticks of the real ones, and (row, class, kind)."""

    numbers: list[dict[str, Any]] = field(default_factory=list)
    yardsticks: list[dict[str, Any]] = field(default_factory=list)
    per_class: list[tuple[dict[str, Any], int, str]] = field(default_factory=list)


def share_agreeing(predicted: np.ndarray, labels: np.ndarray) -> Estimate:
    """Share of `predicted` (N,) that equals `labels` (N,), with its Wilson interval."""
    n, hits = len(labels), int((predicted == labels).sum())
    if n == 0:
        return Estimate.refuse("no image of these classes")
    low, high = wilson(hits, n)
    return Estimate(hits / n, low, high, n_synthetic=n, n_effective=float(n))


def report(
    extractor: Extractor,
    fake: Rows,
    real: Rows,
    reference_name: str,
    every: Sequence[Scope],
    names: tuple[str, ...],
    *,
    seed: int = 0,
) -> Agreement:
    """Agreement per scope, and the Inception score of the synthetic images, where the extractor has classes.

    Agreement needs an extractor whose classes are those of the data set: it is told by their names.
    """
    result = Agreement()
    common = {
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "ranking_only": extractor.ranking_only,
        "judge_saw_reference": False,
        "reference": "label asked for",
    }
    order = _class_order(extractor, names)
    for rows, yardstick in ((fake, False), (real, True)):
        features = rows.array
        predicted = None if order is None else extractor.predict(features)
        probabilities = extractor.probabilities(features)
        if extractor.classes is None and probabilities is not None and probabilities.shape[1] != len(names):
            predicted = None  # a classifier of something else
        for scope in every:
            mine = np.isin(rows.labels, scope.classes)
            missing = int((np.bincount(rows.labels, minlength=len(names))[scope.classes] == 0).sum())
            own = {**common, "classes_left_out": missing}
            if order is not None and predicted is not None:
                found = share_agreeing(order[predicted[mine]], rows.labels[mine])
                row = number_row(f"agreement[{extractor.name}]", scope.name, found, "higher", own)
                if yardstick:
                    row["reference"] = f"labels of the {reference_name} images"
                _put(result, row, scope, yardstick)
            if probabilities is not None:
                part = rows.select(mine)
                score = inception_score_measure(probabilities[mine], part, seed=seed)["IS"]
                label = "IS" if extractor.is_fid else f"IS[{extractor.name}]"
                _put(
                    result,
                    number_row(label, scope.name, score, "higher", {**own, "reference": "none"}),
                    scope,
                    yardstick,
                )
    return result


def _put(result: Agreement, row: dict[str, Any], scope: Scope, yardstick: bool) -> None:
    if scope.kind == "class":
        result.per_class.append((row, int(scope.classes[0]), "reference" if yardstick else "synthetic"))
    else:
        (result.yardsticks if yardstick else result.numbers).append(row)


def _class_order(extractor: Extractor, names: tuple[str, ...]) -> np.ndarray | None:
    """(classes of the extractor,) label of the data set for each, -1 for others; None: it does not know them all.

    An extractor without names of its own has the classes of the data set, if it predicts at all.
    """
    if extractor.classes is None:
        return np.arange(len(names))
    label = {name: k for k, name in enumerate(names)}
    order = np.array([label.get(name, -1) for name in extractor.classes], dtype=np.int64)
    return order if set(names) <= set(extractor.classes) else None
