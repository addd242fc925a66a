"""What to check in a set of images: exact copies, images whose label looks wrong, odd class names. None is an error."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.near_duplicates import CopyFinder
from imbdiff.data.source import Scan, Source
from imbdiff.data.split_names import is_split_name

K = 10
"""Neighbours that vote."""
VOTES = 9
"""Of them, for one other class: from here on a label is suspicious."""
USUAL = 0.6
"""Mean share of neighbours of the own class from which on a class is judged."""
LEAST = 5
"""Different images of a class that is judged."""
KEPT = 200
SHOWN_NEIGHBOURS = 3


@dataclass(frozen=True, eq=False)
class Usable:
    """The usable images of a split.

    Attributes:
        ids: (N,) names.
        labels: (N,) int64.
        hashes: (N,) hash of each image's pixels in its own size.
        images: (N, 8, 8, C) uint8, block means.
        rows: (N,) int64 number of each image in the split of the source, unusable ones counted.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    hashes: tuple[str, ...]
    images: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def usable_images(source: Source) -> tuple[dict[str, Usable], Scan]:
    """Decodes every image once: {split: its usable images}, and all that was seen."""
    usable, scan = {}, source.scan()
    for split in source.splits:
        ids, small = source.ids(split), scan.small[split]
        hashes = {i: key for i, key in enumerate(scan.hashes[split]) if key is not None}
        rows = np.array(list(hashes), dtype=np.int64)
        small = small if len(rows) == len(ids) else small[rows]
        usable[split] = Usable(
            tuple(ids[i] for i in hashes), source.labels(split)[rows], tuple(hashes.values()), small, rows
        )
    return usable, scan


def copies(usable: Mapping[str, Usable], names: Sequence[str]) -> list[dict[str, list[str]]]:
    """Groups of images whose pixels are equal in their own size: "images" (ids), and the split and class of each."""
    same: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for split, images in usable.items():
        for key, name, label in zip(images.hashes, images.ids, images.labels.tolist(), strict=True):
            same[key].append((name, split, names[label]))
    keys = ("images", "splits", "classes")
    return [
        {key: list(values) for key, values in zip(keys, zip(*group, strict=True), strict=True)}
        for group in same.values()
        if len(group) > 1
    ]


def suspicious(train: Usable, search: CopyFinder | None, names: Sequence[str]) -> dict[str, Any]:
    """Training images of which at least 9 of the 10 nearest carry one other label, the most suspicious first.

    A class is judged if it has 5 different images and the mean share of own neighbours (of the 10 nearest, or of as
    many as the class has others) is at least 0.6: in other classes most images would stand out. Neighbours are
    different images, compared as thumbnails. Order: votes, how far down the own class first comes among the 50 nearest,
    how usual own neighbours are in the class, id.

    Measured with the labels of 5 % of the training images changed at random: of 89 changed digits 80 are listed, with 2
    others (6 are listed where nothing is changed); of 493 changed ones looked up in Fashion-MNIST 246, with 120 others,
    48 of the first 50 changed. In CIFAR-10 no class is judged, in the skin lesions one, and nothing is found: their
    classes cannot be told apart in 8 x 8 blocks.

    Args:
        search: of the images of `train`; None where there are none.
        names: (C,) of the classes.

    Returns:
        {"k", "looked_up", "total", "found", "not_judged": class names, "images": [{"image", "label", "other", "votes",
        "neighbours": ids of up to 3 of the other class}]}, at most 200 images.
    """
    if search is None or search.among is None or search.among.neighbours.shape[1] < K:
        present = [names[k] for k in np.unique(train.labels)]
        return {"k": K, "looked_up": 0, "total": len(train), "found": 0, "not_judged": present, "images": []}
    c, rows, found = len(names), search.looked_up, search.among
    own, near = train.labels[rows], train.labels[found.neighbours]
    _, first = np.unique(np.array(train.hashes), return_index=True)
    size = np.bincount(train.labels[first], minlength=c)
    share = (near[:, :K] == own[:, None]).sum(axis=1) / np.clip(size[own] - 1, 1, K)
    usual = np.bincount(own, share, c) / np.maximum(np.bincount(own, minlength=c), 1)
    judged = (usual >= USUAL) & (size >= LEAST)
    chosen = []
    for i in np.flatnonzero(judged[own]).tolist():
        other, votes = Counter(near[i, :K].tolist()).most_common(1)[0]
        if votes >= VOTES and other != own[i]:
            depth = int(np.argmax(near[i] == own[i])) if (near[i] == own[i]).any() else near.shape[1]
            image = train.ids[rows[i]]
            alike = [train.ids[j] for j in found.neighbours[i, :K] if train.labels[j] == other][:SHOWN_NEIGHBOURS]
            row = {
                "image": image,
                "label": names[own[i]],
                "other": names[other],
                "votes": votes,
                "neighbours": alike,
            }
            chosen.append(((-votes, -depth, -float(usual[own[i]]), image), row))
    chosen.sort(key=lambda entry: entry[0])
    return {
        "k": K,
        "looked_up": len(own),
        "total": len(train),
        "found": len(chosen),
        "not_judged": [names[k] for k in np.unique(train.labels) if not judged[k]],
        "images": [row for _, row in chosen[:KEPT]],
    }


def name_problems(names: Sequence[str]) -> list[dict[str, Any]]:
    """Class names to check, as {"names", "why"}.

    These are names that differ in case, white space, hyphens, invisible characters or Unicode form only, and names of
    splits ("train2").
    """
    same: dict[str, list[str]] = defaultdict(list)
    for name in names:
        same[_plain(name)].append(name)
    found = [
        {"names": group, "why": "these names differ in case, spaces, punctuation or Unicode form only"}
        for key, group in same.items()
        if key and len(group) > 1
    ]
    why = "this looks like the name of a split, not of a class"
    return found + [{"names": [n], "why": why} for n in names if is_split_name(n)]


def _plain(name: str) -> str:
    """`name` without what is invisible or often mistyped."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in folded if not (c.isspace() or c in "-_" or unicodedata.category(c) in ("Cf", "Cc")))
