"""Near duplicates: images that are nearer to one other image than images of this kind ever are.

Images are compared as *thumbnails* of at most 8 x 8 blocks, centred and scaled to one contrast, mirrored or not. So
noise, compression, brightness, contrast and shifts by a small part of a block hardly matter. A distance says little
before it is compared with the distances that are usual here, so it is divided by the mean distance to the next of the
50 nearest images: the ratio of Carlini et al. (2023, "Extracting training data from diffusion models"), there below
1/2 for a memorised image. That limit holds where images differ much from each other; digits are alike, and real ones
that nobody copied come below 1/2. Hence the limit is the lower one of 1/2 and the 1 % point of the ratios that the
images of the set have among themselves, found from their median and lower quartile, so that duplicates in the set do
not move it.

Not seen: shifts by a block (a shifted digit of 8 x 8 pixels is another image), turned or cut images, and copies of an
image that the set holds dozens of times nearly but not exactly equal: they are each other's usual distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.nearest import Nearest, hash_keys
from imbdiff.runtime.errors import DataError

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
"""Images looked up by :func:`across`, those of the lowest hashes."""
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
class Among:
    """Images of a set, each looked up among the others.

    Attributes:
        rows: (n,) int64 numbers of the images, those of the lowest hashes; of equal images the first one.
        found: what was found, row by row.
        neighbours: (n, k) int64 numbers of the k = 50 nearest images, mirrored forms not counted, nearest first.
    """

    rows: np.ndarray
    found: Found
    neighbours: np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """For each query its nearest row.

    Attributes:
        index: (N,) int64 row of the base.
        distance: (N,) root-mean-square difference.
        ratio: (N,) that distance over the mean distance to the next of the 50 nearest (fewer in a small base);
            0 for equal rows; NaN where the base has fewer than 3 different images.
        mirrored: (N,) the second form of the query was the nearer one.
        near: (N,) bool: the ratio is below the limit, or the rows are equal.
    """

    index: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray
    mirrored: np.ndarray
    near: np.ndarray


class CopyFinder:
    """Finds near duplicates of the images of a set, in one space.

    Args:
        rows: (M, D) thumbnails or features of the set.
        hashes: (M,) hashes of its images; of equal images the first one stands for all.
        mirrored: (n,) image numbers -> (n, D) rows of the mirrored images; not given: mirrored copies do not count.
        lookups: images of the set to look up among the others; the first 2,000 of them set the limit.

    Attributes:
        limit: ratio below which an image is a near copy; NaN where the set has fewer than 3 different images.
        own: (M,) ratios of the calibrating images, each among the others; NaN of all other images.
        among: the images that were looked up among the others; None where the set has fewer than 4 different images.

    Raises:
        DataError: no image, or rows and hashes that do not belong together.
    """

    def __init__(
        self,
        rows: np.ndarray,
        hashes: Sequence[str],
        mirrored: Callable[[np.ndarray], np.ndarray] | None = None,
        lookups: int = CALIBRATION,
    ) -> None:
        if len(rows) != len(hashes) or not len(rows):
            raise DataError(f"{len(rows)} rows for {len(hashes)} images to be searched", "give at least one of each")
        first: dict[str, int] = {}
        for i, key in enumerate(hashes):
            first.setdefault(key, i)
        self.rows = np.array(list(first.values()), dtype=np.int64)
        keys = hash_keys(list(first))
        self.base = Nearest(rows if len(self.rows) == len(rows) else rows[self.rows], keys)
        self.limit: float = float("nan")
        self.own: np.ndarray = np.full(len(rows), np.nan)
        self.among: Among | None = None
        if len(self.rows) >= FEWEST + 1:
            own = np.argsort(keys, kind="stable")[:lookups]
            chosen = self.rows[own]
            turned = None if mirrored is None else mirrored(chosen)
            index, distance, ratio, flips, plain = self._nearest(rows[chosen], turned, exclude=own)
            self.own[chosen[:CALIBRATION]] = ratio[:CALIBRATION]
            self.limit = limit_of(ratio[:CALIBRATION])
            found = Found(self.rows[index], distance, ratio, flips, self._near(distance, ratio))
            self.among = Among(chosen, found, self.rows[plain])
        elif len(self.rows) == FEWEST:
            self.limit = RATIO

    def find(self, rows: np.ndarray, mirrored: np.ndarray | None = None) -> Found:
        """The nearest image of each row (N, D), or of its mirrored form (N, D)."""
        index, distance, ratio, turned, _ = self._nearest(rows, mirrored)
        return Found(self.rows[index], distance, ratio, turned, self._near(distance, ratio))

    def _near(self, distance: np.ndarray, ratio: np.ndarray) -> np.ndarray:
        return (distance == 0) | (ratio < self.limit if np.isfinite(self.limit) else False)

    def _nearest(
        self, rows: np.ndarray, mirrored: np.ndarray | None, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Index, distance, ratio and whether mirrored as in :class:`Found`, and the k nearest, not mirrored."""
        if not len(rows):
            return np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0, bool), np.empty((0, 0), np.int64)
        k = min(NEIGHBOURS, len(self.base) - (exclude is not None))
        forms = [rows] if mirrored is None else [rows, mirrored]
        with ThreadPoolExecutor(len(forms)) as threads:  # numpy works outside the interpreter lock
            found = list(threads.map(lambda form: self.base.search(form, k, exclude=exclude), forms))
        index, squared = found[0]
        plain = index
        turned = np.zeros(len(rows), dtype=bool)
        if mirrored is not None:
            index2, squared2 = found[1]
            turned = squared2[:, 0] < squared[:, 0]
            index, squared = self._union(index, squared, index2, squared2)
        distance = np.sqrt(squared / self.base.dim)
        ratio = np.full(len(rows), np.nan)
        if k >= FEWEST - 1 and len(self.base) >= FEWEST:
            usual = distance[:, 1:].mean(axis=1)
            ratio = np.where(distance[:, 0] == 0, 0.0, distance[:, 0] / np.maximum(usual, 1e-300))
        return index[:, 0], distance[:, 0], ratio, turned, plain

    def _union(
        self, index: np.ndarray, squared: np.ndarray, index2: np.ndarray, squared2: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of two lists of k, each row once, at the smaller of its distances."""
        k = index.shape[1]
        i, d = np.concatenate([index, index2], axis=1), np.concatenate([squared, squared2], axis=1)
        order = np.lexsort((d, i), axis=1)
        i, d = np.take_along_axis(i, order, 1), np.take_along_axis(d, order, 1)
        d[:, 1:][i[:, 1:] == i[:, :-1]] = np.inf
        best = np.lexsort((self.base.rank[i], d), axis=1)[:, :k]
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


def finder(images: ImageSet) -> CopyFinder:
    """Finds near duplicates of `images`, mirrored ones too."""
    return CopyFinder(thumbnails(images.images), images.hashes, lambda rows: thumbnails(images.images[rows], True))


@dataclass(frozen=True)
class Pair:
    """An image of the first set and one of the second that is nearly the same.

    Attributes:
        first, second: ids.
        ratio: see :class:`Found`; 0 for images that are equal, or differ in brightness and contrast only.
        exact: equal pixel for pixel.
        mirrored: one is the mirror image of the other.
    """

    first: str
    second: str
    ratio: float
    exact: bool
    mirrored: bool


@dataclass(frozen=True)
class Across:
    """Near duplicates between two sets.

    Attributes:
        pairs: nearest first, ties by id; one for each image of the second set that has one.
        looked_up: images of the second set that were looked up.
        total: images of the second set.
        limit: ratio below which two images count as near duplicates; None where there are too few images for one.
    """

    pairs: tuple[Pair, ...]
    looked_up: int
    total: int
    limit: float | None

    def sentence(self, first: str, second: str) -> str:
        """A warning in words; "" unless clearly more than the 1 % that may lie below the limit by chance.

        Exact duplicates have warnings of their own and do not count. `first` and `second` name the splits.
        """
        n = self.looked_up
        near = sum(not pair.exact for pair in self.pairs)
        if not beyond_chance(near, n):
            return ""
        of = f"{n:,}" if n == self.total else f"{n:,} looked up of {self.total:,}"
        return (
            f"{near:,} of {of} images of {second} look like near duplicates of images of {first} "
            f"({100 * near / n:.1f} %): if they are, numbers on {second} are too good"
        )


def beyond_chance(near: int, looked_up: int) -> bool:
    """Whether `near` of `looked_up` images is clearly more than the 1 % that may lie below the limit by chance."""
    return near > 0.01 * looked_up + 1.96 * (0.01 * 0.99 * looked_up) ** 0.5 + 0.5


def across(first: ImageSet, second: ImageSet, *, cap: int = CAP) -> Across:
    """Images of `second` that are near duplicates of images of `first`, the larger set, normally the training images.

    The limit leaves about 1 % of images that nobody copied below it where images are alike, and almost none where they
    differ much. Measured, test against training images: digits 0.4 % of 500, skin lesions 0.25 % of 1,198,
    Fashion-MNIST 4.0 % of 10,000, CIFAR-10 3.2 % of 10,000, where 3.3 % are known to be duplicates (Barz and Denzler
    2020, "Do we train on test data?"). At most `cap` images of `second` are looked up, those of the lowest hashes.

    Raises:
        DataError: the images have different shapes.
    """
    if first.shape != second.shape:
        raise DataError(f"images of {first.shape} and {second.shape} (H, W, C) cannot be compared", "resize them")
    if not len(first) or not len(second):
        return Across((), 0, len(second), None)
    return look_up(finder(first), first, second, second.images, cap)


class Named(Protocol):
    """Images with ids and hashes, an image set or what else knows them."""

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def hashes(self) -> tuple[str, ...]: ...


def look_up(search: CopyFinder, first: Named, second: Named, images: np.ndarray, most: int) -> Across:
    """Those of at most `most` images of `second`, the ones of the lowest hashes, that are near duplicates of `first`.

    Args:
        search: of the images of `first`.
        images: (N, H, W, C) uint8 of `second`, or small versions of them if `search` holds such.
    """
    rows = np.sort(np.argsort(hash_keys(second.hashes), kind="stable")[:most])
    x = images[rows]
    found = search.find(thumbnails(x), thumbnails(x, mirrored=True))
    pairs = []
    for i in np.flatnonzero(found.near).tolist():
        j, row = int(found.index[i]), int(rows[i])
        exact = first.hashes[j] == second.hashes[row]
        ratio = float(found.ratio[i]) if np.isfinite(found.ratio[i]) else 0.0
        pairs.append(Pair(first.ids[j], second.ids[row], ratio, exact, bool(found.mirrored[i])))
    pairs.sort(key=lambda pair: (not pair.exact, pair.ratio, pair.second))
    limit = search.limit if np.isfinite(search.limit) else None
    return Across(tuple(pairs), len(rows), len(second.ids), limit)
