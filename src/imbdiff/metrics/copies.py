"""Which classes are copied: tables by class, by group and overall, and a rule of warnings fixed beforehand.

The rule is made so that 1,000 classes do not cry wolf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted, display_name
from imbdiff.data.near_duplicates import CopyFinder
from imbdiff.data.stats import Groups
from imbdiff.metrics.intervals import closeness_interval, combined, wilson

ALPHA = 0.05
"""Chance of any false class warning, all classes together (Holm 1979)."""
PRIOR = 20.0
"""Images that the share of all classes together counts for, in addition to the held-out images of the class itself."""
FLOOR = 0.01
"""Share of near copies that real images may have by chance: the limit of a near copy is made so."""
LISTED = 20
"""Classes named in warnings of their own; the others are counted."""

RULE = (
    "a class is warned of where its synthetic images have more near copies than its held-out real images explain: "
    "upper tail of the beta-binomial below 0.05 after Holm's correction for the number of classes; prior: 20 images "
    "with the share of all held-out images, at least 1 %; or where it has exact copies and no reference image of the "
    "class is one too. Reference images that are training images are not held out: they are left out and counted"
)


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


@dataclass(frozen=True)
class Counts:
    """Copies of one class.

    Attributes:
        name: of the class; n_train: its training images.
        n, near, exact: synthetic images, near copies and exact ones among them.
        held, held_near, held_exact: the same of held-out real images.
    """

    name: str
    n_train: int
    n: int
    near: int
    exact: int
    held: int
    held_near: int
    held_exact: int


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
    return {"summary": summary, "classes": classes, "warnings": warnings(counts, search.usual)}


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


def closeness(synthetic: np.ndarray, held_out: np.ndarray) -> float:
    """P(a synthetic image is nearer to its nearest training image than a held-out one to its own), ties count half.

    The Mann-Whitney statistic (area under the ROC curve) of two samples of distances: 0.5 for images as new as real
    ones, 1 for copies, below 0.5 for images that are farther off than real ones.

    Args:
        synthetic: (m,) distances, m >= 1; held_out: (n,), n >= 1.
    """
    others = np.sort(held_out)
    right = np.searchsorted(others, synthetic, side="right")
    left = np.searchsorted(others, synthetic, side="left")
    return float((len(others) - (right + left) / 2).mean() / len(others))


def excess(near: int, n: int, held_near: int, held: int, base: float) -> float:
    """P(X >= near) of n images of a class, if synthetic images are as often near copies as real ones.

    X is beta-binomial: the share of the class has the prior Beta(20 base, 20 (1 - base)), updated by its held-out
    images.
    """
    if near == 0:
        return 1.0
    a, b = PRIOR * base + held_near, PRIOR * (1 - base) + held - held_near

    def beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    def log_probability(x: int) -> float:
        ways = math.lgamma(n + 1) - math.lgamma(x + 1) - math.lgamma(n - x + 1)
        return ways + beta(a + x, b + n - x) - beta(a, b)

    return min(1.0, math.fsum(math.exp(log_probability(x)) for x in range(near, n + 1)))


def base_share(classes: Sequence[Counts], otherwise: float) -> float:
    """Share of near copies among all held-out images, 1 % to 99 %; `otherwise` where there are none."""
    held = sum(c.held for c in classes)
    return min(max(FLOOR, sum(c.held_near for c in classes) / held if held else otherwise), 1 - FLOOR)


def suspects(classes: Sequence[Counts], otherwise: float = 0.0) -> list[int]:
    """Places of the classes to be warned of, by the rule above.

    Args:
        otherwise: share of near copies that training images have among themselves, used where nothing is held out.
    """
    base = base_share(classes, otherwise)
    tested = [i for i, c in enumerate(classes) if c.n]
    p = {i: excess(c.near, c.n, c.held_near, c.held, base) for i, c in enumerate(classes) if c.n}
    found = set()
    for rank, i in enumerate(sorted(tested, key=p.__getitem__)):
        if p[i] > ALPHA / (len(tested) - rank):
            break
        found.add(i)
    found |= {i for i in tested if classes[i].exact and not classes[i].held_exact}
    return sorted(found)


def warnings(classes: Sequence[Counts], otherwise: float = 0.0) -> list[str]:
    """Sentences: one for each suspect class, the highest share first, at most 20, and one that counts the others.

    Where no class stands out, all of them together may: then one sentence says so.
    """
    found = sorted(suspects(classes, otherwise), key=lambda i: (-classes[i].near / classes[i].n, classes[i].n_train, i))
    rows = [_sentence(classes[i]) for i in found[:LISTED]]
    more = [display_name(classes[i].name, 40) for i in found[LISTED:]]
    if more:
        named = ", ".join(repr(name) for name in more[:LISTED]) + (", ..." if len(more) > LISTED else "")
        rows.append(f"near copies of training images in {counted(len(more), 'more class', 'more classes')}: {named}")
    if not rows:
        rows += _together(classes, base_share(classes, otherwise))
    return rows


def _sentence(c: Counts) -> str:
    exact = f", {c.exact:,} exact" if c.exact else ""
    real = (
        f"held-out real images: {_percent(c.held_near, c.held)} of {c.held:,}" if c.held else "none held out to compare"
    )
    has = counted(c.n_train, "training image")
    return (
        f"class {display_name(c.name, 40)!r} ({has}): {_percent(c.near, c.n)} of its "
        f"{counted(c.n, 'synthetic image')} are near copies of training images{exact} ({real})"
    )


def _together(classes: Sequence[Counts], base: float) -> list[str]:
    """All classes at once, each with the share that its held-out images suggest: normal approximation, z > 2.58."""
    n = np.array([c.n for c in classes], dtype=np.float64)
    held = np.array([c.held for c in classes], dtype=np.float64)
    share = (np.array([c.held_near for c in classes]) + PRIOR * base) / (held + PRIOR)
    expected = float((n * share).sum())
    variance = float((n * share * (1 - share) * (held + PRIOR + n) / (held + PRIOR + 1)).sum())
    near = sum(c.near for c in classes)
    if near - 0.5 <= expected + 2.5758 * math.sqrt(variance):
        return []
    return [
        f"over all classes {_percent(near, int(n.sum()))} of {int(n.sum()):,} synthetic images are near copies of "
        f"training images; {100 * expected / n.sum():.1f} % would be usual for held-out real images"
    ]


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 10 or part == 0 or part == whole else f"{share:.1f} %"
