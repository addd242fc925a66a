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
from imbdiff.runtime.errors import DataError

CAP = 10_000
"""Synthetic (and held-out) images that are looked up: the lowest hashes of each class in turn (see `capped_rows`)."""
PAIRS_PER_CLASS = 4
PAIRS = 400
"""Worst pairs that are kept: of each class at most 4, 400 in all (the worst of every class first)."""

PROTOCOL = (
    "every synthetic image (at most 10,000) against all training images, compared with held-out real images. "
    "Nearest training image of the same class in pixels; closeness: chance to be nearer than a held-out image, 95"
    " % Newcombe interval. Near copy: thumbnails (8 x 8 blocks, one brightness and contrast, mirrored or not) "
    "whose distance to the nearest training image, relative to the mean distance to the next of the 50 nearest, "
    "is below a limit (Carlini et al. 2023); the limit is 0.5 or the 1 % point among training images, whichever "
    "is lower; 95 % Wilson interval. "
    "Warnings: " + RULE
)


def nearest_within_class(queries: ImageSet, base: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """The nearest image of `base` of the query's class.

    Returns:
        (N,) int64 row of `base`, -1 where the class has none there; (N,) float64 root-mean-square difference of pixels
        in [0, 1], NaN where there is none. The distance of a copy is 0 exactly; of equal distances the lowest hash
        wins.
    """
    index = np.full(len(queries), -1, dtype=np.int64)
    distance = np.full(len(queries), np.nan)
    keys = hash_keys(base.hashes)
    for k in np.unique(queries.labels):
        rows, mine = np.flatnonzero(base.labels == k), np.flatnonzero(queries.labels == k)
        if len(rows):
            found, squared = Nearest(base.images[rows], keys[rows]).search(queries.images[mine])
            index[mine], distance[mine] = rows[found[:, 0]], _rms(squared[:, 0], base.shape)
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
        synthetic: generated images, labelled with what they were made for.
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
        "summary", per scope ("all" or a group), and "classes", per class ("class", "label", "group", "n_train"):
        n_synthetic, n_held_out, median_synthetic, median_held_out, closeness, closeness_low, closeness_high,
        near_copies, near_copy_share, near_copy_low, near_copy_high, held_out_near_copies, held_out_near_copy_share,
        held_out_near_copy_high, exact_copies, other_class_nearest; what has no images is None;
        "pairs", the closest ones, worst first: "label", "synthetic", "train" (indices), "ratio", "distance" (pixels),
        "near_copy", "exact", "mirrored";
        "warnings", sentences that name classes;
        "features": None, or "extractor", "limit", "summary", "classes", "warnings" in that space, where distances are
        root-mean-square differences of features and an exact copy has distance 0.

    Raises:
        DataError: images of different shapes, features that do not belong to the images, no image at all.
    """
    _check(synthetic, train, held_out, features)
    chosen = capped_rows(synthetic.labels, CAP, hash_keys(synthetic.hashes))
    part = synthetic.select(chosen)
    kept, leaked = _held_out(held_out, train)
    held = train.select(kept) if held_out is None else held_out.select(kept)

    _, own_distance = nearest_within_class(part, train)
    _, held_distance = nearest_within_class(held, train)
    found, squared = Nearest(train.images, hash_keys(train.hashes)).search(part.images)
    any_index, any_distance = found[:, 0], _rms(squared[:, 0], train.shape)
    search = CopyFinder(train.images, train.hashes)
    a, b = (search.find(x.images) for x in (part, held))
    sides = (
        Side(part.labels, own_distance, a.near | (any_distance == 0), any_distance == 0, train.labels[any_index]),
        Side(held.labels, held_distance, b.near, np.zeros(len(held), dtype=bool)),
    )
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
        **_warned(tables(*sides, train, groups, search, leaked), leaked, held_out),
        "pairs": _pairs(part, chosen, train, a, sides[0], any_index, any_distance),
        "features": None
        if features is None
        else _in_features(features, chosen, kept, part, held, train, groups, leaked),
    }


def _held_out(reference: ImageSet | None, train: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the reference that are no training images, at most `CAP`; and (C,) how many of each class are."""
    if reference is None:
        return np.empty(0, dtype=np.int64), np.zeros(len(train.class_names), dtype=np.int64)
    known = set(train.hashes)
    ours = np.array([key in known for key in reference.hashes], dtype=bool)
    rows = np.flatnonzero(~ours)
    kept = rows[capped_rows(reference.labels[rows], CAP, hash_keys(reference.hashes)[rows])]
    return kept, np.bincount(reference.labels[ours], minlength=len(train.class_names))


def _warned(found: dict[str, Any], leaked: np.ndarray, reference: ImageSet | None) -> dict[str, Any]:
    """With a first warning where the reference is not held out."""
    n, total = int(leaked.sum()), 0 if reference is None else len(reference)
    if n > max(1, total // 100):
        text = f"{n:,} of {total:,} reference images are training images and were left out of this comparison"
        if n == total:
            text = "all reference images are training images: nothing is held out to compare with"
        found["warnings"] = [text, *found["warnings"]]
    return found


def capped_rows(labels: np.ndarray, cap: int, keys: np.ndarray | None = None) -> np.ndarray:
    """All rows; where there are more than `cap`: the one of the lowest key of every class, then the second, and so on.

    Args:
        labels: (N,) int; keys: (N,), row numbers where not given.

    Returns:
        Ascending row numbers.
    """
    if len(labels) <= cap:
        return np.arange(len(labels))
    order = np.lexsort((np.arange(len(labels)) if keys is None else keys, labels))
    counts = np.bincount(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(np.lexsort((labels, rank))[:cap])


def _in_features(
    features: Mapping[str, Any], chosen: np.ndarray, kept: np.ndarray, part: ImageSet, held: ImageSet, train: ImageSet,
    groups: Groups, leaked: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    base = np.asanyarray(features["train"])
    x = np.asanyarray(features["synthetic"])[chosen]
    y = np.asanyarray(features["held_out"])[kept] if len(kept) else base[:0]
    search = CopyFinder(base, train.hashes)
    keys = hash_keys(train.hashes)
    sides = []
    for rows, images in ((x, part), (y, held)):
        distance = np.full(len(rows), np.nan)
        for k in np.unique(images.labels):
            mine, among = np.flatnonzero(images.labels == k), np.flatnonzero(train.labels == k)
            if len(among):
                squared = Nearest(base[among], keys[among]).search(rows[mine])[1][:, 0]
                distance[mine] = np.sqrt(squared / base.shape[1])
        found = search.find(rows)
        sides.append(Side(images.labels, distance, found.near, found.distance == 0))
    return {
        "extractor": str(features["extractor"]),
        "limit": rounded(search.limit),
        **tables(sides[0], sides[1], train, groups, search, leaked),
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
    rank = np.empty(len(part), dtype=np.int64)
    by_class = order[np.argsort(part.labels[order], kind="stable")]
    counts = np.bincount(part.labels)
    rank[by_class] = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = order[rank[order] < PAIRS_PER_CLASS]
    kept = set(rows[np.argsort(rank[rows], kind="stable")][:PAIRS].tolist())
    pairs = []
    for i in [i for i in rows.tolist() if i in kept]:
        image = part.images[i, :, ::-1] if mirrored[i] else part.images[i]
        difference = image.astype(np.int64) - train.images[index[i]].astype(np.int64)
        pairs.append(
            {
                "label": int(part.labels[i]),
                "synthetic": int(chosen[i]),
                "train": int(index[i]),
                "ratio": rounded(found.ratio[i]),
                "distance": rounded(float(_rms(np.array((difference * difference).sum()), train.shape))),
                "near_copy": bool(side.near[i]),
                "exact": bool(side.exact[i]),
                "mirrored": bool(mirrored[i]),
            }
        )
    return pairs


def _check(synthetic: ImageSet, train: ImageSet, held_out: ImageSet | None, features: Mapping[str, Any] | None) -> None:
    if not len(train) or not len(synthetic):
        empty = "training" if not len(train) else "synthetic"
        raise DataError(f"there are no {empty} images to look for copies", "give at least one")
    for name, other in (("synthetic", synthetic), ("held-out", held_out)):
        if other is not None and other.shape != train.shape:
            raise DataError(f"{name} images are {other.shape} (H, W, C), the training images {train.shape}")
    if features is None:
        return
    for name, images in (("synthetic", synthetic), ("train", train), ("held_out", held_out)):
        rows = features.get(name)
        n, given = 0 if images is None else len(images), 0 if rows is None else len(rows)
        if n != given:
            raise DataError(f"features of {given} {name} images, but there are {n} of them")


def _rms(squared: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return np.sqrt(squared / (shape[0] * shape[1] * shape[2])) / 255
