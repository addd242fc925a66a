"""Mean and covariance in float64, streamed; and matching the classes of two sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imbdiff.metrics.rows import Rows

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


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


# two-sided 95 % points of Student's t with 1..30 degrees of freedom
_T95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
)


def student95(degrees: int) -> float:
    """Two-sided 95 % point of Student's t; that of the normal distribution above 30 degrees of freedom."""
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.96


def jackknife_half_width(leave_out: Sequence[Sequence[float]]) -> float:
    """Half width of the 95 % delete-a-group jackknife interval of a statistic of several independent samples.

    v = sum over samples of (G - 1) / G sum_g (theta_g - mean theta)^2, times Student's t with G - 1 degrees of freedom
    (Kott 2001, "The delete-a-group jackknife").

    Args:
        leave_out: per sample, the G values of the statistic with one group left out.
    """
    variance = 0.0
    for values in leave_out:
        v = np.asarray(values, dtype=np.float64)
        variance += (len(v) - 1) / len(v) * float(((v - v.mean()) ** 2).sum())
    dof = min(len(v) for v in leave_out) - 1
    return float(np.sqrt(variance)) * student95(dof)


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """95 % Wilson score interval of a share (Wilson 1927); (0, 1) where n = 0. An effective n need not be whole."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # at p = 0 and 1 the ends are 0 and 1 exactly; rounding must not put the share outside its own interval
    return max(0.0, min(p, float(centre - half))), min(1.0, max(p, float(centre + half)))
