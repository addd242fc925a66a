"""Precision, recall, density and coverage of one pair of sets, with intervals, from one pass over their distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imbdiff.metrics.neighbours import CAP, Pairs, add_by, ball_radii, within
from imbdiff.metrics.points import PAIRS, Points
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.metrics.statistics import jackknife_half_width, wilson
from imbdiff.runtime.errors import DataError

MIN_ROWS = 50
"""Rows of either set, at least; and 2 k + 2, so that a ball is a part of its set.

Digits as pixels, recall(k=3) and coverage(k=5), mean of 20 draws (``benchmarks/small_n.py``): of random real rows, and
of rows of five of the ten classes. n = 20: 0.93 and 0.98 against 0.80 and 0.93, within two standard deviations; n = 50:
0.95 and 0.99 against 0.66 and 0.86; n = 400: 0.90 and 0.97 against 0.52 and 0.58.
"""
DENSE = 256
"""Pairs of one query, on average, above which those that are surely inside are counted by matrix products."""


@dataclass(frozen=True, eq=False)
class Inside:
    """How many rows lie in whose balls; G_r and G_f jackknife groups, the last column: no group left out.

    Attributes:
        precision: (U_f, G_r + 1) real balls of radius k that hold the fake point, without real group g.
        recall: (U_r, G_f + 1) fake balls of radius k that hold the real point, without fake group h.
        density: (U_f, G_r + 1) as `precision`, with the radius of density and coverage.
        coverage_real: (U_r, G_r + 1) fake points in the ball of the real point, its radius without real group g.
        coverage_fake: (U_r, G_f + 1) fake rows in the ball of the real point, without fake group h.
    """

    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage_real: np.ndarray
    coverage_fake: np.ndarray


def count_inside(fake: Points, real: Points, k: int | None, dense_k: int | None, chunk: int | None = None) -> Inside:
    """Counts for precision and recall at `k` and for density and coverage at `dense_k`; None leaves the two out.

    Raises:
        DataError: the sets have features of different length, or k rows or fewer, or no row.
    """
    if fake.dim != real.dim or not len(fake):
        raise DataError(
            f"{fake.size} x {fake.dim} fake features do not compare with {real.size} x {real.dim} real ones"
        )
    ks = tuple(sorted({x for x in (k, dense_k) if x is not None}))
    real_radii = ball_radii(real, ks, chunk)
    fake_radii = None if k is None else ball_radii(fake, (k,), chunk)[k]
    found = Inside(
        np.zeros((len(fake), real.counts.shape[1])),
        np.zeros((len(real), fake.counts.shape[1])),
        np.zeros((len(fake), real.counts.shape[1])),
        np.zeros((len(real), real.counts.shape[1])),
        np.zeros((len(real), fake.counts.shape[1])),
    )
    largest = np.concatenate([real_radii[x] for x in ks], axis=1)
    for pairs in within(fake, real, largest, fake_radii, chunk):
        p, column, row = pairs.part, pairs.column, pairs.row
        if np.count_nonzero(column < 0) + np.count_nonzero(row < 0) > DENSE * len(p):
            _add_sure(found, pairs, fake, real)
            column, row = np.where(column < 0, np.inf, column), np.where(row < 0, np.inf, row)
        left = np.flatnonzero(np.minimum(column, row) < np.inf)
        step = max(1, PAIRS // (4 * largest.shape[1]))
        for start in range(0, len(left), step):
            rows = left[start : start + step]
            q, u, column_d, row_d = p[pairs.query[rows]], pairs.support[rows], column[rows, None], row[rows, None]
            if k is not None and fake_radii is not None:
                add_by(found.precision, q, real.counts[u] * (column_d <= real_radii[k][u]))
                add_by(found.recall, u, fake.counts[q] * (row_d <= fake_radii[q]))
            if dense_k is not None:
                hit = column_d <= real_radii[dense_k][u]
                add_by(found.density, q, real.counts[u] * hit)
                add_by(found.coverage_real, u, hit.astype(np.float64))
                add_by(found.coverage_fake, u, fake.counts[q] * hit[:, -1:])
    return found


def _add_sure(found: Inside, pairs: Pairs, fake: Points, real: Points) -> None:
    """Adds the pairs that lie in a ball whichever group is left out, by matrix products: they may be nearly all."""
    mask = np.zeros((len(pairs.part), len(real)), np.float32)
    mask[pairs.query, pairs.support] = pairs.column < 0
    # whole numbers below 2^24: exact in float32
    real_counts, fake_counts = real.counts.astype(np.float32), fake.counts[pairs.part].astype(np.float32)
    in_real = mask @ real_counts
    found.precision[pairs.part] += in_real
    found.density[pairs.part] += in_real
    found.coverage_real[:] += mask.sum(axis=0)[:, None]
    found.coverage_fake[:] += mask.T @ fake_counts
    mask[pairs.query, pairs.support] = pairs.row < 0
    found.recall[:] += mask.T @ fake_counts


def neighbour_measures(
    fake: Rows,
    real: Rows,
    *,
    seed: int = 0,
    k: int | None = 3,
    dense_k: int | None = 5,
    cap: int = CAP,
    chunk: int | None = None,
) -> dict[str, Estimate]:
    """Precision and recall at `k`, density and coverage at `dense_k`; the equations are in the files of these names.

    Precision and density average over fake rows with their weights, recall and coverage over real rows with theirs.
    The balls are those of all rows of the part, each row counting once: they describe a support, not a share.

    All four depend on n: more rows mean smaller balls. Compare at equal n only. Below 50 rows they are refused: the
    balls of few rows are so wide that a set which has lost half of the classes passes (`MIN_ROWS`).

    The interval is the delete-a-group jackknife over both sets, with all radii computed anew, and at least as wide as
    Wilson's at the effective n, as the jackknife sees no spread where all rows agree. It covers the expectation at this
    n, not a limit. It is on the wide side: the jackknife overstates the variance of what depends on single neighbours
    (Efron and Stein 1981). In Gaussian worlds 96 to 100 % hold the expectation (`benchmarks/neighbours.py coverage`).

    Args:
        seed: not used: parts and groups follow the keys of the rows.
        k, dense_k: None leaves the two numbers out.
        cap: rows used of either set, at most.
        chunk: rows screened at a time; changes memory, not the result.

    Returns:
        "precision", "recall", "density", "coverage", with k in `extra`; n is that of the rows used.
    """
    fake, real = fake.part(cap), real.part(cap)
    names = {"precision": k, "recall": k, "density": dense_k, "coverage": dense_k}
    need = max(MIN_ROWS, *(2 * x + 2 for x in (k, dense_k) if x is not None))
    if min(len(fake), len(real)) < need:
        reason = f"at least {need} images in both sets are needed; here {len(fake)} and {len(real)}"
        return {name: Estimate.refuse(reason, fake, real, k=x) for name, x in names.items() if x is not None}
    f, r = Points(fake, fake.groups()), Points(real, real.groups())
    inside = count_inside(f, r, k, dense_k, chunk)
    wf, wr = f.total(fake.left_out_weights()), r.total(real.left_out_weights())
    result = {}
    if k is not None:
        left = _leave_outs(wf, inside.precision > 0, None)
        result["precision"] = _share(left, fake, fake, real, k)
        left = _leave_outs(wr, inside.recall > 0, None)[::-1]
        result["recall"] = _share(left, real, fake, real, k)
    if dense_k is not None:
        left = _leave_outs(wf, inside.density, None)
        value, half = float(left[0][-1]) / dense_k, _half(left) / dense_k
        # at density 0 no fake row lies in any ball: the share of rows that could is at most Wilson's
        half = max(half, wilson(0.0, fake.effective)[1] / dense_k)
        result["density"] = Estimate.of(value, max(0.0, value - half), value + half, fake, real, k=dense_k)
        left = _leave_outs(wr, inside.coverage_fake > 0, inside.coverage_real > 0)[::-1]
        result["coverage"] = _share(left, real, fake, real, dense_k)
    return result


def _leave_outs(w: np.ndarray, by_other: np.ndarray, by_own: np.ndarray | None) -> list[np.ndarray]:
    """Averages over points with weights `w` (U, G + 1): other set's groups left out, then own groups left out.

    `by_other` (U, G' + 1) belongs to the groups of the other set; `by_own` (U, G + 1) to those of the own one, where
    leaving rows out also changes the others' values; the last value of both lists is that of all rows.
    """
    own = by_other[:, -1:] if by_own is None else by_own
    return [w[:, -1] @ by_other, (w * own).sum(axis=0)]


def _half(left: list[np.ndarray]) -> float:
    return jackknife_half_width([list(values[:-1]) for values in left])


def _share(left: list[np.ndarray], averaged: Rows, fake: Rows, real: Rows, k: int) -> Estimate:
    value, half = min(1.0, max(0.0, float(left[0][-1]))), _half(left)
    low, high = wilson(value * averaged.effective, averaged.effective)
    return Estimate.of(value, max(0.0, min(low, value - half)), min(1.0, max(high, value + half)), fake, real, k=k)
