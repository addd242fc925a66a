"""Exact and near duplicates of a source's images, from one look at them: within splits and across.

Near duplicates are found from the 8 x 8 block means as whole numbers, not from the images. Measured against the search
in whole images (:func:`imbdiff.data.near_duplicates.across`), test among training images: the same pairs in digits (19
of 500 images), skin lesions (3 of 1,198) and CIFAR-10 (46 of 2,500 among 20,000), whose sides are multiples of 8. In
Fashion-MNIST, 28 x 28, blocks are cut differently: 106 pairs against 84, 70 in common; most of either are chance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from imbdiff.data.findings.look import Look
from imbdiff.data.near_duplicates import CAP, NEIGHBOURS, Across, CopyFinder, Pair, beyond_chance, look_up, thumbnails

KEPT_PAIRS = 1_000
"""Near duplicates of two splits that the report lists, the most alike; it counts all."""
PAIRS = 1_000_000_000
"""Distances measured within a split at most, half as many across splits: about 15 s on one core, both forms."""
LEAST_LOOKED_UP = 500

Copies = list[list[tuple[str, str, int]]]


def copies(looks: Mapping[str, Look]) -> Copies:
    """Groups of images whose pixels are equal in their own size, as (split, id, label)."""
    same: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for split, images in looks.items():
        for key, name, label in zip(images.hashes, images.ids, images.labels.tolist(), strict=True):
            same[key].append((split, name, label))
    return [group for group in same.values() if len(group) > 1]


def lookups(images: int, pairs: int = PAIRS) -> int:
    """How many images are looked up among `images` others: at most 10,000, fewer among more than 100,000."""
    return max(LEAST_LOOKED_UP, min(CAP, pairs // max(1, images)))


def finder(images: Look) -> CopyFinder | None:
    """Looks the images of a split up among each other, mirrored ones too; None for an empty split."""
    if not len(images):
        return None
    small = images.small
    return CopyFinder(
        thumbnails(small), images.hashes, lambda rows: thumbnails(small[rows], True), lookups(len(images))
    )


def within(images: Look, search: CopyFinder | None) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """The row of the report on near duplicates inside a split, and the pairs as image numbers, the most alike first.

    Every pair is listed once, however many of the two were looked up. Exact duplicates are not among them.
    """
    among = search.among if search is not None else None
    if search is None or among is None:
        return _row(images.split, images.split, Across((), 0, len(images), None)), []
    best: dict[tuple[int, int], tuple[float, bool]] = {}
    for i in np.flatnonzero(among.found.near).tolist():
        a, b = int(among.rows[i]), int(among.found.index[i])
        ratio = float(among.found.ratio[i]) if np.isfinite(among.found.ratio[i]) else 0.0
        key = (min(a, b), max(a, b))
        best[key] = min(best.get(key, (2.0, False)), (ratio, bool(among.found.mirrored[i])))
    order = sorted(best, key=lambda pair: (best[pair], pair))
    pairs = [Pair(images.ids[a], images.ids[b], best[a, b][0], False, best[a, b][1]) for a, b in order]
    found = Across(tuple(pairs), len(among.rows), len(search.rows), search.limit)
    row = _row(images.split, images.split, found)
    # of images, not pairs: what the 1 % that may lie below the limit by chance is a share of
    row["beyond_chance"] = beyond_chance(int(among.found.near.sum()), len(among.rows))
    return row, order


def across(first: Look, search: CopyFinder | None, second: Look) -> tuple[dict[str, Any], Across]:
    """The row of the report on images of `second` that look like images of `first`, and all that was found."""
    if search is None or not len(second):
        found = Across((), 0, len(second), None)
    else:
        found = look_up(search, first, second, second.small, lookups(len(first), PAIRS // 2))
    return _row(first.split, second.split, found), found


def _row(first: str, second: str, found: Across) -> dict[str, Any]:
    pairs = [[pair.first, pair.second, round(pair.ratio, 4)] for pair in found.pairs if not pair.exact]
    return {
        "first": first,
        "second": second,
        "looked_up": found.looked_up,
        "total": found.total,
        "near": len(pairs),
        "beyond_chance": beyond_chance(len(pairs), found.looked_up),
        "limit": found.limit,
        "neighbours": NEIGHBOURS,
        "pairs": pairs[:KEPT_PAIRS],
    }
