"""Fréchet distance between two sets of features. It is called ``FD[extractor]``: FID means the FID Inception weights.

Equation: d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^{1/2} (Dowson and Landau 1982; Heusel et al. 2017).

Two numbers. ``FD`` is the distance of the two samples, as everybody computes it: biased upwards, roughly like 1/n, so
comparable at equal n only. ``FD∞`` is extrapolated to endless samples (the idea of Chong and Forsyth 2020), with an
interval that covers the true distance as often as it says (``benchmarks/interval_coverage.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from imbdiff.metrics.intervals import distance_interval, variance_of_sum
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.runtime.streams import rng

ROWS_PER_FEATURE = 20
"""Effective n / D of both sets from which ``FD`` is printed."""
ROWS_PER_FEATURE_EXTRAPOLATED = 5
"""The same for ``FD∞``; below 20 it is marked as a small-sample estimate."""
SINGLE_SHARE = 0.1
"""Largest share of the squared weights that classes of a single image may hold for ``FD∞``."""
HALVINGS = 20
HALVINGS_LARGE = 10
"""Random halvings, and those for more than 512 features, where each costs seconds."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Weighted first and second moments of feature rows, mergeable.

    Kept around the running mean, not around zero, so that nothing cancels (Chan, Golub, LeVeque 1979).

    Attributes:
        weight: sum of the weights W.
        squares: sum of the squared weights.
        mean: (D,) float64.
        scatter: (D, D) float64, sum of w (x - mean)(x - mean)^T.
    """

    weight: float
    squares: float
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, weights: np.ndarray | None = None) -> Moments:
        """Moments of rows `x` (N, D) with `weights` (N,) >= 0, all 1 where not given."""
        x = np.asarray(x, dtype=np.float64)
        w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
        total = float(w.sum())
        mean = w @ x / total
        centred = x - mean
        return cls(total, float((w * w).sum()), mean, (centred * w[:, None]).T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of the rows of both."""
        total = self.weight + other.weight
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.weight / total)
        scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.weight * other.weight / total)
        return Moments(total, self.squares + other.squares, mean, scatter)

    def complement(self, part: Moments, squares: float) -> Moments:
        """Moments of the other half: of rows whose weights and those of `part` average to the weights of these.

        Args:
            part: of half the rows, or of all with other weights; the same total weight.
            squares: sum of the squared weights of the other half.
        """
        shift = part.mean - self.mean
        mean = self.mean - shift
        # both second moments around this mean: twice the whole less the part
        around = 2 * self.scatter - (part.scatter + part.weight * np.outer(shift, shift))
        return Moments(self.weight, squares, mean, around - self.weight * np.outer(shift, shift))

    @property
    def covariance(self) -> np.ndarray:
        """(D, D) covariance with the N - 1 correction, sum w (.)(.)^T / (W - sum w^2 / W)."""
        return self.scatter / (self.weight - self.squares / self.weight)


def moments_of(rows: Rows, weights: np.ndarray | None = None, size: int = 8192) -> Moments:
    """Moments of `rows` with their weights, or with others (N,) >= 0; `size` rows in memory at a time, as float64."""
    w = rows.weights if weights is None else weights
    kept = np.flatnonzero(w)
    part = rows if len(kept) == len(rows) else rows.select(kept)
    return reduce(Moments.merge, (Moments.of(block, w[kept[place]]) for block, place in part.blocks(size)))


