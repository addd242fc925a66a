"""Labelled uint8 images, in memory or as rows of files on disk: the form in which images are passed on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.names import display_name
from imbdiff.data.stats import ClassStats
from imbdiff.runtime.errors import DataError

KEY = 16
"""Bytes of an image's hash."""
UINT8 = np.dtype(np.uint8)
FEW = 3
"""Equal images under the same classes that are listed one by one."""


@dataclass(frozen=True, eq=False)
class StoredImages:
    """A file of images, one after the other: of `shape` (N, H, W, C), and the hashes of their pixels (N, 16) uint8.

    Of another `dtype` they are latents, and the hashes those of the images that they are of.
    """

    path: Path
    shape: tuple[int, int, int, int]
    keys: np.ndarray
    dtype: np.dtype = UINT8

    def take(self, index: np.ndarray) -> np.ndarray:
        """The images at `index`, copied; what was read does not stay in memory."""
        if not len(index):
            return np.empty((0, *self.shape[1:]), dtype=self.dtype)
        return np.asarray(np.memmap(self.path, self.dtype, "r", shape=self.shape)[index])


class Rows:
    """A selection of images out of files and arrays. Indexing reads them, as numpy's functions do; nothing is kept.

    :meth:`take` and :func:`join` select and join without reading.

    Args:
        blocks: files and arrays of images.
        index: (N,) row within the block.
        block: (N,) number of the block of each row; all 0 where None.
    """

    ndim = 4

    def __init__(
        self, blocks: Sequence[StoredImages | np.ndarray], index: np.ndarray, block: np.ndarray | None = None
    ) -> None:
        self.blocks = tuple(blocks)
        self.dtype = self.blocks[0].dtype
        self.index = np.asarray(index, dtype=np.int64)
        self.block = np.zeros(len(self.index), np.int32) if block is None else np.asarray(block, dtype=np.int32)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        _, h, w, c = self.blocks[0].shape
        return len(self.index), h, w, c

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images."""
        n, h, w, c = self.shape
        return n * h * w * c * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> np.ndarray:
        """By a number, a slice, a list or an array of numbers or bools."""
        if isinstance(key, int | np.integer):
            return self._read(np.array([key]))[0]
        return self._read(key if isinstance(key, slice) else np.asarray(key))

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), 256):
            yield from self[start : start + 256]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        x = self._read(slice(None))
        return x if dtype is None else x.astype(dtype)

    def take(self, rows: np.ndarray) -> Rows:
        """The rows at `rows`, in that order, not read."""
        return Rows(self.blocks, self.index[rows], self.block[rows])

    def hashes(self) -> tuple[str, ...] | None:
        """(N,) the stored hashes of the pixels; None where a block has none."""
        if any(isinstance(block, np.ndarray) for block in self.blocks):
            return None
        keys = np.empty((len(self), KEY), np.uint8)
        for i, stored in enumerate(self.blocks):
            here = self.block == i
            keys[here] = stored.keys[self.index[here]]  # type: ignore[union-attr]
        return tuple(key.tobytes().hex() for key in keys)

    def _read(self, rows: Any) -> np.ndarray:
        index, block = self.index[rows], self.block[rows]
        if index.ndim != 1:
            raise IndexError(f"images are selected by one axis, not {index.ndim}")
        out = np.empty((len(index), *self.shape[1:]), dtype=self.dtype)
        for i, stored in enumerate(self.blocks):
            here = np.flatnonzero(block == i)
            out[here] = stored[index[here]] if isinstance(stored, np.ndarray) else stored.take(index[here])
        return out


def join(parts: Sequence[np.ndarray | Rows]) -> np.ndarray:
    """Images of all `parts`, one after the other: an array, or Rows where one of them is (nothing is read then)."""
    if not any(isinstance(part, Rows) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    blocks: list[StoredImages | np.ndarray] = []
    index, block = [], []
    for part in parts:
        rows = part if isinstance(part, Rows) else Rows([part], np.arange(len(part)))
        block.append(rows.block + len(blocks))
        index.append(rows.index)
        blocks += rows.blocks
    return Rows(blocks, np.concatenate(index), np.concatenate(block))  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images of one size, with labels.

    Attributes:
        images: (N, H, W, C) uint8, C = 1 (grey) or 3 (RGB): an array, or :class:`Rows`, which stay on disk.
        labels: (N,) int64 in [0, len(class_names)).
        class_names: in label order.
        ids: (N,) a stable name of each image: its path below the source, or "train/17". Filled in where not given.
        groups: (N,) texts; images of one text belong together (a patient's). None where nothing is known of it.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: tuple[str, ...] = field(default=())
    groups: Any = None

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
        if self.groups is not None:
            object.__setattr__(self, "groups", np.asarray(self.groups, dtype=object))
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
        groups = None if self.groups is None else self.groups[indices]
        return ImageSet(images, self.labels[indices], self.class_names, ids, groups)

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
        return tuple(hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[: 2 * KEY] for x in self.images)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of shapes, pixels, labels and class names, in order; not of ids."""
        h = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        h.update(bytes.fromhex("".join(self.hashes)))
        h.update(np.ascontiguousarray(self.labels).tobytes())
        return h.hexdigest()


def copies_across(first: ImageSet, second: ImageSet) -> list[tuple[str, str]]:
    """(id in `first`, id in `second`) of every image of `second` that `first` holds too."""
    where: dict[str, str] = {}
    for name, key in zip(first.ids, first.hashes, strict=True):
        where.setdefault(key, name)
    pairs = zip(second.ids, second.hashes, strict=True)
    return [(where[key], name) for name, key in pairs if key in where]


def copies_within(images: ImageSet) -> list[list[str]]:
    """Ids of the images that are equal to each other, group by group."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, key in zip(images.ids, images.hashes, strict=True):
        groups[key].append(name)
    return [names for names in groups.values() if len(names) > 1]


def conflicting_copies(images: ImageSet) -> list[list[str]]:
    """Those of :func:`copies_within` whose members carry different labels: at least one label is wrong."""
    label = dict(zip(images.ids, images.labels.tolist(), strict=True))
    return [names for names in copies_within(images) if len({label[name] for name in names}) > 1]


def by_classes(groups: Iterable[Sequence[tuple[str, str]]], sizes: Mapping[str, int]) -> list[str]:
    """Rows about equal images; where many are under the same several classes, one row for these classes.

    Args:
        groups: (id, class) of images that are equal.
        sizes: {class: its images}.
    """
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group in groups:
        first: dict[str, str] = {}
        for image, name in group:
            first.setdefault(name, display_name(image, 120))
        named = [f"{image} [{display_name(name, 30)}]" for name, image in first.items()]
        same = [display_name(image, 120) for image, _ in group]
        shown = named if len(first) > 1 else same
        more = f" = and {len(shown) - 4} more" if len(shown) > 4 else ""
        rows[tuple(sorted(first)) if len(first) > 1 else ()].append(" = ".join(shown[:4]) + more)
    found = []
    for classes, texts in sorted(rows.items(), key=lambda item: (not item[0], -len(item[1]))):
        if classes and len(texts) > FEW:
            whose = ", ".join(f"{display_name(name, 30)} ({sizes[name]} images)" for name in classes)
            found.append(f"{len(texts)} images are in each of {whose}, such as {texts[0]}")
        else:
            found += texts
    return found
