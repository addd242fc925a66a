"""Which classes are copied: a rule fixed beforehand, which 1,000 classes do not make cry wolf."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imbdiff.data.names import counted, display_name

ALPHA = 0.05
"""Chance of any false class warning, all classes together (Holm 1979)."""
PRIOR = 20.0
"""Images that the share of all classes together counts for, beside the held-out images of the class itself."""
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
