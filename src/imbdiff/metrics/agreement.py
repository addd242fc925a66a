"""Does class k look like k to a judge? The share of images that it puts into the class asked for.

It says whether images can be recognised, not whether they are varied: copies of the training images reach 1. Beside it
stands the same share for the real reference images, which is the judge's accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.inception_score import inception_score_measure
from imbdiff.metrics.intervals import wilson
from imbdiff.metrics.numbers import Number, Of
from imbdiff.metrics.rows import Estimate, Rows, Scope

PROTOCOL = (
    "share of synthetic images that the judge puts into the class asked for, weighted to the class mix; 95 % Wilson "
    "interval at the effective n; with the same for the reference images"
)


def share_agreeing(predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Estimate:
    """Share of `predicted` (N,) that equals `labels` (N,), with Wilson's interval.

    Args:
        weights: (N,) >= 0 of the images; the interval is then that of the effective n, 1 / sum w^2.
    """
    n = len(labels)
    if n == 0:
        return Estimate.refuse("no image of these classes")
    w = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    share, effective = float(w @ (predicted == labels)), 1 / float((w * w).sum())
    low, high = wilson(share * effective, effective)
    return Estimate(share, low, high, n_synthetic=n, n_effective=effective)


def report(
    extractor: Extractor,
    fake: Rows,
    real: Rows,
    reference_name: str,
    every: Sequence[Scope],
    names: tuple[str, ...],
    *,
    seed: int = 0,
) -> Iterator[tuple[Number, Scope, Of]]:
    """Agreement per scope, and the Inception score, where the extractor has classes; of both sets.

    Both sets are restricted to the classes that they share and weighted to the class mix of `real`, as for the
    distances. The Inception score is that of as many images of either set. Agreement needs an extractor whose classes
    are those of the data set: it goes by their names.
    """
    order = _class_order(extractor, names)
    answers = [_answers(extractor, rows, order) for rows in (fake, real)]
    if all(predicted is None and probabilities is None for predicted, probabilities in answers):
        return
    whose: tuple[Of, Of] = ("synthetic", "reference")
    for scope in every:
        *pair, left_out = scope.pair(fake, real, len(names))
        origin = {**extractor.origin, "direction": "higher", "classes_left_out": left_out}
        n = min(len(rows) for rows in pair)
        for rows, (predicted, probabilities), of in zip(pair, answers, whose, strict=True):
            if predicted is not None:
                share = share_agreeing(predicted[rows.index], rows.labels, rows.weights)
                asked = "label asked for" if of == "synthetic" else f"labels of the {reference_name} images"
                yield Number.of("agreement", scope.name, share, reference=asked, **origin), scope, of
            if probabilities is not None:
                part = rows.part(n)
                score = inception_score_measure(probabilities[part.index], part, seed=seed)["IS"]
                alone = "none" if of == "synthetic" else f"{reference_name} images"
                yield Number.of("IS", scope.name, score, reference=alone, **origin), scope, of


def _answers(
    extractor: Extractor, rows: Rows, order: np.ndarray | None, size: int = 8192
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(N,) labels, (N, C) probabilities of the features that `rows` came from; None where there are none.

    In the order that the features are stored in, and read a few at a time.
    """
    predicted: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    for start in range(0, len(rows.features), size):
        block = np.array(rows.features[start : start + size])
        p, z = extractor.probabilities(block), extractor.predict(block)
        if p is None and z is None:
            return None, None
        if p is not None:
            probabilities.append(p.astype(np.float32))
        # a classifier of as many classes as the data set has, or one that names its classes
        if z is not None and order is not None and (p is None or p.shape[1] == len(order)):
            predicted.append(order[z])
    return (
        np.concatenate(predicted) if predicted else None,
        np.concatenate(probabilities) if probabilities else None,
    )


def _class_order(extractor: Extractor, names: tuple[str, ...]) -> np.ndarray | None:
    """(classes of the extractor,) label of the data set for each, -1 for others; None: it does not know them all.

    An extractor without names of its own has the classes of the data set, if it predicts at all.
    """
    if extractor.classes is None:
        return np.arange(len(names))
    label = {name: k for k, name in enumerate(names)}
    order = np.array([label.get(name, -1) for name in extractor.classes], dtype=np.int64)
    return order if set(names) <= set(extractor.classes) else None
