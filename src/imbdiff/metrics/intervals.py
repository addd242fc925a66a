"""Intervals of distances that are 0 at best: where the linear part of the error vanishes there, a plain one fails.

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

import numpy as np

from imbdiff.metrics.rows import Rows
from imbdiff.metrics.statistics import Z95

CHI2_95 = 5.023886187314888


def variance_of_sum(rows: Rows, values: np.ndarray) -> float:
    """Variance of sum_i w_i v_i, class counts given: sum_k sum_{i in k} w_i^2 (v_i - mean_k)^2 n_k / (n_k - 1).

    A class of a single row has no variance of its own: its deviation from the weighted mean of all rows stands in.

    Args:
        values: (N,) of each row.
    """
    counts = np.bincount(rows.labels)
    means = np.bincount(rows.labels, values) / np.maximum(counts, 1)
    means[counts == 1] = rows.weights @ values
    factor = counts / np.maximum(counts - 1, 1)
    return float((rows.weights**2 * (values - means[rows.labels]) ** 2 * factor[rows.labels]).sum())


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