def frechet_distance(a: Moments | np.ndarray, b: Moments | np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions with the moments of `a` and `b`, >= 0, in float64.

    tr (S1 S2)^{1/2} is the sum of the square roots of the eigenvalues of the symmetric S1^{1/2} S2 S1^{1/2}, which are
    real and, up to rounding, not negative: no complex square root, no added epsilon, also for singular covariances.

    Args:
        a, b: moments, or feature rows (N, D) and (M, D), N and M >= 2.
    """
    a, b = (z if isinstance(z, Moments) else Moments.of(z) for z in (a, b))
    root = _sqrt(a.covariance)
    eigenvalues = np.linalg.eigvalsh(_symmetric(root @ b.covariance @ root))
    trace = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = a.mean - b.mean
    value = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace
    return float(max(0.0, value))


def frechet(fake: Rows, real: Rows, *, seed: int = 0, halvings: int | None = None) -> dict[str, Estimate]:
    """``FD`` and ``FD∞`` of two sets, each weighted to its class mix.

    *Extrapolation.* With h the mean distance of the two random halves of both sets, 2 FD_n - h has no 1/n bias; it is
    averaged over `halvings` random halvings, each within the classes. Of a class with a single image no half can be
    taken: its share of the bias is taken to be that of its squared weight.

    *Interval of FD∞.* The influence function of the distance, psi(x) = 2 (m1 - m2).(x - m1) + |x - m1|^2 -
    (x - m1)^T T (x - m1) with T = S2^{1/2} (S2^{1/2} S1 S2^{1/2})^{-1/2} S2^{1/2}, gives a variance with expectation
    V1 + 2 V2; the variance of 2 FD_n - h over the halvings estimates V2 (see :mod:`imbdiff.metrics.intervals`). Class
    counts are taken as given (stratified). A bootstrap would add the bias once more and fails.

    *Interval of FD.* The same widths around FD at this n.

    Refused: FD where an effective n is below 20 D, FD∞ below 5 D and where classes of a single image hold more than
    10 % of the squared weights. From 5 D to 20 D FD∞ is a small-sample estimate.
    """
    d, n = fake.dim, min(fake.effective, real.effective)
    extra = {"rows_per_feature": round(n / d, 2)}

    def refused(per: int, instead: str) -> Estimate | None:
        if n >= per * d - 1e-6:  # equal weights give an effective n of 20 D up to rounding
            return None
        reason = f"{d} features need an effective n of at least {per * d:,} in both sets, here {n:,.0f}; use {instead}"
        return Estimate.refuse(reason, fake, real)

    no_limit = refused(ROWS_PER_FEATURE_EXTRAPOLATED, "the kernel distance")
    no_plain = refused(ROWS_PER_FEATURE, "the kernel distance" if no_limit else "FD∞")
    if no_plain and no_limit:
        return {"FD": no_plain, "FD∞": replace(no_limit, extra=extra)}
    x, y = moments_of(fake), moments_of(real)
    plain = frechet_distance(x, y)
    single = max(_single_share(fake), _single_share(real))
    if single > SINGLE_SHARE:
        reason = (
            f"classes with a single image hold {100 * single:.0f} % of the squared weights, and how one image scatters "
            "cannot be known; use the kernel distance, or groups"
        )
        at_n = no_plain or Estimate.of(plain, None, None, fake, real)
        return {"FD": at_n, "FD∞": Estimate.refuse(reason, fake, real, **extra)}
    count = halvings or (HALVINGS if d <= 512 else HALVINGS_LARGE)
    halves = np.array([_halved(fake, real, x, y, seed, r) for r in range(count)])
    # the halves have `factor` times the bias of the whole: 2, less what single images keep
    factor = 2 - single
    corrected = (factor * plain - halves) / (factor - 1)
    value = float(corrected.mean())
    v = variance_of_sum(fake, _influence(fake, x, y)) + variance_of_sum(real, _influence(real, y, x))
    low, high = distance_interval(value, plain, v, float(corrected.var(ddof=1)))
    at_n = Estimate.of(plain, max(0.0, plain - (value - low)), plain + (high - value), fake, real)
    extra |= {"small_sample": no_plain is not None}
    return {"FD": no_plain or at_n, "FD∞": Estimate.of(value, low, high, fake, real, plain=plain, **extra)}


def _single_share(rows: Rows) -> float:
    """Share of the squared weights that rows hold which are alone in their class, but for what belongs together with
    them; 0 where there is one class."""
    alone = rows.draws_of_class()[rows.labels] == 1
    return float((rows.weights[alone] ** 2).sum() / (rows.weights**2).sum())


def _halved(fake: Rows, real: Rows, x: Moments, y: Moments, seed: int, number: int) -> float:
    """Mean distance of the two halves of a random halving of both sets."""
    xa, xb = _halves(fake, x, rng(seed, "frechet", "fake", number))
    ya, yb = _halves(real, y, rng(seed, "frechet", "real", number))
    return (frechet_distance(xa, ya) + frechet_distance(xb, yb)) / 2


def _halves(rows: Rows, whole: Moments, generator: np.random.Generator) -> tuple[Moments, Moments]:
    """Moments of two halves with the same class mix: the rows of a class in random pairs, one of a pair in each half.

    With signs c = 1 and -1 of the rows of a pair the halves have weights w (1 + c) and w (1 - c). The odd row of a
    class of n is in both, c = 0, and the others make up for it: c = +-sqrt(n / (n - 1)), so that in every class
    sum c = 0 and sum c^2 = n, and the variance of a half is exactly twice that of the whole. A class of a single row
    stays as it is. Where rows belong together, pairs are made of what does, and the halves are weighted anew to the
    class mix.
    """
    if rows.units is not None:
        sign, share = _signs(rows, generator), np.bincount(rows.labels, rows.weights)
        parts = [rows.weights * (1 + s) for s in (sign, -sign)]
        left = [np.bincount(rows.labels, w, len(share)) for w in parts]
        first, second = (
            moments_of(rows, w * (share / np.where(n > 0, n, 1.0))[rows.labels])
            for w, n in zip(parts, left, strict=True)
        )
        return first, second
    sign = np.zeros(len(rows))
    order = generator.permutation(len(rows))
    order = order[np.argsort(rows.labels[order], kind="stable")]
    starts = np.searchsorted(rows.labels, np.unique(rows.labels))
    place = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    sign[order] = np.where(place % 2 == 0, 1.0, -1.0)
    last = np.append(starts[1:], len(rows)) - 1
    odd = last[place[last] % 2 == 0]
    sign[order[odd]] = 0.0
    n = np.bincount(rows.labels)[rows.labels]
    sign *= np.where((n % 2 == 1) & (n > 1), np.sqrt(n / np.maximum(n - 1, 1)), 1.0)
    first = moments_of(rows, rows.weights * (1 + sign))
    squares = float((rows.weights**2 * (1 - sign) ** 2).sum())
    return first, whole.complement(first, squares)


def _signs(rows: Rows, generator: np.random.Generator) -> np.ndarray:
    """(N,) signs of what belongs together, alternating within the class of its first row; 0 of what is alone in it."""
    assert rows.units is not None
    _, first, unit = np.unique(rows.units, return_index=True, return_inverse=True)
    label, order = rows.labels[first], generator.permutation(len(first))
    order = order[np.argsort(label[order], kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(label[order], label[order], side="left")
    n = np.bincount(label)[label[order]]
    sign = np.empty(len(first))
    sign[order] = np.where((n % 2 == 1) & (place == n - 1), 0.0, np.where(place % 2 == 0, 1.0, -1.0))
    sign[order] *= np.where(n % 2 == 1, np.sqrt(n / np.maximum(n - 1, 1)), 1.0)
    return sign[unit]


def _influence(rows: Rows, own: Moments, other: Moments) -> np.ndarray:
    """(N,) psi of each of the rows, up to a constant; in coordinates in which T is diagonal."""
    root = _sqrt(other.covariance)
    values, vectors = np.linalg.eigh(_symmetric(root @ own.covariance @ root))
    axes = root @ vectors
    # directions in which a set does not vary at all add nothing
    inverse = np.where(values > values[-1] * 1e-12, np.abs(values), np.inf) ** -0.5
    shift = own.mean - other.mean
    result = np.empty(len(rows))
    for block, place in rows.blocks():
        c = block - own.mean
        z = c @ axes
        result[place] = 2 * c @ shift + (c * c).sum(axis=1) - (z * z) @ inverse
    return result


def _sqrt(s: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(_symmetric(s))
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _symmetric(s: np.ndarray) -> np.ndarray:
    return (s + s.T) / 2
