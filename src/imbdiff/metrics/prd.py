"""Precision-recall curves of distributions and their summaries F8 and F1/8.

Equations (Sajjadi et al. 2018, "Assessing generative models via precision and recall"): both sets are clustered
together; P and Q are the histograms of the real and the synthetic rows over the clusters. For slopes
lambda = tan(pi/2 i/(m + 1)), as in the authors' code m = 1001 angles evenly from 1e-10 to pi/2 - 1e-10,

    precision(lambda) = sum_w min(lambda P(w), Q(w))        recall(lambda) = precision(lambda) / lambda
    F_beta = max over lambda of (1 + beta^2) p r / (beta^2 p + r)

F8 weighs recall, F1/8 weighs precision. These are what papers of this field call so; the same formula of *improved*
precision and recall (`neighbours.py`) gives other numbers.

The protocol: 20 clusters a class by mini-batch k-means on the union, 10 runs from different seeds, the curves averaged.
Here each run starts from one k-means++ initialisation, where the authors' code took the best of ten: with the
average over ten runs it makes no difference that can be seen (test), and saves most of the time.
"""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from imbdiff.metrics.intervals import jackknife_half_width
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.streams import rng

ANGLES = 1001
RUNS = 10
CLUSTERS_PER_CLASS = 20
PER_CLUSTER = 5
"""Rows of either set for each cluster, at least; below, chance differences of the histograms govern the number.

Random halves of the digits, where F8 should be 1 (``benchmarks/small_n.py``): 0.54 at 1 row a cluster, 0.84 at 2, 0.96
at 5, 0.98 at 10.
"""
CAP = 10_000
"""Rows of each set that are used."""


def prd_curve(real: np.ndarray, fake: np.ndarray, angles: int = ANGLES) -> tuple[np.ndarray, np.ndarray]:
    """Curve of histograms `real` and `fake`, (..., K) >= 0 that sum to 1 over the K clusters.

    A cluster adds lambda P where lambda < Q / P and Q elsewhere, so with clusters sorted by Q / P both sums are running
    totals, and an angle costs a lookup.

    Returns:
        precision and recall, (..., angles) in [0, 1]; from lambda = 0 (precision 0) to infinity (recall 0).
    """
    slopes = np.tan(np.linspace(1e-10, np.pi / 2 - 1e-10, angles))
    p, q = np.broadcast_arrays(np.asarray(real, np.float64), np.asarray(fake, np.float64))
    flat_p, flat_q = p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1])
    precision = np.empty((len(flat_p), angles))
    for i, (a, b) in enumerate(zip(flat_p, flat_q, strict=True)):
        ratio = np.divide(b, a, out=np.full(len(a), np.inf), where=a > 0)
        order = np.argsort(ratio, kind="stable")
        full = np.concatenate([[0.0], b[order].cumsum()])
        part = np.concatenate([a[order][::-1].cumsum()[::-1], [0.0]])
        at = np.searchsorted(ratio[order], slopes, side="right")
        precision[i] = full[at] + slopes * part[at]
    precision = precision.reshape(*p.shape[:-1], angles)
    return np.clip(precision, 0, 1), np.clip(precision / slopes, 0, 1)


def f_beta(precision: np.ndarray, recall: np.ndarray, beta: float) -> float:
    """max over the curve of (1 + beta^2) p r / (beta^2 p + r); 0 where p = r = 0."""
    b = beta * beta
    return float(((1 + b) * precision * recall / np.maximum(b * precision + recall, 1e-300)).max())


def cluster(x: np.ndarray, clusters: int, runs: int = RUNS, seed: int = 0) -> np.ndarray:
    """(runs, N) int cluster of each row of `x` (N, D) in each run of mini-batch k-means.

    One thread, so that the sums have one order on every machine.
    """
    from sklearn.cluster import MiniBatchKMeans  # a second to import

    result = np.empty((runs, len(x)), np.int64)
    with threadpool_limits(1):
        for run in range(runs):
            state = int(rng(seed, "prd", str(run)).integers(2**31))
            fit = MiniBatchKMeans(clusters, n_init=1, random_state=state)
            result[run] = fit.fit_predict(x)
    return result


