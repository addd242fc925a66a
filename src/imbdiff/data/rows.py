"""Images that stay on disk until they are asked for, read as if they were one (N, H, W, C) uint8 array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class StoredImages:
    """A file of images, one after the other, as :mod:`imbdiff.data.cache` writes it.

    Attributes:
        path: the file.
        shape: (N, H, W, C), uint8.
        keys: (N, 16) uint8, the hash of each image's pixels.
    """

    path: Path
    shape: tuple[int, int, int, int]
    keys: np.ndarray

    def take(self, index: np.ndarray) -> np.ndarray:
        """The images at `index`, copied. The file is mapped for this call only: what was read does not stay."""
        if not len(index):
            return np.empty((0, *self.shape[1:]), dtype=np.uint8)
        return np.asarray(np.memmap(self.path, np.uint8, "r", shape=self.shape)[index])


class Rows:
    """A selection of images out of files and arrays. Indexing reads them; nothing is kept.

    Indexing by numbers, slices, lists or boolean arrays gives ordinary arrays, further axes as usual. numpy's functions
    take it too, and then read all of it. :meth:`take` and :func:`join` select and join without reading.

    Args:
        blocks: where images lie.
        block: (N,) number of the block of each row; all 0 where None.
        index: (N,) row within the block.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, blocks: Sequence[StoredImages | np.ndarray], index: np.ndarray, block: np.ndarray | None = None
    ) -> None:
        self.blocks = tuple(blocks)
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
        return n * h * w * c

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> np.ndarray:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        if first is Ellipsis or first is None:
            return np.asarray(self)[key]
        if isinstance(first, int | np.integer):
            x = self._read(np.array([first]))[0]
            return x[rest] if rest else x
        x = self._read(first if isinstance(first, slice) else np.asarray(first))
        return x[(slice(None), *rest)] if rest else x

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), 256):
            yield from self._read(slice(start, start + 256))

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
        keys = np.empty((len(self), 16), np.uint8)
        for i, stored in enumerate(self.blocks):
            here = self.block == i
            keys[here] = stored.keys[self.index[here]]  # type: ignore[union-attr]
        whole = keys.tobytes().hex()
        return tuple(whole[i : i + 32] for i in range(0, len(whole), 32))

    def _read(self, rows: Any) -> np.ndarray:
        index, block = self.index[rows], self.block[rows]
        if index.ndim != 1:
            raise IndexError(f"images are selected by one axis, not {index.ndim}")
        out = np.empty((len(index), *self.shape[1:]), dtype=np.uint8)
        for i, stored in enumerate(self.blocks):
            here = np.flatnonzero(block == i)
            out[here] = stored[index[here]] if isinstance(stored, np.ndarray) else stored.take(index[here])
        return out


def join(parts: Sequence[np.ndarray | Rows]) -> np.ndarray:
    """Images of all `parts`, one after the other: an array, or Rows where one of them is (nothing is read then).

    The declared type is an array's, because Rows can be read as one.
    """
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
