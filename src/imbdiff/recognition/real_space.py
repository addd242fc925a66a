r"""How far an image is from the real images of a class, in units of what is usual there; with two of them, too.

Features z are standardised: every dimension has mean 0 and variance 1 over the training images, all classes weighing
the same. The distance of an image to class k is that to the nearest of its n_k different real images,

    d_k(x) = min_{i in k} |z(x) - z_i| / sqrt(D).

What is usual? The more images a class has, the nearer the nearest of them. c(m) is the distance of a real image to the
nearest of m others of its class, as all classes together tell: within a class, the expectation over all subsets of m of
the others, sum_j d_(j) C(N-j, m-1) / C(N, m) with d_(1) <= ... <= d_(N); from one m to the next, the ratio of sums over
the classes that have as many, so that a curve of small classes and one of large classes are joined without a jump. A
class has a scale of its own, shrunk to 1 where it has few images to tell:

    g_k = (n_k l_k / c(n_k - 1) + w) / (n_k + w),     l_k = mean over i of min_{j != i} |z_i - z_j| / sqrt(D),
    ratio(x) = d_k(x) / (g_k c(n_k)),

with w = 5 images. The same ratios of the real images, each left out, d_i / (g_k c(n_k - 1)), say what is in
distribution: up to their 75 % point, all classes weighing the same; approximately in distribution, up to 1.25 times
their 99 % point; out, above. The three zones are those of DiffuLT (Shao et al. 2024), for which no numbers were found.
The factor is there because the extractor was trained on these very images and has drawn them together: real images
that it never saw lie farther out. It was set once, on digits at imbalance factor 50 (110 to 2 images): of 600 held-out
real images 3 to 4 % are then out (at a factor of 1: 11 to 12 %), of real images under a wrong label 87 to 98 %. With
300 to 3 images of Fashion-MNIST 1 % and 61 %; of CIFAR-10, where the classifier knows little, 0.2 % and 4 %: a distance
is worth what the features are. Such images are for tests of this page alone: curation reads training images and
candidates, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.nearest import Nearest, hash_keys

PRIOR_IMAGES = 5.0
"""Weight w of the common scale next to a class's own, in images."""
IN_QUANTILE = 0.75
"""Share of the real images, each left out, that is in distribution."""
OUT_QUANTILE = 0.99
"""Share of the real images, each left out, up to which ratios, times `OUT_FACTOR`, are not out."""
OUT_FACTOR = 1.25
CURVE_CAP = 256
"""Images of a class, those of the lowest hashes, that the common curve is made from."""

IN, APPROXIMATE, OUT = 0, 1, 2
ZONES = ("in-distribution", "approximate", "out")


@dataclass(frozen=True)
class Zones:
    """Limits of the ratio: in distribution up to `inner`, approximately so up to `outer`, out above."""

    inner: float
    outer: float

    def of(self, ratio: np.ndarray) -> np.ndarray:
        """(N,) int64 number of the zone of each ratio, as in `ZONES`."""
        return np.searchsorted([self.inner, self.outer], ratio, side="left").astype(np.int64)


