"""What deserves a look in a set of images: copies and near copies, odd labels, odd class names. None of it is an error.

Near duplicates are found from 8 x 8 block means as whole numbers, not from the images. Measured against the search
in whole images (:func:`imbdiff.data.near_duplicates.across`), test among training images: the same pairs in digits (19
of 500 images), skin lesions (3 of 1,198) and CIFAR-10 (46 of 2,500 among 20,000), whose sides are multiples of 8. In
Fashion-MNIST, 28 x 28, blocks are cut differently: 106 pairs against 84, 70 in common; most of either are chance. Rare
variants of a class, and classes that look alike in 8 x 8 blocks, give the same picture as wrong labels.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from imbdiff.data.near_duplicates import (
    CAP,
    NEIGHBOURS,
    Across,
    Among,
    CopyFinder,
    Pair,
    beyond_chance,
    look_up,
    thumbnails,
)
from imbdiff.data.source import Source

KEPT_PAIRS = 1_000
"""Near duplicates of two splits that the report lists, the most alike; it counts all."""
PAIRS = 1_000_000_000
"""Distances measured within a split at most, half as many across splits: about 15 s on one core, both forms."""
LEAST_LOOKED_UP = 500

Copies = list[list[tuple[str, str, int]]]
K = 10
"""Neighbours that vote."""
VOTES = 9
"""Of them, for one other class: from here on an image is suspicious."""
USUAL = 0.6
"""Share of own neighbours that the images of a class have on average where neighbours can judge it."""
LEAST = 5
"""Different images of a class that is judged."""
KEPT = 200
SHOWN_NEIGHBOURS = 3
COPIED = 0.5
"""Share of different images in a class from which down it counts as mostly copies."""
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"})


@dataclass(frozen=True, eq=False)
class Look:
    """The usable images of a split.

    Attributes:
        split: its name.
        ids: (N,) names.
        labels: (N,) int64.
        hashes: (N,) hash of each image's pixels in its own size.
        small: (N, 8, 8, C) uint8, block means.
        rows: (N,) int64 place of each image in the split of the source, unusable ones counted.
    """

    split: str
    ids: tuple[str, ...]
    labels: np.ndarray
    hashes: tuple[str, ...]
    small: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def flat(self) -> np.ndarray:
        """(N,) bool: all 8 x 8 blocks have one colour, such as an image that is all black."""
        x = self.small
        return (x.max(axis=(1, 2)) == x.min(axis=(1, 2))).all(axis=1)

    def select(self, keep: np.ndarray) -> Look:
        """The images at `keep`, numbers in that order."""
        ids, hashes = (tuple(values[i] for i in keep.tolist()) for values in (self.ids, self.hashes))
        return Look(self.split, ids, self.labels[keep], hashes, self.small[keep], self.rows[keep])


def look(source: Source) -> tuple[dict[str, Look], dict[str, str]]:
    """Decodes every image of every split once.

    Returns:
        {split: its usable images}, and {id: why} of the unusable.
    """
    looks, bad = {}, dict(source.survey().bad)
    for split in source.splits:
        scan = source.scan(split)
        bad |= scan.bad
        usable = [i for i, key in enumerate(scan.hashes) if key is not None]
        rows = np.array(usable, dtype=np.int64)
        ids, labels = source.ids(split), source.labels(split)
        hashes = tuple(scan.hashes[i] or "" for i in usable)
        small = scan.small if len(rows) == len(ids) else scan.small[rows]
        looks[split] = Look(split, tuple(ids[i] for i in usable), labels[rows], hashes, small, rows)
    return looks, bad


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


def look_finder(images: Look) -> CopyFinder | None:
    """Looks the images of a split up among each other, mirrored ones too; None for an empty split."""
    if not len(images):
        return None
    small = images.small
    return CopyFinder(
        thumbnails(small), images.hashes, lambda rows: thumbnails(small[rows], True), lookups(len(images))
    )


def similar_within(images: Look, search: CopyFinder | None) -> tuple[dict[str, Any], list[tuple[int, int]]]:
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


def similar_across(first: Look, search: CopyFinder | None, second: Look) -> tuple[dict[str, Any], Across]:
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


def suspicious(train: Look, among: Among | None, num_classes: int) -> dict[str, Any]:
    """Training images of which at least 9 of the 10 nearest carry one other label, the most suspicious first.

    A class is judged where its images usually have own neighbours: the mean share, of the 10 nearest or of as many as
    the class has others, is at least 0.6, and the class has 5 different images. In other classes most images would
    stand out. Neighbours are different images (of exact copies the first), as 8 x 8 block means at one brightness and
    contrast. Order: votes, how far down the own class first comes among the 50 nearest, how usual own neighbours are in
    the class, name.

    Measured with the labels of 5 % of the training images changed at random: of 89 changed digits 80 are listed, with 2
    others (6 are listed where nothing is changed); of 493 changed ones looked up in Fashion-MNIST 246, with 120 others,
    48 of the first 50 changed. In CIFAR-10 no class is judged, in the skin lesions one, and nothing is found: their
    classes cannot be told apart in 8 x 8 blocks.

    Returns:
        {"k", "looked_up", "total", "found", "not_judged": labels of classes, "images": [{"row", "label", "other",
        "votes", "neighbours": rows}]}, rows as numbers of `train`; at most 200 images.
    """
    nothing = {"k": K, "looked_up": 0, "total": len(train), "found": 0, "not_judged": [], "images": []}
    if among is None or among.neighbours.shape[1] < K:
        return nothing | {"not_judged": sorted(set(train.labels.tolist()))}
    own = train.labels[among.rows]
    near = train.labels[among.neighbours]
    _, first = np.unique(np.array(train.hashes), return_index=True)
    size = np.bincount(train.labels[first], minlength=num_classes)
    share = (near[:, :K] == own[:, None]).sum(axis=1) / np.clip(size[own] - 1, 1, K)
    usual = np.bincount(own, share, num_classes) / np.maximum(np.bincount(own, minlength=num_classes), 1)
    judged = (usual >= USUAL) & (size >= LEAST)
    chosen = []
    for i in np.flatnonzero(judged[own]).tolist():
        other, votes = Counter(near[i, :K].tolist()).most_common(1)[0]
        if votes >= VOTES and other != own[i]:
            mine = np.flatnonzero(near[i] == own[i])
            depth = int(mine[0]) if len(mine) else near.shape[1]
            order = (-votes, -depth, -float(usual[own[i]]), train.ids[int(among.rows[i])])
            chosen.append((order, i, int(other), int(votes)))
    chosen.sort(key=lambda entry: entry[0])
    return {
        "k": K,
        "looked_up": len(own),
        "total": len(train),
        "found": len(chosen),
        "not_judged": [k for k in sorted(set(train.labels.tolist())) if not judged[k]],
        "images": [
            {
                "row": int(among.rows[i]),
                "label": int(own[i]),
                "other": other,
                "votes": votes,
                "neighbours": [j for j in among.neighbours[i, :K].tolist() if train.labels[j] == other][
                    :SHOWN_NEIGHBOURS
                ],
            }
            for _, i, other, votes in chosen[:KEPT]
        ],
    }


def conflicting(groups: Copies, names: Sequence[str]) -> list[dict[str, Any]]:
    """Exact duplicates that carry more than one label: at least one of them is wrong."""
    return [
        {"images": [name for _, name, _ in group], "classes": [names[label] for _, _, label in group]}
        for group in groups
        if len({label for _, _, label in group}) > 1
    ]


def odd_classes(train: Look, names: Sequence[str]) -> dict[str, list[str]]:
    """Names of training classes of a single image, of mostly copies, and of images of one flat colour each."""
    c = len(names)
    counts = np.bincount(train.labels, minlength=c)
    _, first = np.unique(np.array(train.hashes, dtype=object).astype(str), return_index=True)
    different = np.bincount(train.labels[first], minlength=c)
    flat = np.bincount(train.labels[train.flat], minlength=c)
    return {
        "single": [name for name, n in zip(names, counts, strict=True) if n == 1],
        "copies": [
            name for name, n, d in zip(names, counts, different, strict=True) if n > 1 and d <= max(1, COPIED * n)
        ],
        "flat": [name for name, n, f in zip(names, counts, flat, strict=True) if n and f == n],
    }


def name_problems(names: Sequence[str]) -> list[tuple[list[str], str]]:
    """(names, why) of class names to look at.

    Names that differ in case, white space, hyphens, invisible characters or Unicode form only; a name beside the same
    one with a number behind it ("cat", "cat2", "cat (1)"); names of splits ("train2"). Names that are numbers, and
    numbered names whose plain form is no class ("class1", "class2"), are in order.
    """
    same: dict[str, list[str]] = defaultdict(list)
    for name in names:
        same[_plain(name)].append(name)
    found = [
        (group, "these names differ in case, spaces, punctuation or Unicode form only")
        for key, group in same.items()
        if key and len(group) > 1
    ]
    numbered: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stem = _stem(name)
        if stem and stem in same:
            numbered[stem].append(name)
    for stem, group in numbered.items():
        found.append(([*same[stem], *group], "the same name, with and without a number behind it"))
    for name in names:
        if (_stem(name) or _plain(name)) in _SPLITS:
            found.append(([name], "this looks like the name of a split, not of a class"))
        elif name != name.strip():
            found.append(([name], "white space before or behind the name"))
    return found


def _plain(name: str) -> str:
    """`name` without what cannot be seen or is often mistyped."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in folded if not (c.isspace() or c in "-_" or unicodedata.category(c) in ("Cf", "Cc")))


def _stem(name: str) -> str:
    """The plain form of a name without the number behind it; "" where it has none."""
    whole = unicodedata.normalize("NFKC", name).strip().removesuffix(")")
    cut = whole.rstrip("0123456789")
    stem = _plain(cut.rstrip("( _.-")) if cut != whole else ""
    return "" if stem.isdecimal() else stem
