"""Memorisation: are synthetic images copies of training images? Per class, with held-out real images to compare.

A distance alone means little, so it is compared with that of held-out real images of the same class, which cannot be
copies. Two spaces: pixels, and the features of an extractor where given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.near_duplicates import CopyFinder, Found
from imbdiff.data.nearest import Nearest, hash_keys
from imbdiff.data.stats import Groups
from imbdiff.metrics.copies import RULE, Side, rounded, tables

CAP = 10_000
"""Synthetic (and held-out) images that are looked up: the lowest hashes of each class in turn (see `capped_rows`)."""
PAIRS_PER_CLASS = 4
PAIRS = 400
"""Worst pairs that are kept: of each class at most 4, 400 in all (the worst of every class first)."""

PROTOCOL = (
    "every synthetic image (at most 10,000) against all training images, compared with held-out real images. "
    "Nearest training image of the same class in pixels; closeness: chance to be nearer than a held-out image, 95"
    " % Newcombe interval, from 10 images on either side on; copies score 1, and so do blurred images. "
    "Near copy: thumbnails (8 x 8 blocks, one brightness and contrast, mirrored or not) "
    "whose distance to the nearest training image, relative to the mean distance to the next of the 50 nearest, "
    "is below a limit (Carlini et al. 2023); the limit is 0.5 or the 1 % point among training images, whichever "
    "is lower; 95 % Wilson interval. "
    "Warnings: " + RULE
)


def nearest_within_class(
    queries: np.ndarray, labels: np.ndarray, base: np.ndarray, base_labels: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of the rows `base` (M, ...) of the query's class; of equal distances the lowest of `keys` (M,) wins.

    Returns:
        (N,) int64 row of `base`, -1 where the class has none there; (N,) float64 root-mean-square difference, NaN where
        there is none. The distance of a copy is 0 exactly.
    """
    index = np.full(len(queries), -1, dtype=np.int64)
    distance = np.full(len(queries), np.nan)
    for k in np.unique(labels):
        rows, mine = np.flatnonzero(base_labels == k), np.flatnonzero(labels == k)
        if len(rows):
            search = Nearest(base[rows], keys[rows])
            found, squared = search.search(queries[mine])
            index[mine], distance[mine] = rows[found[:, 0]], np.sqrt(squared[:, 0] / search.dim)
    return index, distance