def prd_f8(real: np.ndarray, fake: np.ndarray, clusters: int, runs: int = RUNS, seed: int = 0) -> tuple[float, float]:
    """F8 (weighs recall) and F1/8 (weighs precision) of `fake` (N, D) against `real` (N, D), rows weighing the same.

    Raises:
        DataError: the sets are not of equal size, which the method asks for, or have fewer rows than clusters.
    """
    n = len(real)
    if n != len(fake):
        raise DataError(f"PRD compares sets of equal size, not {len(fake)} and {n}", "use a part of the larger")
    if 2 * n < clusters:
        raise DataError(f"{clusters} clusters need as many rows, here {2 * n}", "use fewer clusters")
    found = cluster(np.concatenate([fake, real]), clusters, runs, seed)
    q, p = (_histograms(part, clusters, np.full((n, 1), 1 / n)) for part in np.split(found, 2, axis=1))
    return _both(p, q)[0]


def prd_measure(
    fake: Rows,
    real: Rows,
    *,
    seed: int = 0,
    clusters_per_class: int = CLUSTERS_PER_CLASS,
    runs: int = RUNS,
    cap: int = CAP,
) -> dict[str, Estimate]:
    """ "F8" and "F1/8" of equally large parts of both sets, chosen by hash.

    Clusters are 20 times the number of classes of `real` in this scope. Rows count with their weights in the
    histograms; clusters are found without weights.

    The interval is the delete-a-group jackknife of the histograms over both sets, the clusterings kept; so it covers
    the choice of rows, at this n, given the clusters. Ten averaged clusterings add little to that.

    Refused below 5 rows of either set for each cluster. The number is biased downwards at every n, as histograms of the
    same distribution differ by chance (`PER_CLUSTER` has the size of it): compare at equal n only.
    """
    n = min(len(fake), len(real), cap)
    fake, real = fake.part(n), real.part(n)
    clusters = clusters_per_class * max(1, len(np.unique(real.labels)))
    about = {"clusters": clusters, "runs": runs, "angles": ANGLES}
    if n < PER_CLUSTER * clusters:
        reason = (
            f"{clusters} clusters ({clusters_per_class} a class) need at least {PER_CLUSTER * clusters} images in both "
            f"sets; here {len(fake)} and {len(real)}"
        )
        return dict.fromkeys(("F8", "F1/8"), Estimate.refuse(reason, fake, real, **about))
    found = cluster(np.concatenate([fake.array, real.array]), clusters, runs, seed)
    q = _histograms(found[:, :n], clusters, fake.left_out_weights())
    p = _histograms(found[:, n:], clusters, real.left_out_weights())
    left = [np.array(_both(p[:, -1:], q)), np.array(_both(p, q[:, -1:]))]
    result = {}
    for i, name in enumerate(("F8", "F1/8")):
        value, half = float(left[0][-1, i]), jackknife_half_width([side[:-1, i] for side in left])
        result[name] = Estimate.of(value, max(0.0, value - half), min(1.0, value + half), fake, real, **about)
    return result


def _histograms(found: np.ndarray, clusters: int, weights: np.ndarray) -> np.ndarray:
    """(runs, G, clusters) shares of clusters `found` (runs, N) under each of the `weights` (N, G)."""
    result = np.zeros((len(found), weights.shape[1], clusters))
    for run, of_row in enumerate(found):
        for g, w in enumerate(weights.T):
            result[run, g] = np.bincount(of_row, w, clusters)
    return result


def _both(p: np.ndarray, q: np.ndarray) -> list[tuple[float, float]]:
    """F8 and F1/8 for each group left out."""
    precision, recall = (curve.mean(axis=0) for curve in prd_curve(p, q))
    return [(f_beta(a, b, 8.0), f_beta(a, b, 1 / 8)) for a, b in zip(precision, recall, strict=True)]
