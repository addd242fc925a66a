"""Nearest neighbours in pixel space: is a synthetic image a copy of a training image?

The distance alone says little, so it stands beside the same distance for held-out real images of the same class: real
images that nobody copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.runtime.errors import DataError

CAP = 10_000
"""Synthetic images whose neighbours are looked for and listed: the first of each class in turn (see `capped_rows`)."""


def nearest(queries: np.ndarray, base: np.ndarray, chunk: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """The nearest row of `base` to each of `queries`.

    Args:
        queries: (N, D) numbers; base: (M, D), M >= 1.
        chunk: queries per block; memory is O(chunk * M).

    Returns:
        (N,) int64 row of `base`, the lowest among equals, and (N,) float64 root-mean-square difference
        sqrt(sum (q - b)^2 / D). float64, in which whole numbers as pixels are are exact: the distance of a copy is 0.
    """
    b = base.reshape(len(base), -1).astype(np.float64)
    norms = (b * b).sum(axis=1)
    index = np.empty(len(queries), dtype=np.int64)
    distance = np.empty(len(queries))
    for start in range(0, len(queries), chunk):
        q = queries[start : start + chunk].reshape(-1, b.shape[1]).astype(np.float64)
        squared = (q * q).sum(axis=1)[:, None] + norms - 2 * q @ b.T
        best = squared.argmin(axis=1)
        index[start : start + len(q)] = best
        distance[start : start + len(q)] = np.sqrt(np.maximum(squared[np.arange(len(q)), best], 0) / b.shape[1])
    return index, distance


def nearest_within_class(queries: ImageSet, base: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`nearest` on pixels / 255, among the images of the query's class; -1 and NaN where there is none."""
    index = np.full(len(queries), -1, dtype=np.int64)
    distance = np.full(len(queries), np.nan)
    for k in np.unique(queries.labels):
        rows, mine = np.flatnonzero(base.labels == k), np.flatnonzero(queries.labels == k)
        if len(rows):
            found, d = nearest(queries.images[mine], base.images[rows])
            index[mine], distance[mine] = rows[found], d / 255
    return index, distance


def nearest_report(synthetic: ImageSet, train: ImageSet, held_out: ImageSet, groups: Groups) -> dict[str, Any]:
    """Neighbours of every synthetic image among the training images, beside those of held-out real images.

    Distances are root-mean-square differences of pixels in [0, 1]. `closeness` is the probability that a synthetic
    image is nearer to its nearest training image of its class than a held-out real image of that class is to its own:
    0.5 for images as new as real ones, 1 for copies (ties count half).

    Raises:
        DataError: the sets have images of different shapes.
    """
    for name, other in (("synthetic", synthetic), ("held-out", held_out)):
        if other.shape != train.shape:
            raise DataError(f"{name} images are {other.shape} (H, W, C), the training images {train.shape}")
    rows = capped_rows(synthetic.labels, CAP)
    part = synthetic.select(rows)
    own, own_distance = nearest_within_class(part, train)
    any_index, any_distance = nearest(part.images, train.images)
    any_distance = any_distance / 255
    _, held_distance = nearest_within_class(held_out.select(capped_rows(held_out.labels, CAP)), train)
    held_labels = held_out.labels[capped_rows(held_out.labels, CAP)]
    closeness = _closeness(own_distance, part.labels, held_distance, held_labels)
    of_class = np.asarray(groups.of_class)
    summary = []
    for scope in ["all", *groups.present]:
        mine = np.ones(len(part), bool) if scope == "all" else of_class[part.labels] == groups.names.index(scope)
        held = np.ones(len(held_labels), bool) if scope == "all" else of_class[held_labels] == groups.names.index(scope)
        summary.append(
            {
                "scope": scope,
                "n_synthetic": int(mine.sum()),
                "n_held_out": int(held.sum()),
                "median_synthetic": _median(own_distance[mine]),
                "median_held_out": _median(held_distance[held]),
                "exact_copies": int((any_distance[mine] == 0).sum()),
                "closeness": _mean(closeness[mine]),
                "other_class_nearest": _mean((train.labels[any_index[mine]] != part.labels[mine]).astype(float)),
            }
        )
    return {
        "space": "pixels, root-mean-square difference, 0..1",
        "n": len(part),
        "n_synthetic": len(synthetic),
        "cap": CAP,
        "index": rows.tolist(),
        "train_index": own.tolist(),
        "distance": [_number(d) for d in own_distance],
        "any_train_index": any_index.tolist(),
        "any_distance": [_number(d) for d in any_distance],
        "summary": summary,
    }


def capped_rows(labels: np.ndarray, cap: int) -> np.ndarray:
    """All rows in order; where there are more than `cap`: the first of every class, then the second, and so on."""
    if len(labels) <= cap:
        return np.arange(len(labels))
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(np.lexsort((labels, rank))[:cap])


def _closeness(d: np.ndarray, labels: np.ndarray, held: np.ndarray, held_labels: np.ndarray) -> np.ndarray:
    result = np.full(len(d), np.nan)
    for k in np.unique(labels):
        others = np.sort(held[(held_labels == k) & np.isfinite(held)])
        mine = np.flatnonzero((labels == k) & np.isfinite(d))
        if len(others) and len(mine):
            farther = len(others) - np.searchsorted(others, d[mine], side="right")
            equal = np.searchsorted(others, d[mine], side="right") - np.searchsorted(others, d[mine], side="left")
            result[mine] = (farther + equal / 2) / len(others)
    return result


def _median(x: np.ndarray) -> float | None:
    x = x[np.isfinite(x)]
    return float(np.median(x)) if len(x) else None


def _mean(x: np.ndarray) -> float | None:
    x = x[np.isfinite(x)]
    return float(x.mean()) if len(x) else None


def _number(x: float) -> float | None:
    return round(float(x), 6) if np.isfinite(x) else None
