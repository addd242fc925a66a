"""Exact k-nearest-neighbour balls of one set and what lies in them, in bounded memory; for all metrics made of these.

The ball of a row reaches to its k-th nearest *other* row of its own set (Kynkäänniemi et al. 2019; the package prdc).
A point on the edge, d <= r, is inside, as in Kynkäänniemi's code (prdc takes <; without exact ties both are the same).

Exact, and fast all the same:

1. Matrix products give the *lower bound* |a|^2 + |b|^2 - 2 a.b - slack of every squared distance, the slack larger than
   whatever rounding can do to it. They are screened in chunks. float32 as a rule; float64 from the chunk on in which
   the slack lets too many pairs through (clusters far from each other, outliers).
2. Pairs that the screen leaves open are decided by sum (a - b)^2 in float64 on the features as they were given. That
   depends on the two rows only: neither on chunks nor on the order of rows. A copy of a row's k-th neighbour is on the
   edge, exactly.
3. Equal rows are one point that counts several times, so that constant features or copies cost less, not more.

Everything is also computed with one jackknife group left out, radii included, from the same pairs: the k nearest rows
outside of any group are nearly always among the k + 4 nearest; where they are not, a longer list is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from imbdiff.metrics.points import PAIRS, Points
from imbdiff.runtime.errors import DataError

CAP = 10_000
"""Rows of each set that are used; a larger set is represented by a part of it, chosen by hash."""
SPARE = 4
"""Neighbours listed beyond the k-th, for radii with a group left out."""
SCREEN = 1 << 21
"""Distances screened at a time: 8 MiB of float32, which stays in the cache."""
BLOCK = 32
"""Columns that share one minimum when the k nearest are screened."""


class Screen:
    """Lower bounds of the squared distances between the points of `queries` and those of `base`, chunk by chunk.

    With unit roundoff u, D + 2 products in any order and norms rounded to the type of the product, the error of
    |a|^2 + |b|^2 - 2 a.b is below 2 (D + 8) u (|a|^2 + |b|^2) (Higham 2002, section 3.1), rounding of a and b included.
    Both sets are shifted by the mean of `base`, which keeps the norms, and so the slack, small.
    """

    def __init__(self, queries: Points, base: Points, chunk: int | None = None) -> None:
        self.queries, self.base = queries, base
        step = max(1, PAIRS // max(base.dim, 1))
        blocks = [np.arange(s, min(s + step, len(base))) for s in range(0, len(base), step)]
        self.centre = sum(base.take(b).sum(axis=0) for b in blocks) / len(base)
        self.chunk = chunk or int(np.clip(SCREEN // len(base), 16, 1024))
        self._scale = 0.0
        for points in (queries, base):
            for s in range(0, len(points), step):
                part = points.take(np.arange(s, min(s + step, len(points)))) - self.centre
                self._scale = max(self._scale, float(np.abs(part).max(initial=0.0)))
        self._scale = self._scale * np.sqrt(base.dim) or 1.0
        self._set(np.float32)

    def _set(self, kind: type[np.floating]) -> None:
        self.kind = kind
        self.slack = 2 * (self.base.dim + 8) * float(np.finfo(kind).eps)
        # padded to whole blocks with points that are far away
        pad = -len(self.base) % BLOCK
        self._b = np.zeros((len(self.base) + pad, self.base.dim + 2), kind)
        self._b[len(self.base) :, -1] = 1e30
        step = max(1, PAIRS // max(self.base.dim, 1))
        norms = [
            self._fill(self._b, self.base, np.arange(s, min(s + step, len(self.base))), s)
            for s in range(0, len(self.base), step)
        ]
        self.base_norms = np.concatenate(norms)
        self._b[:, :-2] *= -2
        self._b[: len(self.base), [-2, -1]] = self._b[: len(self.base), [-1, -2]]

    def _fill(self, out: np.ndarray, points: Points, which: np.ndarray, at: int) -> np.ndarray:
        x = (points.take(which) - self.centre) / self._scale
        norms = (x * x).sum(axis=1)
        rows = out[at : at + len(which)]
        rows[:, :-2], rows[:, -2], rows[:, -1] = x, norms * (1 - self.slack), 1.0
        return norms

    def lower(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, U + padding) lower bounds for the queries `which`, in units of `unit`, and the (n,) norms of these."""
        a = np.empty((len(which), self.base.dim + 2), self.kind)
        norms = self._fill(a, self.queries, which, 0)
        return a @ self._b.T, norms

    @property
    def unit(self) -> float:
        """Squared distance that is 1 in the bounds."""
        return float(self._scale**2)

    def upgrade(self, open_pairs: int, expected: int) -> bool:
        """Goes over to float64 where float32 leaves far more pairs open than expected; says whether it did."""
        if self.kind is np.float64 or open_pairs <= 8 * expected + 1024:
            return False
        self._set(np.float64)
        return True

    def chunks(self, which: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(which), self.chunk):
            yield which[start : start + self.chunk]


