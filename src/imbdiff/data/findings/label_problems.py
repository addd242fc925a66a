"""What in the labels deserves a look: copies with two labels, images among images of one other class, odd classes.

Nothing here is an error: rare variants of a class, and classes that look alike in 8 x 8 blocks, give the same picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from imbdiff.data.findings.alike import Copies
from imbdiff.data.findings.look import Look
from imbdiff.data.near_duplicates import Among

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
