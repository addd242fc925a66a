"""Fréchet distance between two sets of features. It is called ``FD[extractor]``: FID means the FID Inception weights.

Equation: d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^{1/2} (Dowson and Landau 1982; Heusel et al. 2017).
"""

from __future__ import annotations

import numpy as np

from imbdiff.metrics.statistics import Moments, class_weights, jackknife_groups, jackknife_half_width
from imbdiff.runtime.streams import rng

GROUPS = 20
"""Groups of the delete-a-group jackknife."""


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of the normal distributions with the moments of `a` and `b`, >= 0, in float64.

    tr (S1 S2)^{1/2} is the sum of the square roots of the eigenvalues of the symmetric S1^{1/2} S2 S1^{1/2}, which are
    real and, up to rounding, not negative: no complex square root, no added epsilon, also for singular covariances.
    """
    root = _sqrt(a.covariance)
    eigenvalues = np.linalg.eigvalsh(_symmetric(root @ b.covariance @ root))
    trace = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = a.mean - b.mean
    value = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace
    return float(max(0.0, value))


def minimum_rows(dim: int) -> int:
    """The smallest n of either set that a Fréchet distance of `dim` features is printed for: more than 2 `dim`.

    With n <= dim the covariance is singular and the distance is mostly bias; at 2 dim the bias is still of the order of
    the spread, which is why n stands beside the number and two numbers are compared at equal n only.
    """
    return 2 * dim + 1


def frechet(
    x: np.ndarray, y: np.ndarray, x_labels: np.ndarray, y_labels: np.ndarray, proportions: np.ndarray, seed: int = 0
) -> dict[str, float | str | None]:
    """Distance of features `x` (N, D) from `y` (M, D), both weighted to the class mix `proportions` (C,).

    Returns:
        value, low, high, n_effective_x, n_effective_y, refused. The interval is value +- t s, s from the
        delete-a-group jackknife over both sets. It covers the *expectation at this n*, not the limit for n -> infinity:
        the plug-in distance is biased upwards, and a bootstrap would add that bias once more.
    """
    wx, wy = class_weights(x_labels, proportions), class_weights(y_labels, proportions)
    a, b = Moments.of(x, wx), Moments.of(y, wy)
    result: dict[str, float | str | None] = {
        "value": None,
        "low": None,
        "high": None,
        "n_effective_x": a.effective,
        "n_effective_y": b.effective,
        "refused": None,
    }
    need = minimum_rows(x.shape[1])
    n = min(a.effective, b.effective)
    # equal weights give an effective n of 2 dim + 1 up to rounding
    if n < need - 1e-6:
        result["refused"] = (
            f"{x.shape[1]} features need an effective n of at least {need} in both sets, here {n:.0f}; "
            "use the kernel distance"
        )
        return result
    value = frechet_distance(a, b)
    gx = jackknife_groups(x_labels, GROUPS, rng(seed, "frechet", "x"))
    gy = jackknife_groups(y_labels, GROUPS, rng(seed, "frechet", "y"))
    left_x = [frechet_distance(_without(x, x_labels, gx, g, proportions), b) for g in range(GROUPS)]
    left_y = [frechet_distance(a, _without(y, y_labels, gy, g, proportions)) for g in range(GROUPS)]
    half = jackknife_half_width([left_x, left_y])
    result.update(value=value, low=max(0.0, value - half), high=value + half)
    return result


def _without(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, g: int, proportions: np.ndarray) -> Moments:
    keep = groups != g
    return Moments.of(x[keep], class_weights(labels[keep], proportions))


def _sqrt(s: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(_symmetric(s))
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def _symmetric(s: np.ndarray) -> np.ndarray:
    return (s + s.T) / 2
