"""Nearest neighbours of many rows among many: found by scikit-learn's brute force, measured and ordered exactly.

scikit-learn leaves open which of several equally near rows it gives. So a few more than are wanted are asked of it,
their distances are measured again as sums over differences, and equal ones follow the keys. A query whose ties may
reach beyond what was asked for is compared with every row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MORE = 8
"""Neighbours asked of scikit-learn beyond those that are wanted."""
BLOCK = 2**26
"""Numbers of the base that are in memory as floats at a time."""


class Nearest:
    """Rows to be searched.

    Args:
        base: (M, ...) uint8 or floating, finite; flattened to (M, D) row by row. It may be memory-mapped: it is read
            block by block and never copied as a whole.
        keys: (M,) numbers that order equal distances, lowest first, such as pseudo-random keys of image hashes; row
            numbers where not given. Rows of equal keys follow their number.
    """

    def __init__(self, base: np.ndarray, keys: np.ndarray | None = None) -> None:
        self.base = base.reshape(len(base), -1)
        self.dim = self.base.shape[1]
        self.rank = np.arange(len(base))
        if keys is not None:
            self.rank[np.argsort(keys, kind="stable")] = np.arange(len(base))

    def __len__(self) -> int:
        return len(self.base)

    def search(
        self, queries: np.ndarray, k: int = 1, *, exclude: np.ndarray | None = None, ordered: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest rows of each query, nearest first.

        Args:
            queries: (N, ...) of the same flattened size D.
            k: at most the number of rows (less one with `exclude`).
            exclude: (N,) a row that does not count for this query (itself), -1 for none.
            ordered: False: any of equally near rows will do, which spares the comparison with every row.

        Returns:
            (N, k) int64 rows and (N, k) float64 squared Euclidean distances: exact for uint8, float64 sums otherwise.
        """
        q = queries.reshape(len(queries), self.dim)
        available = len(self.base) - (exclude is not None)
        if not 1 <= k <= available:
            raise ValueError(f"{k} neighbours of {q.shape} queries among {self.base.shape} rows")
        if not len(q):
            return np.empty((0, k), np.int64), np.empty((0, k))
        own = np.full(len(q), -1) if exclude is None else exclude
        found = self._candidates(q, min(len(self.base), k + 1 + MORE * ordered))
        squared = self._squared(q, found)
        squared[found == own[:, None]] = np.inf
        order = np.lexsort((self.rank[found], squared), axis=1)
        found, squared = np.take_along_axis(found, order, 1), np.take_along_axis(squared, order, 1)
        if ordered and found.shape[1] < len(self.base):
            # the farthest candidate stands for all rows that are none; its distance was rounded by the search
            last = np.where(np.isfinite(squared), squared, 0.0).max(axis=1)
            slack = 1e-9 * (1 + last + (q.astype(np.float64) ** 2).sum(axis=1))
            for i in np.flatnonzero(squared[:, k - 1] >= last - slack).tolist():
                whole = self._squared(q[i : i + 1], np.arange(len(self.base))[None])[0]
                whole[own[i : i + 1][own[i : i + 1] >= 0]] = np.inf
                found[i, :k] = np.lexsort((self.rank, whole))[:k]
                squared[i, :k] = whole[found[i, :k]]
        return found[:, :k].astype(np.int64), squared[:, :k]

    def _candidates(self, q: np.ndarray, n: int) -> np.ndarray:
        """(N, n) rows, the nearest up to rounding."""
        from sklearn.neighbors import NearestNeighbors  # a second or two, which listing a set need not wait for

        size = max(n, BLOCK // self.dim)
        queries = _floats(q)
        index, distance = np.empty((len(q), 0), np.int64), np.empty((len(q), 0))
        for start in range(0, len(self.base), size):
            block = _floats(self.base[start : start + size]).astype(queries.dtype, copy=False)
            search = NearestNeighbors(n_neighbors=min(n, len(block)), algorithm="brute").fit(block)
            near, rows = search.kneighbors(queries)
            index, distance = np.append(index, rows + start, 1), np.append(distance, near, 1)
            best = np.argsort(distance, axis=1, kind="stable")[:, :n]
            index, distance = np.take_along_axis(index, best, 1), np.take_along_axis(distance, best, 1)
        return index

    def _squared(self, q: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(N, n) squared distances of the queries to `rows` (N, n): sums over differences in double precision."""
        result = np.empty(rows.shape)
        step = max(1, 2**22 // (self.dim * rows.shape[1]))
        for start in range(0, len(q), step):
            part = slice(start, start + step)
            for columns in np.array_split(np.arange(rows.shape[1]), max(1, self.dim * rows.shape[1] // 2**22)):
                near = self.base[rows[part][:, columns]].astype(np.float64)
                near -= q[part, None]
                result[part, columns] = np.einsum("nkd,nkd->nk", near, near)
        return result


def hash_keys(hashes: Sequence[str]) -> np.ndarray:
    """(N,) uint64 that follow the hashes: the order of images that does not depend on the order of files."""
    return np.array([int(key[:16], 16) for key in hashes], dtype=np.uint64)


def _floats(x: np.ndarray) -> np.ndarray:
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
