"""Exact nearest neighbours of many rows among many: screened in single precision, decided in double.

A product of single precision matrices gives all distances fast, with an error whose bound is known. Rows that the
bound cannot rule out (a few per query) are measured again exactly. So the answer is that of brute force in float64,
depends on neither blocks nor threads, and memory stays O(block).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

UNIT = 2.0**-24  # rounding error of single precision


class Nearest:
    """Rows to be searched.

    Args:
        base: (M, ...) uint8 or floating, finite; flattened to (M, D) row by row. It may be memory-mapped: it is read
            `block` rows at a time and never copied as a whole.
        keys: (M,) numbers that order equal distances, lowest first, such as pseudo-random keys of image hashes; row
            numbers where not given. Rows of equal keys follow their number.
    """

    def __init__(self, base: np.ndarray, keys: np.ndarray | None = None) -> None:
        self.base = base.reshape(len(base), -1)
        self.dim = self.base.shape[1]
        rank = np.arange(len(base))
        if keys is not None:
            rank = np.empty(len(base), dtype=np.int64)
            rank[np.argsort(keys, kind="stable")] = np.arange(len(base))
        self.rank = rank
        # distances do not change when a constant is taken off, and rounding errors grow with the norms
        total = np.zeros(self.dim)
        for start in range(0, len(base), 4096):
            total += self.base[start : start + 4096].sum(axis=0, dtype=np.float64)
        self.centre = (total / max(len(base), 1)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.base)

    def search(
        self,
        queries: np.ndarray,
        k: int = 1,
        *,
        exclude: np.ndarray | None = None,
        chunk: int = 1024,
        block: int = 4096,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest rows of each query, nearest first.

        Args:
            queries: (N, ...) of the same flattened size D.
            k: at most the number of rows (less one with `exclude`).
            exclude: (N,) a row that does not count for this query (itself), -1 for none.
            chunk, block: queries and rows at a time; memory is O(chunk * block). They change no result.

        Returns:
            (N, k) int64 rows and (N, k) float64 squared Euclidean distances: exact for uint8, float64 sums otherwise.
        """
        q = queries.reshape(len(queries), -1)
        available = len(self.base) - (exclude is not None)
        if q.shape[1] != self.dim or not 1 <= k <= available:
            raise ValueError(f"{k} neighbours of {q.shape} queries among {self.base.shape} rows")
        index, squared = np.empty((len(q), k), dtype=np.int64), np.empty((len(q), k))
        for start in range(0, len(q), chunk):
            part = slice(start, min(start + chunk, len(q)))
            own = None if exclude is None else exclude[part]
            index[part], squared[part] = self._search(q[part], k, own, block)
        return index, squared

    def _search(self, q: np.ndarray, k: int, own: np.ndarray | None, block: int) -> tuple[np.ndarray, np.ndarray]:
        x, norms = self._single(q)
        limit = np.full(len(q), np.inf)  # k-th smallest upper bound so far: what lies above for sure is out
        row, col = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        low, high = np.empty(0), np.empty(0)
        for start in range(0, len(self.base), block):
            b, b_norms = self._single(self.base[start : start + block])
            # |fl(q.b) - q.b| <= D u |q| |b| / (1 - D u) in any order of summation (Higham 2002, 3.1), 2 |q| |b| <=
            # |q|^2 + |b|^2; the 16 covers the rounding of the operands and of the three terms
            unit = (self.dim + 16) * UNIT / (1 - (self.dim + 16) * UNIT)
            s = x @ b.T
            s *= -2
            s += ((1 - unit) * b_norms).astype(np.float32)
            if own is not None:
                here = np.flatnonzero((own >= start) & (own < start + len(b)))
                s[here, own[here] - start] = np.inf
            bar = limit - (1 - unit) * norms
            if start == 0 and len(b) > 8 * k:  # a first limit, so that not everything is kept
                with_bound = s + (2 * unit * b_norms).astype(np.float32)
                kth = np.partition(with_bound, k - 1, axis=1)[:, k - 1].astype(np.float64)
                bar = np.minimum(bar, kth + 2 * unit * norms)
            slack = 4 * UNIT * (norms + float(b_norms.max()))  # of the comparison itself, made in single precision
            r, c = np.nonzero(s <= (bar + slack).astype(np.float32)[:, None])
            below = s[r, c].astype(np.float64) + (1 - unit) * norms[r]
            keep = np.isfinite(below)
            r, c, below = r[keep], c[keep], below[keep]
            row, col, low = np.append(row, r), np.append(col, c + start), np.append(low, below)
            high = np.append(high, below + 2 * unit * (norms[r] + b_norms[c]))
            order = np.lexsort((high, row))
            first = np.searchsorted(row[order], np.arange(len(q)))
            full = np.bincount(row, minlength=len(q)) >= k
            limit[full] = high[order[first[full] + k - 1]]
            near = low <= limit[row] + 8 * UNIT * norms[row]
            row, col, low, high = row[near], col[near], low[near], high[near]
        exact = self._exact(q, row, col)
        order = np.lexsort((self.rank[col], exact, row))
        first = np.searchsorted(row[order], np.arange(len(q)))
        best = order[first[:, None] + np.arange(k)]
        return col[best], exact[best]

    def _single(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centred rows in single precision, and their squared norms in double."""
        x = np.subtract(rows, self.centre, dtype=np.float64 if rows.dtype == np.float64 else np.float32)
        x = x.astype(np.float32, copy=False)
        return x, np.einsum("ij,ij->i", x, x, dtype=np.float64)

    def _exact(self, q: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Squared distances of pairs; each is one sum over its own values, so blocks do not matter."""
        whole = q.dtype == np.uint8 and self.base.dtype == np.uint8
        kind = np.int64 if whole else np.float64
        result = np.empty(len(row))
        size = max(1, 2**22 // self.dim)
        for start in range(0, len(row), size):
            part = slice(start, start + size)
            # pixels differ by at most 255: whole numbers throughout, so that the distance of a copy is 0
            difference = q[row[part]].astype(kind) - self.base[col[part]].astype(kind)
            result[part] = (difference * difference).sum(axis=1)
        return result


def hash_keys(hashes: Sequence[str]) -> np.ndarray:
    """(N,) uint64 that follow the hashes: the order of images that does not depend on the order of files."""
    return np.array([int(key[:16], 16) for key in hashes], dtype=np.uint64)