class RealSpace:
    """The real images of all classes in the standardised features of an extractor.

    Args:
        features: (M, D) of the training images.
        train: the training images; every class has at least one.

    Attributes:
        rows: (M, D) float32 standardised features; dimensions that never change are 0.
        typical: (C,) g_k c(n_k); NaN where no class has two different images, or where all of them have equal features.
        zones: limits of the ratio; None in the same case.
        own_ratios: (M,) ratio of each real image left out; NaN for the only one of its class, and for all but the
            first of equal images.
    """

    def __init__(self, features: np.ndarray, train: ImageSet) -> None:
        x = np.asarray(features, dtype=np.float64)
        labels, classes = train.labels, len(train.class_names)
        counts = np.bincount(labels, minlength=classes)
        weight = 1 / (counts[labels] * np.count_nonzero(counts))
        self.mean = weight @ x
        deviation = np.sqrt(weight @ (x - self.mean) ** 2)
        alive = deviation > 1e-6 * deviation.max(initial=0.0)
        self.inverse = np.where(alive, 1 / np.where(alive, deviation, 1.0), 0.0)
        self.rows = self.standardise(features)
        self.keys = hash_keys(train.hashes)
        self._classes = [_different(np.flatnonzero(labels == k), train.hashes) for k in range(classes)]
        self._nearest = {k: Nearest(self.rows[own], self.keys[own]) for k, own in enumerate(self._classes) if len(own)}
        self.own_ratios = np.full(len(labels), np.nan)
        self.typical = np.full(classes, np.nan)
        self.zones: Zones | None = None
        curve = self._curve()
        if curve is not None:
            self._scale(curve, labels, classes)

    def standardise(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, D) float32."""
        return ((np.asarray(features, dtype=np.float64) - self.mean) * self.inverse).astype(np.float32)

    def of_class(self, label: int) -> np.ndarray:
        """(n, D) rows of the different real images of a class."""
        return self.rows[self._classes[label]]

    def distances(self, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(N,) d_k(x) of standardised rows (N, D) to the class of each; NaN where it has no real image."""
        found = np.full(len(rows), np.nan)
        for k in np.unique(labels).tolist():
            if k in self._nearest:
                mine = np.flatnonzero(labels == k)
                found[mine] = self._root(self._nearest[k].search(rows[mine])[1][:, 0])
        return found

    def _root(self, squared: np.ndarray) -> np.ndarray:
        return np.sqrt(squared / max(self.rows.shape[1], 1))

    def _curve(self) -> np.ndarray | None:
        """c(1), c(2), ...; None where it would be 0."""
        curves = [self._of_subsets(own) for own in self._classes if len(own) > 1]
        first = float(np.mean([c[0] for c in curves])) if curves else 0.0
        if first <= 0:
            return None
        joined = [first]
        for m in range(1, max(len(c) for c in curves)):
            longer = [c for c in curves if len(c) > m]
            before = sum(c[m - 1] for c in longer)
            joined.append(joined[-1] * (sum(c[m] for c in longer) / before if before > 0 else 1.0))
        return np.array(joined)

    def _of_subsets(self, own: np.ndarray) -> np.ndarray:
        """(N,) mean distance of an image of a class to the nearest of m = 1..N others, over all subsets of these."""
        own = own[np.argsort(self.keys[own], kind="stable")[:CURVE_CAP]]
        x = self.rows[own].astype(np.float64)
        norms = (x * x).sum(axis=1)
        squared = np.maximum(norms[:, None] + norms - 2 * (x @ x.T), 0.0)
        np.fill_diagonal(squared, -1.0)
        ordered = self._root(np.sort(squared, axis=1)[:, 1:]).mean(axis=0)
        n = len(ordered)
        m, j = np.arange(1, n + 1)[:, None], np.arange(1, n)
        # C(N-j-1, m-1) / C(N-j, m-1) = (N - j - m + 1) / (N - j), and C(N-1, m-1) / C(N, m) = m / N
        steps = np.concatenate([m / n, np.maximum(n - j - m + 1, 0) / (n - j)], axis=1)
        return np.cumprod(steps, axis=1) @ ordered

    def _scale(self, curve: np.ndarray, labels: np.ndarray, classes: int) -> None:
        def usual(m: int) -> float:
            return float(curve[min(m, len(curve)) - 1])

        weight = np.zeros(len(labels))
        for k, own in enumerate(self._classes):
            n = len(own)
            scale = 1.0
            if n > 1:
                left_out = self._root(self._nearest[k].search(self.rows[own], exclude=np.arange(n))[1][:, 0])
                scale = (n * left_out.mean() / usual(n - 1) + PRIOR_IMAGES) / (n + PRIOR_IMAGES)
                self.own_ratios[own] = left_out / (scale * usual(n - 1))
                weight[own] = 1 / n
            if n:
                self.typical[k] = scale * usual(n)
        known = weight > 0
        inner, outer = (quantile(self.own_ratios[known], weight[known], q) for q in (IN_QUANTILE, OUT_QUANTILE))
        self.zones = Zones(inner, OUT_FACTOR * outer)


def quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    """The smallest of `values` (N,) at which the share of the weight up to it is at least `q`."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(share, q - 1e-12)), len(values) - 1)])


def _different(rows: np.ndarray, hashes: tuple[str, ...]) -> np.ndarray:
    """`rows` less all but the first of equal images."""
    first: dict[str, int] = {}
    for i in rows.tolist():
        first.setdefault(hashes[i], i)
    return np.array(list(first.values()), dtype=np.int64)
