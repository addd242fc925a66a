"""Intervals: of shares (Wilson), of statistics of groups of rows (jackknife), and of distances that are 0 at best.

*Distances.* Where the linear part of the error vanishes, a plain interval fails.
A squared distance D between two samples has the Hoeffding expansion  D_n - D = linear + quadratic + ...  with variances
V1 + V2. The linear part fades as D goes to 0, where only the quadratic part is left. Two things follow.

1. The plug-in (jackknife) variance has expectation V1 + 2 V2 (Efron and Stein 1981): up to twice too much near D = 0.
   Given an estimate of V2, subtract it.
2. V1 grows like D (scale every difference by s: D grows by s^2, V1 by s^2). Above the estimate, the variance of the
   estimates that D would give is larger than the one at hand, so the upper end solves
   (D - D_n)^2 = z^2 (V2 + c D), c = V1 / D, as Wilson's interval does for a share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from imbdiff.metrics.rows import Rows

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""
CHI2_95 = 5.023886187314888


def variance_of_sum(rows: Rows, values: np.ndarray) -> float:
    """Variance of sum_i w_i v_i, class counts given: sum_k sum_{i in k} w_i^2 (v_i - mean_k)^2 n_k / (n_k - 1).

    A class of a single row has no variance of its own: its deviation from the weighted mean of all rows stands in.
    Where rows belong together, what is squared are the sums over them, and n_k counts those of a class.

    Args:
        values: (N,) of each row.
    """
    counts = rows.draws_of_class()
    means = np.bincount(rows.labels, values) / np.maximum(np.bincount(rows.labels), 1)
    means[counts == 1] = rows.weights @ values
    factor = np.sqrt(counts / np.maximum(counts - 1, 1))
    return float((rows.sums(rows.weights * (values - means[rows.labels]) * factor[rows.labels]) ** 2).sum())


def distance_interval(
    value: float, biased: float, plug_in_variance: float, quadratic_variance: float
) -> tuple[float, float]:
    """95 % interval of a squared distance D >= 0; its lower end may be below 0 where the estimate may be.

    Args:
        value: unbiased (bias-corrected) estimate.
        biased: the plug-in estimate, > 0; above `value` by the noise of both samples.
        plug_in_variance: of the influence function, expectation V1 + 2 V2.
        quadratic_variance: V2.

    Returns:
        high: solves the equation above, with c = V1 / D_n, or, where D_n is not clearly above 0 and c unsure, nearer to
        the ratio of the uncorrected quantities (V1 + 2 V2) / (D_n + bias) if that is larger; at least
        D_n + z sqrt(V1 + V2).
        low: the mean of D_n - z sqrt(V1 + V2) and of what the equation gives below, there with 5.02 V2 for z^2 V2: the
        quadratic part is skewed, at most as chi^2 with one degree of freedom, whose 97.5 % point 5.02 is.
    """
    v2 = max(quadratic_variance, 0.0)
    v1 = max(plug_in_variance - 2 * v2, 0.0)
    above, z2 = max(value, 0.0), Z95 * Z95
    wald = Z95 * math.sqrt(v1 + v2)
    c = v1 / max(value, math.sqrt(v2), 1e-300)
    half = z2 * c / 2
    low = value + half - math.sqrt(half * half + CHI2_95 * v2 + z2 * c * above)
    if biased > 0:
        unsure = min(1.0, (v1 + v2) / max(above * above, 1e-300))
        half = z2 * (c + max(plug_in_variance / biased - c, 0.0) * unsure) / 2
    high = value + half + math.sqrt(half * half + z2 * v2 + 2 * half * above)
    return (low + value - wald) / 2, max(high, value + wald)


def student95(degrees: int) -> float:
    """Two-sided 95 % point of Student's t."""
    return float(stdtrit(degrees, 0.975))


def jackknife_half_width(leave_out: Sequence[Sequence[float] | np.ndarray]) -> float:
    """Half width of the 95 % delete-a-group jackknife interval of a statistic of several independent samples.

    v = sum over samples of (G - 1) / G sum_g (theta_g - mean theta)^2, times Student's t with G - 1 degrees of freedom
    (Kott 2001, "The delete-a-group jackknife").

    Args:
        leave_out: per sample, the G values of the statistic with one group left out.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in leave_out]
    variance = sum((len(v) - 1) / len(v) * float(((v - v.mean()) ** 2).sum()) for v in samples)
    return math.sqrt(variance) * student95(min(len(v) for v in samples) - 1)


def wilson(successes: float, n: float) -> tuple[float, float]:
    """95 % Wilson score interval of a share (Wilson 1927); (0, 1) where n = 0. An effective n need not be whole."""
    if n == 0:
        return 0.0, 1.0
    p, z = successes / n, Z95
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # at p = 0 and 1 the ends are 0 and 1 exactly; rounding must not put the share outside its own interval
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def closeness_interval(value: float, m: int, n: int) -> tuple[float, float]:
    """95 % interval of a Mann-Whitney share (closeness) of m and n images: both ends solve (value - a)^2 = z^2 V(a).

    V(a) = a (1 - a) [1 + N ((1 - a) / (2 - a) + a / (1 + a))] / (m n), N = (m + n) / 2 - 1: the variance of Hanley and
    McNeil (1982) in the form of Newcombe (2006, "Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic, part 2", method 5). Unlike DeLong's it does not shrink to nothing at 0 and 1, where copies
    are. It covers the sampling of both sets of images; the training images are taken as given."""
    from scipy.optimize import brentq  # half a second to import

    def excess(a: float) -> float:
        spread = 1 + ((m + n) / 2 - 1) * ((1 - a) / (2 - a) + a / (1 + a))
        return (value - a) ** 2 - Z95 * Z95 * a * (1 - a) * spread / (m * n)

    inside = min(max(value, 1e-9), 1 - 1e-9)  # at 0 and 1 itself the equation holds, but there is another solution
    low, high = (float(brentq(excess, end, inside)) if excess(end) > 0 else end for end in (0.0, 1.0))
    return low, high


def combined(values: Sequence[tuple[float, float, float]], weights: Sequence[float]) -> tuple[float, float, float]:
    """Weighted mean of independent (value, low, high), with its interval (MOVER: Zou and Donner 2008).

    low = value - sqrt(sum w^2 (value_k - low_k)^2), high in the same way, weights scaled to sum to 1.
    """
    value, low, high = np.asarray(values, dtype=np.float64).T
    w = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    mean = float(w @ value)
    return mean, max(0.0, mean - math.hypot(*(w * (value - low)))), min(1.0, mean + math.hypot(*(w * (high - value))))
