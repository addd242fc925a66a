"""The one form in which images travel between the rooms: a labelled uint8 array."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from imbdiff.data.rows import Rows
from imbdiff.data.stats import ClassStats
from imbdiff.runtime.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images of one size, with labels.

    Attributes:
        images: (N, H, W, C) uint8, C = 1 (grey) or 3 (RGB): an array, or :class:`~imbdiff.data.rows.Rows`, which read
            like one and stay on disk.
        labels: (N,) int64 in [0, len(class_names)).
        class_names: in label order.
        ids: (N,) a stable name of each image: its path below the source, or "train/17". Filled in where not given.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        x, y = self.images, self.labels
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in (1, 3):
            raise DataError(f"images must be (N, H, W, 1 or 3) uint8, not {x.shape} {x.dtype}")
        if y.shape != (len(x),) or y.dtype != np.int64:
            raise DataError(f"labels must be ({len(x)},) int64, not {y.shape} {y.dtype}")
        if len(y) and (y.min() < 0 or y.max() >= len(self.class_names)):
            raise DataError(f"labels reach from {y.min()} to {y.max()}, but there are {len(self.class_names)} classes")
        if not self.ids:
            object.__setattr__(self, "ids", tuple(str(i) for i in range(len(x))))
        if len(self.ids) != len(x):
            raise DataError(f"{len(self.ids)} ids for {len(x)} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        h, w, c = self.images.shape[1:]
        return h, w, c

    def select(self, indices: np.ndarray | Sequence[int]) -> ImageSet:
        """The images at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        ids = tuple(self.ids[i] for i in indices.tolist())
        x = self.images
        images = x.take(indices) if isinstance(x, Rows) else x[indices]
        return ImageSet(images, self.labels[indices], self.class_names, ids)

    @cached_property
    def stats(self) -> ClassStats:
        """Class statistics; raises DataError where a class has no image."""
        return ClassStats.from_labels(self.labels, self.class_names)

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """(N,) a hash of the pixels of each image: equal for exact duplicates."""
        known = self.images.hashes() if isinstance(self.images, Rows) else None
        if known is not None:
            return known
        return tuple(hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:32] for x in self.images)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of shapes, pixels, labels and class names, in order; not of ids."""
        h = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        h.update(bytes.fromhex("".join(self.hashes)))
        h.update(np.ascontiguousarray(self.labels).tobytes())
        return h.hexdigest()
