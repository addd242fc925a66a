"""Precision, recall, density and coverage: what is inside the nearest-neighbour balls of the other set.

With B_k(x, X) the ball around x that reaches to its k-th nearest *other* row of its own set X (N real rows x_i, M
synthetic rows y_j),

    precision = 1/M sum_j [ y_j in some B_k(x_i, X) ]                    Kynkäänniemi et al. 2019, "Improved
    recall    = 1/N sum_i [ x_i in some B_k(y_j, Y) ]                    precision and recall metric ..."
    density   = 1/(k M) sum_j #{ i : y_j in B_k(x_i, X) }                Naeem et al. 2020, "Reliable fidelity
    coverage  = 1/N sum_i [ some y_j in B_k(x_i, X) ]                    and diversity metrics ..."

Papers of this field use k = 3 and k = 5 and different extractors; so a number names its k and its extractor.
F8 and F1/8 are not made of the first two: see `prd.py`. Density is about 1 for real images and not bounded by 1. Real
images against real ones have an expected coverage of 1 - (N - 1)...(N - k) / ((M + N - 1)...(M + N - k)).

A point on the edge, d <= r, is inside, as in Kynkäänniemi's code (the package prdc takes <; without ties both are the
same). Distances that rounding cannot tell apart count as equal, so that a copy of a k-th neighbour is on the edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imbdiff.data.nearest import Nearest
from imbdiff.metrics.intervals import jackknife_half_width, wilson
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.runtime.errors import DataError

CAP = 10_000
"""Rows of each set that are used; a larger set is represented by a part of it, chosen by hash."""
MIN_ROWS = 50
"""Rows of either set, at least; and 2 k + 2, so that a ball is a part of its set.

