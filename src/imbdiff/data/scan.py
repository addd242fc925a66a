"""One look at every image of a split: what tells it from others, and a small version to compare."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

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
    """(8, 8, C) uint8: the means of the blocks of an image (H, W, C) uint8, as Pillow's box filter gives them."""
    image = Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)
    return np.asarray(image.resize((SMALL, SMALL), Image.Resampling.BOX)).reshape(SMALL, SMALL, x.shape[-1])
