"""Fréchet distance between two sets of features. It is called ``FD[extractor]``: FID means the FID Inception weights.

Equation: d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^{1/2} (Dowson and Landau 1982; Heusel et al. 2017).

Two numbers. ``FD`` is the distance of the two samples, as everybody computes it: biased upwards, roughly like 1/n, so
comparable at equal n only. ``FD∞`` is extrapolated to endless samples (the idea of Chong and Forsyth 2020), with an
interval that covers the true distance as often as it says (``benchmarks/interval_coverage.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

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
    def empty(cls, dim: int) -> Moments:
        return cls(0.0, 0.0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, x: np.ndarray, weights: np.ndarray | None = None) -> Moments:
        """Moments of rows `x` (N, D) with `weights` (N,) >= 0, all 1 where not given."""
        x = np.asarray(x, dtype=np.float64)
        w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
        total = float(w.sum())
        if total == 0:
            return cls.empty(x.shape[1])
        mean = w @ x / total
        centred = x - mean
        return cls(total, float((w * w).sum()), mean, (centred * w[:, None]).T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of the rows of both."""
        if self.weight == 0 or other.weight == 0:
            return other if self.weight == 0 else self
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
    def effective(self) -> float:
        """Effective number of rows W^2 / sum w^2 (Kish); the number of rows where all weights are equal."""
        return self.weight**2 / self.squares if self.squares else 0.0

    @property
    def covariance(self) -> np.ndarray:
        """(D, D) covariance with the N - 1 correction, sum w (.)(.)^T / (W - sum w^2 / W)."""
        return self.scatter / (self.weight - self.squares / self.weight)


def moments_of(rows: Rows, weights: np.ndarray | None = None, size: int = 8192) -> Moments:
    """Moments of `rows` with their weights, or with others (N,) >= 0; `size` rows in memory at a time, as float64."""
    w = rows.weights if weights is None else weights
    kept = np.flatnonzero(w)
    part = rows if len(kept) == len(rows) else rows.select(kept)
    result = Moments.empty(rows.dim)
    for block, place in part.blocks(size):
        result = result.merge(Moments.of(block, w[kept[place]]))
    return result


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
    names = {"FD": ROWS_PER_FEATURE, "FD∞": ROWS_PER_FEATURE_EXTRAPOLATED}
    # equal weights give an effective n of 20 D up to rounding
    refused = {
        name: f"{d} features need an effective n of at least {per * d:,} in both sets, here {n:,.0f}"
        for name, per in names.items()
        if n < per * d - 1e-6
    }
    if "FD" in refused:
        refused["FD"] += "; use " + ("the kernel distance" if "FD∞" in refused else "FD∞")
    if "FD∞" in refused:
        refused["FD∞"] += "; use the kernel distance"
        return {name: Estimate.refuse(reason, fake, real, **extra) for name, reason in refused.items()}
    x, y = moments_of(fake), moments_of(real)
    plain = frechet_distance(x, y)
    single = max(_single_share(fake), _single_share(real))
    if single > SINGLE_SHARE:
        reason = (
            f"classes with a single image hold {100 * single:.0f} % of the squared weights, and how one image scatters "
            "cannot be known; use the kernel distance, or groups"
        )
        return {"FD": _at_this_n(plain, None, refused, fake, real), "FD∞": Estimate.refuse(reason, fake, real, **extra)}
    halves = [_halved(fake, real, x, y, seed, r) for r in range(halvings or _halvings(d))]
    # the halves have `factor` times the bias of the whole: 2, less what single images keep
    factor = 2 - single
    corrected = (factor * plain - np.asarray(halves)) / (factor - 1)
    value = float(corrected.mean())
    maps = _Maps.of(x, y)
    v = variance_of_sum(fake, maps.psi(fake, fake=True)) + variance_of_sum(real, maps.psi(real, fake=False))
    low, high = distance_interval(value, plain, v, float(corrected.var(ddof=1)))
    extra |= {"small_sample": "FD" in refused}
    around = (max(0.0, plain - (value - low)), plain + (high - value))
    return {
        "FD": _at_this_n(plain, around, refused, fake, real),
        "FD∞": Estimate.of(value, low, high, fake, real, plain=plain, **extra),
    }


def _at_this_n(
    plain: float, around: tuple[float, float] | None, refused: dict[str, str], fake: Rows, real: Rows
) -> Estimate:
    if "FD" in refused:
        return Estimate.refuse(refused["FD"], fake, real)
    low, high = around or (None, None)
    return Estimate.of(plain, low, high, fake, real)


def _single_share(rows: Rows) -> float:
    """Share of the squared weights that rows hold which are alone in their class; 0 where there is one class."""
    alone = np.bincount(rows.labels)[rows.labels] == 1
    return float((rows.weights[alone] ** 2).sum() / (rows.weights**2).sum())


def _halvings(dim: int) -> int:
    return HALVINGS if dim <= 512 else HALVINGS_LARGE


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
    stays as it is.
    """
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


@dataclass(frozen=True)
class _Maps:
    """What the influence functions need: for each set, coordinates in which T is diagonal."""

    means: tuple[np.ndarray, np.ndarray]
    axes: tuple[np.ndarray, np.ndarray]
    inverse: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, a: Moments, b: Moments) -> _Maps:
        roots = _sqrt(a.covariance), _sqrt(b.covariance)
        axes, inverse = [], []
        for own, other in ((a, roots[1]), (b, roots[0])):
            values, vectors = np.linalg.eigh(_symmetric(other @ own.covariance @ other))
            axes.append(other @ vectors)
            # directions in which a set does not vary at all add nothing
            inverse.append(np.where(values > values[-1] * 1e-12, np.abs(values), np.inf) ** -0.5)
        return cls((a.mean, b.mean), (axes[0], axes[1]), (inverse[0], inverse[1]))

    def psi(self, rows: Rows, *, fake: bool) -> np.ndarray:
        """(N,) influence of each row, up to a constant."""
        side = 0 if fake else 1
        shift = self.means[side] - self.means[1 - side]
        result = np.empty(len(rows))
        for block, place in rows.blocks():
            c = block - self.means[side]
            z = c @ self.axes[side]
            result[place] = 2 * c @ shift + (c * c).sum(axis=1) - (z * z) @ self.inverse[side]
        return result


def _sqrt(s: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(_symmetric(s))
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _symmetric(s: np.ndarray) -> np.ndarray:
    return (s + s.T) / 2
