"""Evidence whether mirrored and turned images could be images of the set: a nearest-neighbour two-sample test.

Every image x looks for its nearest image among the *other* images of its class and the same images *changed* (mirrored
or turned). Where changed images are distributed as unchanged ones are, both kinds are equally likely to be nearest, and
the share of images whose nearest is unchanged is 1/2; where they can be told apart it goes to 1 (Schilling 1986,
"Multivariate two-sample tests based on nearest neighbors", within classes). Images are compared as 8 x 8 block means,
less the least-squares plane of every channel (light that falls from one side is no meaning), at one contrast.

Measured, training images, at most 4,000 of each set (share, 95 % interval about +- 0.02):

    set            left-right  up-down  quarter turn
    digits         0.97        0.95     1.00
    Fashion-MNIST  0.79        0.97     0.99
    CIFAR-10       0.51        0.66     0.75
    CIFAR-100-LT   0.52        0.61     0.66
    skin lesions   0.51        0.48     0.60

The limits below are chosen from these. Random pixels, which have no orientation, give 1/2 within the interval, also
where sides are no multiples of 8. What fails: quarter turns of skin lesions, which mean nothing to a physician, come
out as unclear, since the camera's format leaves its mark; up-down of CIFAR-100-LT comes out as unclear although half
its classes have an up and a down; with more images the test sees more, and with few nothing. It finds what *can* be
told apart, which need not be what matters, and never proves that a change is harmless (one-way signs, scripts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from imbdiff.data.findings.look import Look
from imbdiff.data.nearest import hash_keys

MOST = 4_000
"""Images looked up, those of the lowest hashes of every class."""
LEAST = 10
"""Images of a class that takes part."""
FEWEST = 60
"""Images from which there is a verdict."""
SAFE, SURE, AGAINST = 0.56, 0.60, 0.625
"""Safe: share at most 0.56 and upper limit at most 0.60. Against: share from 0.625 and lower limit above 0.56."""
_FAINT = 4.0  # grey levels, as for near duplicates

CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "left_right": lambda x: x[:, :, ::-1],
    "up_down": lambda x: x[:, ::-1],
    "quarter_turn": lambda x: np.rot90(x, 1, (1, 2)),
}


def symmetry(train: Look, num_classes: int, square: bool) -> dict[str, Any]:
    """The test for every change, and what follows for augmentation.

    Args:
        train: the training images.
        num_classes: C.
        square: images are (about) as high as wide; others are not judged by quarter turns.

    Returns:
        {"left_right", "up_down", "quarter_turn": {"share", "low", "high", "images", "verdict"}, "images": looked up,
        "total", "suggest": "none", "mirror", "turns" or None}; a verdict is "safe", "against" or "unclear"; None
        suggests nothing: there is too little to go by.
    """
    parts = _parts(train, num_classes)
    found: dict[str, Any] = {
        name: _test(parts, change) if square or name != "quarter_turn" else _result(np.empty(0), 0)
        for name, change in CHANGES.items()
    }
    left_right = found["left_right"]["verdict"]
    every = all(found[name]["verdict"] == "safe" for name in CHANGES)
    suggest = "turns" if every else {"safe": "mirror", "against": "none", "unclear": None}[left_right]
    return found | {"images": sum(map(len, parts)), "total": len(train), "suggest": suggest}


def _parts(train: Look, num_classes: int) -> list[np.ndarray]:
    """(n, 8, 8, C) of every class: different images, without flat ones, at most its share of 4,000."""
    keys = hash_keys(train.hashes)
    _, first = np.unique(keys, return_index=True)
    first = first[~train.flat[first]]  # np.unique has sorted by key: the lowest hashes come first
    present = np.unique(train.labels[first])
    per = max(LEAST, MOST // max(1, len(present)))
    parts = [first[train.labels[first] == k][:per] for k in present.tolist()]
    parts = [rows for rows in parts if len(rows) >= LEAST]
    room = MOST // LEAST  # classes
    step = max(1, -(-len(parts) // room))
    return [train.small[rows] for rows in parts[::step]]


def level(small: np.ndarray) -> np.ndarray:
    """(N, D) float32 of (N, 8, 8, C) uint8: less the least-squares plane of every channel, over the deviation."""
    x = small.astype(np.float32)
    ramp = np.linspace(-1, 1, x.shape[1], dtype=np.float32)
    ramp /= np.sqrt((ramp * ramp).sum() * x.shape[1])
    x -= x.mean(axis=(1, 2), keepdims=True)
    across = np.einsum("nhwc,w->nc", x, ramp)[:, None, None] * ramp[None, None, :, None]
    down = np.einsum("nhwc,h->nc", x, ramp)[:, None, None] * ramp[None, :, None, None]
    x = np.ascontiguousarray((x - across - down).reshape(len(x), -1))
    return x / np.maximum(np.sqrt((x * x).mean(axis=1, keepdims=True)), _FAINT)


def _test(parts: list[np.ndarray], change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    hits, pairs = [np.empty(0)], 0
    for small in parts:
        a, b = level(small), level(change(small))
        norms = (a * a).sum(axis=1)
        own, other = (norms[:, None] + norms - 2 * a @ x.T for x in (a, b))
        np.fill_diagonal(own, np.inf)
        np.fill_diagonal(other, np.inf)
        nearest, changed = own.min(axis=1), other.min(axis=1)
        # an image that is symmetric itself stands on both sides
        tie = np.abs(nearest - changed) <= 1e-4 * (1 + nearest)
        hits.append(np.where(tie, 0.5, nearest < changed))
        partner = np.where(nearest < changed, own.argmin(axis=1), other.argmin(axis=1))
        pairs += int((partner[partner] == np.arange(len(a))).sum()) // 2
    return _result(np.concatenate(hits), pairs)


def _result(hits: np.ndarray, pairs: int) -> dict[str, Any]:
    """Wilson's interval. Two images that are each other's nearest answer as one: n shrinks by the design effect."""
    if not len(hits):
        return {"share": None, "low": None, "high": None, "images": 0, "verdict": "unclear"}
    p, z2 = float(hits.mean()), 1.96**2
    n = len(hits) ** 2 / (len(hits) + 2 * pairs)
    middle, half = (p + z2 / (2 * n)) / (1 + z2 / n), 1.96 * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low, high = float(middle - half), float(middle + half)
    verdict = "unclear"
    if len(hits) < FEWEST:
        pass
    elif p <= SAFE and high <= SURE:
        verdict = "safe"
    elif p >= AGAINST and low > SAFE:
        verdict = "against"
    return {"share": round(p, 4), "low": round(low, 4), "high": round(high, 4), "images": len(hits), "verdict": verdict}
