"""The tables of memorisation: by class, by group and overall, in one space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.near_duplicates import CopyFinder
from imbdiff.data.stats import Groups
from imbdiff.metrics.closeness import closeness, closeness_interval, combined
from imbdiff.metrics.copy_warnings import Counts, warnings
from imbdiff.metrics.statistics import wilson


@dataclass(frozen=True, eq=False)
class Side:
    """Synthetic or held-out images, one array element each.

    Attributes:
        labels: (N,) int64.
        distance: (N,) to the nearest training image of the same class, NaN where it has none.
        near, exact: (N,) bool: a near copy, an exact copy of any training image.
        neighbour_labels: (N,) class of the nearest training image of all; None where it was not looked for.
    """

    labels: np.ndarray
    distance: np.ndarray
    near: np.ndarray
    exact: np.ndarray
    neighbour_labels: np.ndarray | None = None


def tables(
    fake: Side, real: Side, train: ImageSet, groups: Groups, search: CopyFinder, leaked: np.ndarray
) -> dict[str, Any]:
    """ "summary" (per scope), "classes" and "warnings", as :func:`memorisation_report` describes them.

    Args:
        fake, real: synthetic and held-out images.
        search: what found the near copies; its share among training images stands in where nothing is held out.
        leaked: (C,) reference images of each class that are training images, and so not among `real`.
    """
    names, n_train = train.class_names, np.bincount(train.labels, minlength=len(train.class_names))
    by_class: dict[int, tuple[float, float, float]] = {}
    classes, counts = [], []
    for k in np.union1d(fake.labels, real.labels).tolist():
        mine, held = fake.labels == k, real.labels == k
        x, y = fake.distance[mine], real.distance[held]
        if len(x) and len(y) and np.isfinite(x).all() and np.isfinite(y).all():
            value = closeness(x, y)
            by_class[k] = (value, *closeness_interval(value, len(x), len(y)))
        head = {"class": names[k], "label": k, "group": groups.names[groups.of_class[k]], "n_train": int(n_train[k])}
        row = _row(fake, real, mine, held, by_class.get(k))
        classes.append({**head, **row})
        counts.append(
            Counts(
                name=names[k],
                n_train=int(n_train[k]),
                n=row["n_synthetic"],
                near=row["near_copies"],
                exact=row["exact_copies"],
                held=row["n_held_out"],
                held_near=row["held_out_near_copies"],
                held_exact=int(leaked[k]),
            )
        )
    summary = []
    for scope in ["all", *groups.present]:
        members = list(range(len(names))) if scope == "all" else groups.classes(scope)
        shared = [k for k in members if k in by_class]
        weights = [float((fake.labels == k).sum()) for k in shared]
        # as over single images: every synthetic image is compared with held-out images of its own class
        found = combined([by_class[k] for k in shared], weights) if shared else None
        masks = (np.isin(fake.labels, members), np.isin(real.labels, members))
        summary.append({"scope": scope, **_row(fake, real, *masks, found)})
    own = search.own[np.isfinite(search.own)]
    usual = float((own < search.limit).mean()) if len(own) else 0.0
    return {"summary": summary, "classes": classes, "warnings": warnings(counts, usual)}


def _row(
    fake: Side, real: Side, mine: np.ndarray, held: np.ndarray, close: tuple[float, float, float] | None
) -> dict[str, Any]:
    n, m = int(mine.sum()), int(held.sum())
    near, held_near = int(fake.near[mine].sum()), int(real.near[held].sum())
    low, high = wilson(near, n)
    value, value_low, value_high = close or (None, None, None)
    row = {
        "n_synthetic": n,
        "n_held_out": m,
        "median_synthetic": _median(fake.distance[mine]),
        "median_held_out": _median(real.distance[held]),
        "closeness": rounded(value),
        "closeness_low": rounded(value_low),
        "closeness_high": rounded(value_high),
        "near_copies": near,
        "near_copy_share": rounded(near / n) if n else None,
        "near_copy_low": rounded(low) if n else None,
        "near_copy_high": rounded(high) if n else None,
        "held_out_near_copies": held_near,
        "held_out_near_copy_share": rounded(held_near / m) if m else None,
        "held_out_near_copy_high": rounded(wilson(held_near, m)[1]) if m else None,
        "exact_copies": int(fake.exact[mine].sum()),
    }
    if fake.neighbour_labels is not None:
        other = fake.neighbour_labels[mine] != fake.labels[mine]
        row["other_class_nearest"] = rounded(float(other.mean())) if n else None
    return row


def _median(x: np.ndarray) -> float | None:
    x = x[np.isfinite(x)]
    return rounded(float(np.median(x))) if len(x) else None


def rounded(x: float | None) -> float | None:
    """To six decimals; None for what is not finite, which JSON does not know."""
    return round(float(x), 6) if x is not None and np.isfinite(x) else None