Digits as pixels, recall(k=3) and coverage(k=5), mean of 20 parts (``benchmarks/small_n.py``): of random real rows, and
of rows of five of the ten classes. n = 20: 0.93 and 0.98 against 0.80 and 0.93, within two standard deviations; n = 50:
0.95 and 0.99 against 0.66 and 0.86; n = 400: 0.90 and 0.97 against 0.52 and 0.58.
"""
SPARE = 4
"""Neighbours listed beyond the k-th, for radii with a group left out."""
NUMBERS = 1 << 21
"""Numbers in one block of work: 16 MiB of float64."""
ROUNDING = 1e-12
"""Squared distances that differ by less than this share of |a|^2 + |b|^2 are equal."""


@dataclass(frozen=True, eq=False)
class Inside:
    """How many rows are inside whose balls, with each jackknife group left out; the last column: with none left out.

    Attributes:
        precision: (M, G_r + 1) real balls of radius k that hold the synthetic row, without real group g.
        recall: (N, G_f + 1) synthetic balls of radius k that hold the real row, without synthetic group g.
        density: (M, G_r + 1) as `precision`, with the radius of density and coverage.
        coverage_real: (N, G_r + 1) whether the real row's ball, its radius without real group g, holds any.
        coverage_fake: (N, G_f + 1) synthetic rows in the real row's ball, without synthetic group g.
    """

    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage_real: np.ndarray
    coverage_fake: np.ndarray


def ball_radii(x: np.ndarray, ks: tuple[int, ...], groups: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """Squared radii of the balls of the rows `x` (N, D) in their own set, for each k.

    The k nearest rows outside of a group are nearly always among the k + 4 nearest of all; where they are not, a
    longer list is made.

    Args:
        groups: (N,) int of each row, where anything is to be left out.

    Returns:
        k -> (N, G + 1) float64: squared distance to the k-th nearest other row that is not in group g, in the last
        column that of all other rows.

    Raises:
        DataError: there are k or fewer rows, with a group left out.
    """
    groups = np.full(len(x), -1) if groups is None else groups
    each = int(groups.max()) + 1
    left = len(x) - int(np.bincount(groups + 1, minlength=2)[1:].max())
    if min(ks) < 1 or left <= max(ks):
        raise DataError(f"the {max(ks)}-th nearest other row of {left} rows does not exist", "use more rows or lower k")
    search = Nearest(x)
    result = {k: np.empty((len(x), each + 1)) for k in ks}
    which, length = np.arange(len(x)), max(ks) + (SPARE if each else 0)
    while len(which):
        length = min(length, len(x) - 1)
        short = np.zeros(len(which), bool)
        index, squared = search.search(x[which], length, exclude=which, ordered=False)
        step = max(1, NUMBERS // (length * (each + 1)))
        for start in range(0, len(which), step):
            part = slice(start, start + step)
            met = (groups[index[part]][:, :, None] != np.arange(each + 1)).cumsum(axis=1)
            for k in ks:
                enough = met >= k
                result[k][which[part]] = np.take_along_axis(squared[part], enough.argmax(axis=1), axis=1)
                short[part] |= ~enough[:, -1].all(axis=1)
        which, length = which[short], 4 * length
    return result


def count_inside(
    fake: np.ndarray,
    real: np.ndarray,
    k: int | None,
    dense_k: int,
    fake_groups: np.ndarray | None = None,
    real_groups: np.ndarray | None = None,
) -> Inside:
    """Counts for precision and recall at `k` (None: zeros), and for density and coverage at `dense_k`.

    Args:
        fake, real: (M, D) and (N, D).
        fake_groups, real_groups: (M,) and (N,) jackknife groups 0, 1, ...; not given: nothing is left out.

    Raises:
        DataError: rows that are not finite numbers, of different length, or k or fewer of them.
    """
    fake, real = (np.asarray(x, np.float64) for x in (fake, real))
    for x in (fake, real):
        if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
            raise DataError(f"features must be rows of finite numbers, (N, D) with N > 0, not {x.shape}")
    if fake.shape[1] != real.shape[1]:
        raise DataError(f"rows of {fake.shape[1]} features do not compare with rows of {real.shape[1]}")
    centre = real.mean(axis=0)
    fake, real = fake - centre, real - centre  # small norms: little rounding
    radii = ball_radii(real, tuple({k or dense_k, dense_k}), real_groups)
    dense = radii[dense_k]
    f, r = _kept(fake_groups, len(fake)), _kept(real_groups, len(real))
    sizes = ((len(fake), r), (len(real), f), (len(fake), r), (len(real), r), (len(real), f))
    found = Inside(*(np.zeros((n, kept.shape[1])) for n, kept in sizes))
    own = None if k is None else ball_radii(fake, (k,), fake_groups)[k]
    nearest = np.full(len(real), np.inf)
    norms = (real * real).sum(axis=1)
    step = max(1, NUMBERS // len(real))
    for start in range(0, len(fake), step):
        rows = slice(start, start + step)
        both = (fake[rows] ** 2).sum(axis=1)[:, None] + norms
        squared = both - 2 * fake[rows] @ real.T
        squared -= ROUNDING * both
        if k is not None and own is not None:
            found.precision[rows] = _held(squared, radii[k], r)
            found.recall[:] += _held(squared.T, own[rows], f[rows])
        found.density[rows] = _held(squared, dense, r)
        found.coverage_fake[:] += (squared <= dense[:, -1]).T.astype(np.float32) @ f[rows]
        nearest = np.minimum(nearest, squared.min(axis=0))
    found.coverage_real[:] = nearest[:, None] <= dense
    return found


def _kept(groups: np.ndarray | None, n: int) -> np.ndarray:
    """(N, G + 1) float32: 1 where the row stays when group g is left out."""
    groups = np.full(n, -1) if groups is None else groups
    return (groups[:, None] != np.arange(int(groups.max()) + 2)).astype(np.float32)


def _held(squared: np.ndarray, radii: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(Q, G + 1) balls that hold each query, without group g; `squared` (Q, N) distances, `radii` (N, G + 1).

    Radii grow where rows are left out. What is inside the smallest ball, of all rows, is counted by a matrix product;
    the few pairs between the smallest and the largest ball one by one.
    """
    sure = squared <= radii[:, -1]
    result = (sure.astype(np.float32) @ kept).astype(np.float64)  # whole numbers below 2^24: exact
    q, u = np.nonzero((squared <= radii.max(axis=1)) & ~sure)
    for start in range(0, len(q), NUMBERS // 32):
        part = slice(start, start + NUMBERS // 32)
        np.add.at(result, q[part], (squared[q[part], u[part], None] <= radii[u[part]]) * kept[u[part]])
    return result


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision and recall of `fake` (M, D) against `real` (N, D), all rows weighing the same.

    Args:
        k: which nearest other row gives the radius, >= 1.

    Raises:
        DataError: k rows or fewer in either set, or rows that are not (N, D) finite numbers.
    """
    inside = count_inside(fake, real, k, k)
    return float((inside.precision > 0).mean()), float((inside.recall > 0).mean())


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Density and coverage of `fake` (M, D) against `real` (N, D), all rows weighing the same; else as above.

    Only real rows have balls: one fake outlier, whose ball would be wide, changes little.
    """
    inside = count_inside(fake, real, None, k)
    return float(inside.density.mean()) / k, float((inside.coverage_fake > 0).mean())


def neighbour_measures(
    fake: Rows, real: Rows, *, seed: int = 0, k: int = 3, dense_k: int = 5, cap: int = CAP
) -> dict[str, Estimate]:
    """ "precision" and "recall" at `k`, "density" and "coverage" at `dense_k`, of at most `cap` rows of either set.

    Precision and density average over fake rows with their weights, recall and coverage over real rows with theirs.
    The balls are those of all rows, each counting once. More rows mean smaller balls: compare at equal n only. Refused
    below 50 rows of either set.

    The interval is the delete-a-group jackknife over both sets, with all radii computed anew, and at least as wide as
    Wilson's at the effective n, as the jackknife sees no spread where all rows agree. It covers the expectation at this
    n, and is on the wide side: the jackknife overstates the variance of what depends on single neighbours (Efron and
    Stein 1981; 96 to 100 % in `benchmarks/neighbours.py coverage`). `seed` is not used.
    """
    fake, real = fake.part(cap), real.part(cap)
    need = max(MIN_ROWS, 2 * max(k, dense_k) + 2)
    if min(len(fake), len(real)) < need:
        reason = f"at least {need} images in both sets are needed; here {len(fake)} and {len(real)}"
        return dict.fromkeys(("precision", "recall", "density", "coverage"), Estimate.refuse(reason, fake, real))
    groups = fake.groups(), real.groups()
    if min(len(g) - int(np.bincount(g).max()) for g in groups) <= max(k, dense_k):
        reason = "nearly all images of a set belong together: without these no neighbours are left"
        return dict.fromkeys(("precision", "recall", "density", "coverage"), Estimate.refuse(reason, fake, real))
    inside = count_inside(fake.array, real.array, k, dense_k, *groups)
    wf, wr = fake.left_out_weights(), real.left_out_weights()

    def share(rows: Rows, value: float, half: float) -> Estimate:
        value = min(1.0, max(0.0, value))
        low, high = wilson(value * rows.effective, rows.effective)
        return Estimate.of(value, max(0.0, min(low, value - half)), min(1.0, max(high, value + half)), fake, real)

    precision = share(fake, *_jackknife(wf, inside.precision > 0))
    recall = share(real, *_jackknife(wr, inside.recall > 0))
    coverage = share(real, *_jackknife(wr, inside.coverage_fake > 0, inside.coverage_real))
    value, half = (x / dense_k for x in _jackknife(wf, inside.density))
    # at density 0 no fake row is in any ball: the share of rows that could is at most Wilson's
    half = max(half, wilson(0.0, fake.effective)[1] / dense_k)
    density = Estimate.of(value, max(0.0, value - half), value + half, fake, real)
    return {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def _jackknife(w: np.ndarray, by_other: np.ndarray, by_own: np.ndarray | None = None) -> tuple[float, float]:
    """Average over rows with weights `w` (N, G + 1), and the half width of its interval.

    `by_other` (N, G' + 1) is the quantity without each group of the other set; `by_own` (N, G + 1) without each of the
    own set, where that changes the values of rows that stay.
    """
    own = by_other[:, -1:] if by_own is None else by_own
    without_other, without_own = w[:, -1] @ by_other, (w * own).sum(axis=0)
    return float(without_other[-1]), jackknife_half_width([without_other[:-1], without_own[:-1]])