def memorisation_report(
    synthetic: ImageSet,
    train: ImageSet,
    held_out: ImageSet | None,
    groups: Groups,
    *,
    features: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Copies among synthetic images, overall, per group and per class.

    Args:
        synthetic: generated images, labelled with what they were made for; all sets have one shape.
        train: what the generator saw.
        held_out: real images that it did not see; None: nothing to compare with.
        groups: of the classes.
        features: {"extractor": its name, "synthetic": (N, D), "train": (M, D), "held_out": (K, D) or None}, rows in the
            order of the images: near copies in that space too. May be memory-mapped.

    Returns:
        JSON-able:
        "space", "limit" (of the ratio; None: too few training images), "neighbours", "cap", "n", "n_synthetic",
        "n_held_out", "n_reference_in_train" (training images among `held_out`, left out), "rule";
        "index" (synthetic images looked up), and of each the nearest training image: "any_train_index", "any_distance";
        "near", those of them that are near copies;
        "summary", per scope ("all" or a group), and "classes", per class ("class", "label", "group", "n_train",
        "reference_in_train"): n_synthetic, n_held_out, median_synthetic, median_held_out, closeness, closeness_low,
        closeness_high, near_copies, near_copy_share, near_copy_low, near_copy_high, held_out_near_copies,
        held_out_near_copy_share, exact_copies, other_class_nearest; what has no images is None;
        "pairs", the closest ones, worst first: "label", "synthetic", "train" (indices), "ratio", "distance" (pixels),
        "near_copy", "exact", "mirrored";
        "warnings", sentences that name classes;
        "features": None, or "extractor", "limit", "summary", "classes", "warnings" in that space, where distances are
        root-mean-square differences of features and an exact copy has distance 0.
    """
    keys = hash_keys(train.hashes)
    chosen = capped_rows(synthetic.labels, CAP, hash_keys(synthetic.hashes))
    kept, leaked = _held_out(held_out, train)
    part, held = synthetic.select(chosen), (held_out or train).select(kept)

    def within(images: ImageSet) -> np.ndarray:
        return nearest_within_class(images.images, images.labels, train.images, train.labels, keys)[1] / 255

    nearest = Nearest(train.images, keys)
    found, squared = nearest.search(part.images)
    any_index, any_distance = found[:, 0], np.sqrt(squared[:, 0] / nearest.dim) / 255
    search = CopyFinder(train.images, train.hashes)
    a, b = (search.find(x.images) for x in (part, held))
    fake = Side(part.labels, within(part), a.near | (any_distance == 0), any_distance == 0, train.labels[any_index])
    real = Side(held.labels, within(held), b.near, np.zeros(len(held), dtype=bool), together=held.groups)
    tabled = tables(fake, real, train, groups, search.usual, leaked)
    return {
        "space": "pixels, root-mean-square difference, 0..1",
        "limit": rounded(search.limit),
        "neighbours": min(50, max(len(search) - 1, 0)),
        "rule": RULE,
        "cap": CAP,
        "n": len(part),
        "n_synthetic": len(synthetic),
        "n_held_out": len(held),
        "n_reference_in_train": int(leaked.sum()),
        "index": chosen.tolist(),
        "any_train_index": any_index.tolist(),
        "any_distance": [rounded(d) for d in any_distance],
        "near": chosen[fake.near].tolist(),
        **tabled,
        "warnings": _leaks(leaked, held_out) + tabled["warnings"],
        "pairs": _pairs(part, chosen, train, a, fake, any_index, any_distance),
        "features": features and _in_features(features, chosen, kept, part, held, train, groups, leaked),
    }


def _held_out(reference: ImageSet | None, train: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the reference that are no training images, at most `CAP`; and (C,) how many of each class are."""
    if reference is None:
        return np.empty(0, dtype=np.int64), np.zeros(len(train.class_names), dtype=np.int64)
    ours = np.isin(np.array(reference.hashes), np.array(train.hashes))
    rows = np.flatnonzero(~ours)
    kept = rows[capped_rows(reference.labels[rows], CAP, hash_keys(reference.hashes)[rows])]
    return kept, np.bincount(reference.labels[ours], minlength=len(train.class_names))


def _leaks(leaked: np.ndarray, reference: ImageSet | None) -> list[str]:
    """A warning where the reference is not held out."""
    n, total = int(leaked.sum()), 0 if reference is None else len(reference)
    if n <= max(1, total // 100):
        return []
    if n == total:
        return ["all reference images are training images: nothing is held out to compare with"]
    return [f"{n:,} of {total:,} reference images are training images and were left out of this comparison"]


def capped_rows(labels: np.ndarray, cap: int, keys: np.ndarray) -> np.ndarray:
    """All rows; where there are more than `cap`: the one of the lowest key of every class, then the second, and so on.

    Args:
        labels: (N,) int; keys: (N,).

    Returns:
        Ascending row numbers.
    """
    if len(labels) <= cap:
        return np.arange(len(labels))
    return np.sort(np.lexsort((labels, _rank_in_class(labels, np.argsort(keys, kind="stable"))))[:cap])


def _rank_in_class(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(N,) place of each row among those of its class, in the order given."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def _in_features(
    features: Mapping[str, Any], chosen: np.ndarray, kept: np.ndarray, part: ImageSet, held: ImageSet, train: ImageSet,
    groups: Groups, leaked: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    base = features["train"]
    search, keys = CopyFinder(base, train.hashes), hash_keys(train.hashes)
    sides = []
    for rows, images in (
        (features["synthetic"][chosen], part),
        (features["held_out"][kept] if len(kept) else base[:0], held),
    ):
        _, distance = nearest_within_class(rows, images.labels, base, train.labels, keys)
        found = search.find(rows)
        sides.append(Side(images.labels, distance, found.near, found.distance == 0, together=images.groups))
    return {
        "extractor": str(features["extractor"]),
        "limit": rounded(search.limit),
        **tables(sides[0], sides[1], train, groups, search.usual, leaked),
    }


def _pairs(
    part: ImageSet, chosen: np.ndarray, train: ImageSet, found: Found, side: Side, any_index: np.ndarray,
    any_distance: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    """The pairs of the lowest ratios, of pixel distance where there is none; exact copies are with their originals."""
    index = np.where(side.exact | ~np.isfinite(found.ratio), any_index, found.index)
    mirrored = found.mirrored & (index == found.index) & ~side.exact
    score = np.where(side.exact, -1.0, np.where(np.isfinite(found.ratio), found.ratio, any_distance))
    order = np.lexsort((hash_keys(part.hashes), score))
    rank = _rank_in_class(part.labels, order)
    rows = order[rank[order] < PAIRS_PER_CLASS]
    kept = set(rows[np.argsort(rank[rows], kind="stable")][:PAIRS].tolist())
    pairs = []
    for i in [i for i in rows.tolist() if i in kept]:
        image = part.images[i][:, ::-1] if mirrored[i] else part.images[i]
        difference = image.astype(np.float64) - train.images[index[i]]
        pairs.append(
            {
                "label": int(part.labels[i]),
                "synthetic": int(chosen[i]),
                "train": int(index[i]),
                "ratio": rounded(found.ratio[i]),
                "distance": rounded(np.sqrt((difference * difference).mean()) / 255),
                "near_copy": bool(side.near[i]),
                "exact": bool(side.exact[i]),
                "mirrored": bool(mirrored[i]),
            }
        )
    return pairs