def neighbour_lists(
    points: Points, length: int, which: np.ndarray | None = None, chunk: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `length` nearest other points of `points` (all, or `which`), nearest first; equal distances by number.

    Returns:
        (n, length) int64 points and (n, length) float64 squared distances; fewer columns where there are fewer points.
    """
    which = np.arange(len(points)) if which is None else which
    length = min(length, len(points) - 1)
    index, squared = np.empty((len(which), length), np.int64), np.empty((len(which), length))
    if length == 0:
        return index, squared
    screen = Screen(points, points, chunk)
    at = 0
    for part in screen.chunks(which):
        q, u = _nearest_candidates(screen, part, length)
        if screen.upgrade(len(q), len(part) * length):
            q, u = _nearest_candidates(screen, part, length)
        d = points.distances(part[q], points, u)
        order = np.lexsort((u, d, q))
        starts = np.searchsorted(q, np.arange(len(part)))
        keep = order[(starts[:, None] + np.arange(length)).ravel()].reshape(len(part), length)
        index[at : at + len(part)], squared[at : at + len(part)] = u[keep], d[keep]
        at += len(part)
    return index, squared


def _nearest_candidates(screen: Screen, part: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (row of `part`, point) with every point that may be among the `length` nearest others; rows ascend."""
    low, norms = screen.lower(part)
    low[np.arange(len(part)), part] = 1e30
    # the minima of disjoint blocks of columns are `length` different points: as an upper bound they serve
    minima = low.reshape(len(part), BLOCK, -1).min(axis=1) if low.shape[1] >= 4 * BLOCK * length else low
    bound = np.partition(minima, length - 1, axis=1)[:, length - 1].astype(np.float64)
    bound += 2 * screen.slack * (norms + screen.base_norms.max())
    bound = np.nextafter(bound.astype(screen.kind), np.array(np.inf, screen.kind))
    hits = np.flatnonzero(low <= np.minimum(bound, 9e29)[:, None])
    return hits // low.shape[1], hits % low.shape[1]


def ball_radii(points: Points, ks: tuple[int, ...], chunk: int | None = None) -> dict[int, np.ndarray]:
    """Squared radii of the balls of each point, for each k, with each group left out.

    Returns:
        k -> (U, G + 1) float64: squared distance to the k-th nearest other row when group g is left out, in the last
        column of all rows. Where group g has all rows of the point, its radius without g is that with g.

    Raises:
        DataError: there are k or fewer rows, with a group left out.
    """
    for k in ks:
        left = int(points.counts.sum(axis=0).min())
        if k < 1 or left <= k:
            raise DataError(f"the {k}-th nearest other row of {left} rows does not exist", "use more rows or a lower k")
    result = {k: np.empty(points.counts.shape) for k in ks}
    which, length = np.arange(len(points)), max(ks) + (SPARE if points.counts.shape[1] > 1 else 0)
    while len(which):
        index, squared = neighbour_lists(points, length, which, chunk)
        short = np.zeros(len(which), bool)
        step = max(1, PAIRS // (max(index.shape[1], 1) * points.counts.shape[1]))
        for start in range(0, len(which), step):
            rows = slice(start, start + step)
            mine = points.counts[which[rows]]
            # rows met on the way out; the row itself is not its neighbour
            met = np.concatenate([mine[:, None] - 1, points.counts[index[rows]]], axis=1).cumsum(axis=1)
            away = np.concatenate([np.zeros((len(mine), 1)), squared[rows]], axis=1)
            for k in ks:
                enough = met >= k
                radius = np.take_along_axis(away, enough.argmax(axis=1), axis=1)
                absent = mine == 0
                radius[absent] = np.broadcast_to(radius[:, -1:], radius.shape)[absent]
                short[rows] |= (~enough[:, -1] & ~absent).any(axis=1)
                result[k][which[rows]] = radius
        which, length = which[short], 4 * length
    return result


def kth_radii(x: np.ndarray, k: int, chunk: int | None = None) -> np.ndarray:
    """(N,) distance of every row of `x` (N, D) to its k-th nearest other row.

    Args:
        chunk: rows screened at a time; changes memory, not the result.

    Raises:
        DataError: N <= k, or `x` is not (N, D) finite numbers.
    """
    points = Points(x)
    return np.sqrt(ball_radii(points, (k,), chunk)[k][:, 0])[points.member]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a chunk of queries with supports that may lie in each other's balls.

    Attributes:
        part: (n,) the queries of this chunk.
        query: (P,) place in `part`, ascending; support: (P,) points.
        column: (P,) squared distance as far as the balls of the supports need it: -1 is certainly below all radii of
            the support, infinity certainly above, everything else is exact.
        row: (P,) the same for the balls of the queries.
    """

    part: np.ndarray
    query: np.ndarray
    support: np.ndarray
    column: np.ndarray
    row: np.ndarray


def within(
    queries: Points, supports: Points, column: np.ndarray, row: np.ndarray | None = None, chunk: int | None = None
) -> Iterator[Pairs]:
    """All pairs (query, support) in which one may lie in the ball of the other, and none that surely do not.

    Args:
        column: (U_s, ...) squared radii of the supports; a pair comes where d^2 is at most the largest of its support.
        row: (U_q, ...) the same for the queries.
    """
    screen, size = Screen(queries, supports, chunk), len(supports)
    column_range = column.min(axis=1) / screen.unit, column.max(axis=1) / screen.unit
    none = np.full((len(queries), 1), -np.inf)
    row_range = [f((none if row is None else row), axis=1) / screen.unit for f in (np.min, np.max)]
    for part in screen.chunks(np.arange(len(queries))):
        while True:
            bounds, norms = screen.lower(part)
            bounds = bounds[:, :size]
            hit = bounds <= _up(column_range[1], screen.kind)
            if row is not None:
                hit |= bounds <= _up(row_range[1][part], screen.kind)[:, None]
            q, u = np.divmod(np.flatnonzero(hit), size)
            low = bounds[q, u].astype(np.float64)
            high = low + 2 * screen.slack * (norms[q] + screen.base_norms[u])
            seen = [
                _decided(low, high, lowest[of], highest[of])
                for (lowest, highest), of in ((column_range, u), (row_range, part[q]))
            ]
            unknown = np.isnan(seen[0]) | np.isnan(seen[1])
            if not screen.upgrade(int(unknown.sum()), 16 * len(part)):
                break
        exact = queries.distances(part[q[unknown]], supports, u[unknown])
        for state in seen:
            state[unknown] = np.where(np.isnan(state[unknown]), exact, state[unknown])
        yield Pairs(part, q, u, *seen)


def _decided(low: np.ndarray, high: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """-1 where all radii are surely above, infinity where all are surely below, NaN in between."""
    state = np.full(len(low), np.nan)
    state[high < lowest * (1 - 1e-12)] = -1.0
    state[low > highest * (1 + 1e-12) + 1e-30] = np.inf
    return state


def add_by(out: np.ndarray, index: np.ndarray, values: np.ndarray) -> None:
    """out[index[p]] += values[p] for (P,) `index` and (P, ...) `values`: `np.add.at`, fast."""
    if len(index) == 0:
        return
    order = np.argsort(index, kind="stable")
    sorted_index = index[order]
    starts = np.flatnonzero(np.r_[True, sorted_index[1:] != sorted_index[:-1]])
    out[sorted_index[starts]] += np.add.reduceat(values[order], starts, axis=0)


def _up(x: np.ndarray, kind: type[np.floating]) -> np.ndarray:
    """`x` in this type, rounded up."""
    return np.nextafter((x * (1 + 1e-12)).astype(kind), np.array(np.inf, kind)) + np.finfo(kind).tiny * 1e8
