"""One look at every image of a split: what tells it from others, and a small version to compare."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

SMALL = 8
"""Pixels along each side of the small versions."""


@dataclass(frozen=True, eq=False)
class Scan:
    """What one look at every image of a split gave.

    Attributes:
        hashes: (N,) hash of each image's pixels in its own size; None if the image is unusable.
        small: (N, 8, 8, C) uint8, the means of 8 x 8 blocks of each image; rows of unusable images mean nothing.
        bad: {id: why} of the unusable.
    """

    hashes: list[str | None]
    small: np.ndarray
    bad: dict[str, str] = field(default_factory=dict)


def pixel_hash(x: np.ndarray) -> str:
    """A hash of the size and pixels of one image (H, W, C) uint8."""
    return hashlib.sha256(repr(x.shape).encode() + np.ascontiguousarray(x).tobytes()).hexdigest()[:32]


def smaller(x: np.ndarray) -> np.ndarray:
    """(8, 8, C) uint8: the means over 8 x 8 equal rectangles of an image (H, W, C) uint8.

    A pixel on the border of two rectangles counts in each by its share, so that the mirror image gives the mirrored
    means, whatever the size (Pillow's box filter counts whole pixels, on one side).
    """
    h, w, c = x.shape
    rows = (_weights(h) @ x.reshape(h, -1).astype(np.float32)).reshape(SMALL, w, c)
    means = np.einsum("kw,iwc->ikc", _weights(w), rows)
    return np.rint(means).clip(0, 255).astype(np.uint8)


@lru_cache(256)
def _weights(n: int) -> np.ndarray:
    """(8, n) float32: the share of each of `n` pixels in the mean over each eighth of the length."""
    edges = np.arange(SMALL + 1) * (n / SMALL)
    pixel = np.arange(n)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(overlap, 0) * (SMALL / n)).astype(np.float32)
