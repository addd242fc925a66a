"""Near duplicates: images that are nearer to one other image than images of this kind ever are.

Images are compared as *thumbnails* of at most 8 x 8 blocks, centred and scaled to one contrast, mirrored or not, so
noise, compression, brightness, contrast and shifts by a small part of a block hardly matter. A distance is divided by
the mean distance to the next of the 50 nearest images: the ratio of Carlini et al. (2023, "Extracting training data
from diffusion models"), there below 1/2 for a memorised image. Digits are so alike that real ones that nobody copied
come below 1/2. Hence the limit is the lower one of 1/2 and the 1 % point of the ratios that the images of the set have
among themselves, found from their median and lower quartile, so that duplicates in the set do not move it.

Measured, test against training images: digits 0.4 % of 500 are below the limit, skin lesions 0.25 % of 1,198,
Fashion-MNIST 4.0 % of 10,000, CIFAR-10 3.2 % of 10,000, where 3.3 % are known to be duplicates (Barz and Denzler 2020,
"Do we train on test data?").

Not found: shifts by a block, turned or cut images, and copies of an image of which the set holds dozens of nearly equal
versions: these are each other's usual distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from imbdiff.data.nearest import Nearest, hash_keys

SIDE = 8
"""Blocks of a thumbnail along each side."""
NEIGHBOURS = 50
"""Nearest images that say what distance is usual."""
RATIO = 0.5
"""The limit is never above this."""
CALIBRATION = 2_000
"""Images of a set, those of the lowest hashes, whose ratios among themselves set the limit."""
FEWEST = 3
"""Different images that a set needs for a ratio to mean anything."""
CAP = 10_000
"""Images looked up at most, those of the lowest hashes."""
PAIRS = 1_000_000_000
"""Distances measured at most: about 15 s on one core."""
_FAINT = 4.0  # grey levels: images of less contrast are not amplified beyond it


def thumbnails(images: np.ndarray, mirrored: bool = False) -> np.ndarray:
    """(N, D) float32 of (N, H, W, C) uint8: means of at most 8 x 8 blocks, less their mean, over their deviation.

    The root of the sum of squares over D is 1, less for images whose deviation is below 4 grey levels.
    """
    n, h, w, c = images.shape
    rows, columns = (np.linspace(0, size, min(size, SIDE) + 1).round().astype(np.int64) for size in (h, w))
    area = np.diff(rows)[:, None, None] * np.diff(columns)[:, None]
    result = np.empty((n, area.size * c), dtype=np.float32)
    for start in range(0, n, 1024):
        x = images[start : start + 1024, :, ::-1] if mirrored else images[start : start + 1024]
        sums = np.add.reduceat(np.add.reduceat(x, rows[:-1], axis=1, dtype=np.int64), columns[:-1], axis=2)
        means = np.ascontiguousarray((sums / area).reshape(len(x), -1))
        means -= means.mean(axis=1, keepdims=True)
        deviation = np.sqrt((means * means).mean(axis=1, keepdims=True))
        result[start : start + len(x)] = means / np.maximum(deviation, _FAINT)
    return result


@dataclass(frozen=True, eq=False)
class Found:
    """For each of N queries its nearest image of the set.

    Attributes:
        index: (N,) int64 number of that image.
        distance: (N,) root-mean-square difference.
        ratio: (N,) that distance over the mean distance to the next of the 50 nearest (fewer in a small set); 0 for
            equal rows; NaN where the set has fewer than 3 different images.
        mirrored: (N,) bool: the mirrored query was the nearer one.
        near: (N,) bool: the ratio is below the limit, or the distance is 0.
        neighbours: (N, k) int64 numbers of the k = 50 nearest images, mirrored forms not counted, nearest first.
    """

    index: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray
    mirrored: np.ndarray
    near: np.ndarray
    neighbours: np.ndarray


class CopyFinder:
    """Finds near duplicates of the images of a set.

    Args:
        images: (M, H, W, C) uint8, compared as thumbnails, mirrored or not; or (M, D) features, compared as they are.
        hashes: (M,) hashes of the images; of equal images the first one stands for all.
        lookups: images of the set to look up among the others; the first 2,000 of them set the limit.

    Attributes:
        limit: ratio below which an image is a near copy; NaN where the set has fewer than 3 different images.
        usual: share of the set's own images that are near copies of others; 0 where the set is too small to tell.
        looked_up: (n,) int64 numbers of the images that were looked up among the others, those of the lowest hashes.
        among: what was found for them; None where the set has fewer than 4 different images.
    """

    def __init__(self, images: np.ndarray, hashes: Sequence[str], lookups: int = CALIBRATION) -> None:
        first: dict[str, int] = {}
        for i, key in enumerate(hashes):
            first.setdefault(key, i)
        self._rows = np.array(list(first.values()), dtype=np.int64)
        keys = hash_keys(list(first))
        base = thumbnails(images) if images.ndim == 4 else images
        self._base = Nearest(base if len(self._rows) == len(base) else base[self._rows], keys)
        self.limit: float = RATIO if len(self._rows) >= FEWEST else float("nan")
        self.usual = 0.0
        self.looked_up = np.empty(0, dtype=np.int64)
        self.among: Found | None = None
        if len(self._rows) > FEWEST:
            own = np.argsort(keys, kind="stable")[:lookups]
            self.looked_up = self._rows[own]
            nearest = self._nearest(images[self.looked_up], exclude=own)
            ratios = nearest[2][:CALIBRATION]
            self.limit = limit_of(ratios)
            self.usual = float((ratios < self.limit).mean())
            self.among = self._found(*nearest)

    def __len__(self) -> int:
        """Different images of the set."""
        return len(self._rows)

    def find(self, images: np.ndarray) -> Found:
        """The nearest image of the set for each of `images`, (N, H, W, C) uint8 or (N, D) as the set's."""
        return self._found(*self._nearest(images))

    def _found(
        self, index: np.ndarray, distance: np.ndarray, ratio: np.ndarray, mirrored: np.ndarray, nearest: np.ndarray
    ) -> Found:
        near = (distance == 0) | (ratio < self.limit)
        return Found(self._rows[index], distance, ratio, mirrored, near, self._rows[nearest])

    def _nearest(
        self, images: np.ndarray, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The fields of `Found` without `near`, numbers being rows of the base; `exclude`: rows that do not count."""
        k = min(NEIGHBOURS, len(self._base) - (exclude is not None))
        forms = [thumbnails(images), thumbnails(images, mirrored=True)] if images.ndim == 4 else [images]
        import sklearn.neighbors  # noqa: F401  # its BLAS must be there to be limited

        # each search limits BLAS to one thread and puts the number back when it ends, in the midst of the other's
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(len(forms)) as threads:
            (nearest, squared), *more = threads.map(lambda form: self._base.search(form, k, exclude=exclude), forms)
        index, mirrored = nearest, np.zeros(len(images), dtype=bool)
        for index2, squared2 in more:
            mirrored = squared2[:, 0] < squared[:, 0]
            index, squared = self._union(index, squared, index2, squared2)
        distance = np.sqrt(squared / self._base.dim)
        ratio = np.full(len(images), np.nan)
        if len(self._base) >= FEWEST:
            usual = distance[:, 1:].mean(axis=1)
            ratio = np.where(distance[:, 0] == 0, 0.0, distance[:, 0] / np.maximum(usual, 1e-300))
        return index[:, 0], distance[:, 0], ratio, mirrored, nearest

    def _union(
        self, index: np.ndarray, squared: np.ndarray, index2: np.ndarray, squared2: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of two lists of k, each row once, at the smaller of its distances."""
        k = index.shape[1]
        i, d = np.concatenate([index, index2], axis=1), np.concatenate([squared, squared2], axis=1)
        order = np.lexsort((d, i), axis=1)
        i, d = np.take_along_axis(i, order, 1), np.take_along_axis(d, order, 1)
        d[:, 1:][i[:, 1:] == i[:, :-1]] = np.inf
        best = np.lexsort((self._base.rank[i], d), axis=1)[:, :k]
        return np.take_along_axis(i, best, 1), np.take_along_axis(d, best, 1)


def limit_of(ratios: np.ndarray) -> float:
    """The lower one of 1/2 and the 1 % point of a log-normal of the same median and lower quartile.

    Ratios below 1/8, which are plain duplicates, do not count where they are the minority.

    Args:
        ratios: (N,) of images of one set, each among the others; NaN are left out.
    """
    known = ratios[np.isfinite(ratios)]
    single = known[known >= RATIO / 4]
    logs = np.log(np.maximum(single if 2 * len(single) > len(known) else known, 1e-12))
    if not len(logs):
        return float("nan")
    quartile, median = np.quantile(logs, [0.25, 0.5])
    return float(min(RATIO, np.exp(median - (median - quartile) * 2.3263479 / 0.6744898)))


class Hashed(Protocol):
    """Images with ids and hashes, such as an image set."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def hashes(self) -> tuple[str, ...]: ...

    @property
    def images(self) -> np.ndarray: ...


@dataclass(frozen=True)
class NearDuplicates:
    """Near duplicates between two splits, or inside one. Exact copies are not among them.

    Attributes:
        first, second: names of the splits; equal for near duplicates inside one.
        looked_up: images of the second split that were looked up in the first, of `total`.
        limit: ratio below which two images count as near duplicates; None where there are too few images for one.
        beyond_chance: whether clearly more images have one than the 1 % that may lie below the limit by chance.
        pairs: (id in first, id in second, ratio), the most alike first. Across splits one for each image of the second
            that has one, inside a split every pair once. The ratio is 0 where only brightness and contrast differ.
    """

    first: str
    second: str
    looked_up: int
    total: int
    limit: float | None
    beyond_chance: bool
    pairs: tuple[tuple[str, str, float], ...]

    def sentence(self) -> str:
        """A warning for two splits; "" unless there are more than chance may give."""
        if not self.beyond_chance:
            return ""
        of = f"{self.total:,}" if self.looked_up == self.total else f"{self.looked_up:,} looked up of {self.total:,}"
        return (
            f"{len(self.pairs):,} of {of} images of {self.second} look like near duplicates of images of {self.first} "
            f"({100 * len(self.pairs) / self.looked_up:.1f} %): if they are, numbers on {self.second} are too good"
        )


def lookups(images: int) -> int:
    """How many images are looked up among `images` others: at most 10,000, fewer among more than 100,000."""
    return min(CAP, PAIRS // images)


def across(
    search: CopyFinder, first: Hashed, second: Hashed, names: tuple[str, str] = ("train", "test")
) -> NearDuplicates:
    """Images of `second` that are near duplicates of images of `first`, the set of `search`, not empty.

    Both have images of one shape.
    """
    rows = np.sort(np.argsort(hash_keys(second.hashes), kind="stable")[: lookups(len(first.ids))])
    found = search.find(second.images[rows])
    pairs = []
    for i in np.flatnonzero(found.near).tolist():
        j, row = int(found.index[i]), int(rows[i])
        if first.hashes[j] != second.hashes[row]:
            pairs.append((first.ids[j], second.ids[row], _number(found.ratio[i])))
    return _near(*names, search, len(rows), len(second.ids), pairs, len(pairs))


def within(search: CopyFinder, images: Hashed, name: str) -> NearDuplicates:
    """Near duplicates among `images`, the set of `search`."""
    best: dict[tuple[int, int], float] = {}
    found, n = search.among, 0
    if found is not None:
        n = int(found.near.sum())
        for i in np.flatnonzero(found.near).tolist():
            a, b = sorted((int(search.looked_up[i]), int(found.index[i])))
            best[a, b] = min(best.get((a, b), np.inf), _number(found.ratio[i]))
    pairs = [(images.ids[a], images.ids[b], ratio) for (a, b), ratio in best.items()]
    return _near(name, name, search, len(search.looked_up), len(search), pairs, n)


def _number(ratio: float) -> float:
    return round(float(ratio), 4) if np.isfinite(ratio) else 0.0


def _near(
    first: str, second: str, search: CopyFinder, looked_up: int, total: int, pairs: list[tuple[str, str, float]], n: int
) -> NearDuplicates:
    """`n`: images that have a near duplicate, of which 1 % may be chance; pairs inside a split may be fewer."""
    limit = search.limit if np.isfinite(search.limit) else None
    beyond = n > 0.01 * looked_up + 1.96 * (0.01 * 0.99 * looked_up) ** 0.5 + 0.5
    ordered = sorted(pairs, key=lambda pair: (pair[2], pair[1], pair[0]))
    return NearDuplicates(first, second, looked_up, total, limit, beyond, tuple(ordered))
