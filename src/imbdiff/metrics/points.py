"""The distinct rows of a set: equal rows are one point that counts several times."""

from __future__ import annotations

import hashlib

import numpy as np

from imbdiff.metrics.rows import Rows
from imbdiff.runtime.errors import DataError

PAIRS = 1 << 21
"""Numbers in one block of exact work on pairs: 16 MiB of float64."""


class Points:
    """The U distinct rows of a set, and how many rows each stands for.

    Attributes:
        member: (N,) int64, the point of each row; points are numbered in the order of their first row.
        counts: (U, G + 1) float64, rows at the point when group g is left out; the last column: no group left out.
    """

    def __init__(self, rows: Rows | np.ndarray, groups: np.ndarray | None = None) -> None:
        """`rows` (N, D); `groups` (N,) int of each row, where anything is to be left out."""
        given = rows if isinstance(rows, Rows) else _plain(rows)
        assert given._index is not None
        first, self.member = _distinct(given)
        self._features, self._index = given.features, given._index[first]
        left = np.zeros((len(given), 1 if groups is None else int(groups.max()) + 2))
        if groups is not None:
            left[np.arange(len(given)), groups] = 1.0
        gone = self.total(left)
        self.counts = np.bincount(self.member, minlength=len(first)).astype(np.float64)[:, None] - gone
        self.size = len(given)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def dim(self) -> int:
        return self._features.shape[1]

    def take(self, points: np.ndarray) -> np.ndarray:
        """(n, D) float64 features of these points, as they were given."""
        return self._features[self._index[points]].astype(np.float64)

    def total(self, of_rows: np.ndarray) -> np.ndarray:
        """(U, ...) sums over the rows at each point of numbers (N, ...)."""
        if len(self.member) == len(self._index):
            return of_rows.copy()
        result = np.zeros((len(self._index), *of_rows.shape[1:]))
        np.add.at(result, self.member, of_rows)
        return result

    def distances(self, mine: np.ndarray, other: Points, theirs: np.ndarray) -> np.ndarray:
        """(P,) squared distances of the pairs (mine[p], theirs[p]): sum (a - b)^2 in float64."""
        result = np.empty(len(mine))
        step = max(1, PAIRS // max(self.dim, 1))
        for start in range(0, len(mine), step):
            rows = slice(start, start + step)
            difference = self.take(mine[rows])
            difference -= other.take(theirs[rows])
            np.square(difference, out=difference)
            result[rows] = difference.sum(axis=1)
        return result


def _plain(x: np.ndarray) -> Rows:
    """Rows in the order given."""
    x = np.asanyarray(x)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise DataError(f"features must be (N, D) finite numbers, not {x.shape} {x.dtype}")
    n = len(x)
    return Rows(x, np.zeros(n, np.int64), np.arange(n, dtype=np.uint64), np.full(n, 1 / max(n, 1)))


def _distinct(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(U,) first row of each distinct row, ascending, and (N,) the number of that among these."""
    digests = []
    assert rows._index is not None
    step = max(1, PAIRS // max(rows.dim, 1))
    for start in range(0, len(rows), step):
        # + 0.0: minus zero is zero
        block = np.ascontiguousarray(rows.features[rows._index[start : start + step]] + 0.0)
        digests += [hashlib.blake2b(row, digest_size=16).digest() for row in block]
    seen: dict[bytes, int] = {}
    member = np.fromiter((seen.setdefault(d, len(seen)) for d in digests), np.int64, len(digests))
    return np.unique(member, return_index=True)[1], member
