"""Which classes are copied: tables by class, by group and overall, and a rule of warnings fixed beforehand.

The rule is made so that 1,000 classes do not cry wolf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted, display_name
from imbdiff.data.stats import Groups
from imbdiff.metrics.intervals import closeness_interval, combined, wilson

ALPHA = 0.05
"""Chance of any false class warning, all classes together (Holm 1979)."""
PRIOR = 20.0
"""Images that the share of all classes together counts for, in addition to the held-out images of the class itself."""
FLOOR = 0.01
"""Share of near copies that real images may have by chance: the limit of a near copy is made so."""
LEAST = 10
"""Synthetic and held-out images of a class, each, for its closeness."""
LISTED = 20
"""Classes named in warnings of their own; the others are counted."""

RULE = (
    "a class is warned of where its synthetic images have more near copies than its held-out real images explain: "
    "upper tail of the beta-binomial below 0.05 after Holm's correction for the number of classes; prior: 20 images "
    "with the share of all held-out images, at least 1 %; or where it has exact copies and no reference image of the "
    "class is one too. Reference images that are training images are not held out: they are left out and counted"
)

Row = Mapping[str, Any]
"""What was found of one class: a row of "classes" of the report."""


@dataclass(frozen=True, eq=False)
class Side:
    """Synthetic or held-out images, one array element each.

    Attributes:
        labels: (N,) int64.
        distance: (N,) to the nearest training image of the same class, NaN where it has none.
        near, exact: (N,) bool: a near copy, an exact copy of any training image.
        neighbour_labels: (N,) class of the nearest training image of all; None where it was not looked for.
        together: (N,) what images that belong together share; None where nothing is known of it.
    """

    labels: np.ndarray
    distance: np.ndarray
    near: np.ndarray
    exact: np.ndarray
    neighbour_labels: np.ndarray | None = None
    together: np.ndarray | None = None

    def draws(self, mine: np.ndarray) -> int:
        """How many of the images `mine` (N,) there are, those that belong together as one."""
        return int(mine.sum()) if self.together is None else len(set(self.together[mine]))


def tables(fake: Side, real: Side, train: ImageSet, groups: Groups, usual: float, leaked: np.ndarray) -> dict[str, Any]:
    """ "summary", rows of "all" and of groups; "classes", rows of classes; "warnings", sentences.

    Args:
        real: held-out images.
        usual: share of near copies that training images have among themselves, used where nothing is held out.
        leaked: (C,) reference images of each class that are training images, and so not among `real`.
    """
    names, n_train = train.class_names, np.bincount(train.labels, minlength=len(train.class_names))
    by_class: dict[int, tuple[float, float, float]] = {}
    classes: list[dict[str, Any]] = []
    for k in np.union1d(fake.labels, real.labels).tolist():
        mine, held = fake.labels == k, real.labels == k
        x, y = fake.distance[mine], real.distance[held]
        if min(len(x), len(y)) >= LEAST and np.isfinite(x).all() and np.isfinite(y).all():
            value = closeness(x, y)
            by_class[k] = (value, *closeness_interval(value, fake.draws(mine), real.draws(held)))
        head = {"class": names[k], "label": k, "group": groups.names[groups.of_class[k]], "n_train": int(n_train[k])}
        row = _row(fake, real, mine, held, by_class.get(k))
        classes.append({**head, **row, "reference_in_train": int(leaked[k])})
    summary = []
    for scope in ["all", *groups.present]:
        members = list(range(len(names))) if scope == "all" else groups.classes(scope)
        shared = [k for k in members if k in by_class]
        weights = [float((fake.labels == k).sum()) for k in shared]
        # as over single images: every synthetic image is compared with held-out images of its own class
        found = combined([by_class[k] for k in shared], weights) if shared else None
        masks = (np.isin(fake.labels, members), np.isin(real.labels, members))
        summary.append({"scope": scope, **_row(fake, real, *masks, found)})
    return {"summary": summary, "classes": classes, "warnings": warnings(classes, usual)}


def _row(
    fake: Side, real: Side, mine: np.ndarray, held: np.ndarray, close: tuple[float, float, float] | None
) -> dict[str, Any]:
    n, m = int(mine.sum()), int(held.sum())
    near, held_near = int(fake.near[mine].sum()), int(real.near[held].sum())
    share, low, high = (near / n, *wilson(near, n)) if n else (None, None, None)
    value, value_low, value_high = close or (None, None, None)
    row: dict[str, Any] = {
        "n_synthetic": n,
        "n_held_out": m,
        "median_synthetic": _median(fake.distance[mine]),
        "median_held_out": _median(real.distance[held]),
        "closeness": rounded(value),
        "closeness_low": rounded(value_low),
        "closeness_high": rounded(value_high),
        "near_copies": near,
        "near_copy_share": rounded(share),
        "near_copy_low": rounded(low),
        "near_copy_high": rounded(high),
        "held_out_near_copies": held_near,
        "held_out_near_copy_share": rounded(held_near / m if m else None),
        "exact_copies": int(fake.exact[mine].sum()),
    }
    if fake.neighbour_labels is not None:
        other = fake.neighbour_labels[mine] != fake.labels[mine]
        row["other_class_nearest"] = rounded(float(other.mean()) if n else None)
    return row


def _median(x: np.ndarray) -> float | None:
    x = x[np.isfinite(x)]
    return rounded(float(np.median(x))) if len(x) else None


def rounded(x: float | None) -> float | None:
    """To six decimals; None for what is not finite, which JSON does not know."""
    return round(float(x), 6) if x is not None and np.isfinite(x) else None


def closeness(synthetic: np.ndarray, held_out: np.ndarray) -> float:
    """P(a synthetic image is nearer to its nearest training image than a held-out one to its own), ties count half.

    The Mann-Whitney statistic (area under the ROC curve) of two samples of distances: 0.5 for images as new as real
    ones, 1 for copies, and for blurred images too, below 0.5 for images that are farther off than real ones.

    Args:
        synthetic: (m,) distances, m >= 1; held_out: (n,), n >= 1.
    """
    others = np.sort(held_out)
    right = np.searchsorted(others, synthetic, side="right")
    left = np.searchsorted(others, synthetic, side="left")
    return float((len(others) - (right + left) / 2).mean() / len(others))


def suspects(classes: Sequence[Row], otherwise: float = 0.0) -> list[int]:
    """Places of the classes to be warned of, by the rule above.

    X near copies of n synthetic images are beta-binomial if these are as often near copies as real ones: the share of
    the class has the prior Beta(20 base, 20 (1 - base)), updated by its held-out images.

    Args:
        otherwise: share of near copies that training images have among themselves, used where nothing is held out.
    """
    from scipy.stats import betabinom  # a second to import

    base = base_share(classes, otherwise)
    n, near, exact, held, held_near = _columns(classes)
    p = betabinom.sf(near - 1, n, PRIOR * base + held_near, PRIOR * (1 - base) + held - held_near)
    tested = np.flatnonzero(n)
    order = tested[np.argsort(p[tested], kind="stable")]
    failed = np.flatnonzero(p[order] > ALPHA / (len(order) - np.arange(len(order))))
    found = order[: failed[0]] if len(failed) else order
    leaked = np.array([row["reference_in_train"] for row in classes], dtype=bool)
    return np.union1d(found, np.flatnonzero((n > 0) & (exact > 0) & ~leaked)).tolist()


def base_share(classes: Sequence[Row], otherwise: float) -> float:
    """Share of near copies among all held-out images, 1 % to 99 %; `otherwise` where there are none."""
    *_, held, held_near = _columns(classes)
    return min(max(FLOOR, held_near.sum() / held.sum() if held.sum() else otherwise), 1 - FLOOR)


def _columns(classes: Sequence[Row]) -> list[np.ndarray]:
    keys = ("n_synthetic", "near_copies", "exact_copies", "n_held_out", "held_out_near_copies")
    return [np.array([row[key] for row in classes], dtype=np.int64) for key in keys]


def warnings(classes: Sequence[Row], otherwise: float = 0.0) -> list[str]:
    """Sentences: one for each suspect class, the highest share first, at most 20, and one that counts the others.

    Where no class stands out, all of them together may: then there is one sentence about all.
    """
    found = [classes[i] for i in suspects(classes, otherwise)]
    found.sort(key=lambda row: (-row["near_copies"] / row["n_synthetic"], row["n_train"]))
    sentences = [_sentence(row) for row in found[:LISTED]]
    more = [display_name(row["class"], 40) for row in found[LISTED:]]
    if more:
        named = ", ".join(repr(name) for name in more[:LISTED]) + (", ..." if len(more) > LISTED else "")
        sentences.append(
            f"near copies of training images in {counted(len(more), 'more class', 'more classes')}: {named}"
        )
    return sentences or _together(classes, base_share(classes, otherwise))


def _sentence(row: Row) -> str:
    n, held = row["n_synthetic"], row["n_held_out"]
    exact = f", {row['exact_copies']:,} exact" if row["exact_copies"] else ""
    real = "none held out to compare"
    if held:
        real = f"held-out real images: {_percent(row['held_out_near_copies'], held)} of {held:,}"
    return (
        f"class {display_name(row['class'], 40)!r} ({counted(row['n_train'], 'training image')}): "
        f"{_percent(row['near_copies'], n)} of its {counted(n, 'synthetic image')} are near copies of training images"
        f"{exact} ({real})"
    )


def _together(classes: Sequence[Row], base: float) -> list[str]:
    """All classes at once, each with the share that its held-out images suggest: normal approximation, z > 2.58."""
    n, near, _, held, held_near = _columns(classes)
    share = (held_near + PRIOR * base) / (held + PRIOR)
    expected = float((n * share).sum())
    variance = float((n * share * (1 - share) * (held + PRIOR + n) / (held + PRIOR + 1)).sum())
    if near.sum() - 0.5 <= expected + 2.5758 * math.sqrt(variance):
        return []
    return [
        f"over all classes {_percent(near.sum(), n.sum())} of {n.sum():,} synthetic images are near copies of "
        f"training images; {100 * expected / n.sum():.1f} % would be usual for held-out real images"
    ]


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 10 or part == 0 or part == whole else f"{share:.1f} %"
