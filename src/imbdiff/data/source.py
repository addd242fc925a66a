"""What every source of labelled images offers: names and labels at once, pixels when asked."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from imbdiff.data import cache as caches
from imbdiff.data.decode import Size, Target, resolve
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted, display_name
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.runtime.errors import DataError, listing

SMALL = 8
"""Pixels along each side of the small versions."""


@dataclass(frozen=True, eq=False)
class Scan:
    """What one look at every image of a split gave.

    Attributes:
        hashes: (N,) hash of each image's pixels in its own size; None if the image is unusable.
        small: (N, 8, 8, C) uint8, the means of 8 x 8 blocks of each image; rows of unusable images mean nothing.
        bad: {id: why} of the unusable.
    """

    hashes: list[str | None]
    small: np.ndarray
    bad: dict[str, str] = field(default_factory=dict)


def pixel_hash(x: np.ndarray) -> str:
    """A hash of the size and pixels of one image (H, W, C) uint8."""
    return hashlib.sha256(repr(x.shape).encode() + np.ascontiguousarray(x).tobytes()).hexdigest()[:32]


def smaller(x: np.ndarray) -> np.ndarray:
    """(8, 8, C) uint8: the means over 8 x 8 equal rectangles of an image (H, W, C) uint8.

    A pixel on the border of two rectangles counts in each by its share, so that the mirror image gives the mirrored
    means, whatever the size (Pillow's box filter counts whole pixels, on one side).
    """
    h, w, c = x.shape
    rows = (_weights(h) @ x.reshape(h, -1).astype(np.float32)).reshape(SMALL, w, c)
    means = np.einsum("kw,iwc->ikc", _weights(w), rows)
    return np.rint(means).clip(0, 255).astype(np.uint8)


@lru_cache(256)
def _weights(n: int) -> np.ndarray:
    """(8, n) float32: the share of each of `n` pixels in the mean over each eighth of the length."""
    edges = np.arange(SMALL + 1) * (n / SMALL)
    pixel = np.arange(n)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(overlap, 0) * (SMALL / n)).astype(np.float32)


BALANCED_WITHIN = 1.5

Symmetry = Literal["none", "mirror", "turns"]
"""What leaves the meaning of images as it is: nothing, mirroring left and right, or mirroring and quarter turns."""


@dataclass(frozen=True)
class Survey:
    """What is known of the images of all splits before they are decoded.

    Attributes:
        sizes: {(height, width): images}.
        modes: {Pillow's mode or the array's kind: images}.
        grey: every image is grey.
        bad: {id: why} of the files that cannot be opened.
        headers: {id: ((height, width), mode)} of the files that can, where damage may show in decoding only.
    """

    sizes: dict[tuple[int, int], int]
    modes: dict[str, int]
    grey: bool
    bad: dict[str, str] = field(default_factory=dict)
    headers: dict[str, tuple[tuple[int, int], str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Defaults:
    """How a source is split unless :func:`imbdiff.data.splits.prepare` is told otherwise; see there.

    Attributes:
        imbalance_factor: of the tail that is cut; None = no tail is cut.
        profile, protocol, order: of the tail.
        n_max: images of the largest class after the cut.
        test_per_class: balanced test images per class that are held out.
        groups: the partition of the classes, from the statistics of the training images.
        short: a class with fewer images than the profile asks for keeps all of them (protocol cifar-lt); otherwise that
            is an error.
        notes: what one has to know about them, such as another set of the same name in the literature.
    """

    imbalance_factor: float | None = None
    profile: str = "exponential"
    protocol: str = "imbdiff"
    order: str | None = None
    n_max: int | None = None
    test_per_class: int | None = None
    groups: Callable[[ClassStats], Groups] | None = None
    short: bool = False
    notes: tuple[str, ...] = ()


class Source(ABC):
    """Labelled images in one or more splits. Open one with :func:`imbdiff.data.sources.load`.

    Attributes:
        name: "digits", or the path as it was given.
        kind: "digits", "folder", "npz", "arrays" and so on.
        class_names: (C,) in label order.
        splits: always "train"; where the source brings them, "val" and "test".
        flippable: images may be mirrored in augmentation; False where that is not known.
        defaults: how :func:`prepare` splits unless told otherwise.
        warnings: what was ignored or changed on opening.
    """

    kind: str
    defaults: Defaults = Defaults()

    def __init__(
        self, name: str, class_names: Sequence[str], flippable: bool = False, warnings: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.class_names = tuple(class_names)
        self.flippable = flippable
        self.warnings = tuple(warnings)

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]: ...

    @abstractmethod
    def labels(self, split: str = "train") -> np.ndarray:
        """(N,) int64 labels of a split, without decoding an image."""

    @abstractmethod
    def ids(self, split: str = "train") -> tuple[str, ...]:
        """(N,) stable names of the images of a split; for a folder, paths below it with forward slashes."""

    @abstractmethod
    def survey(self) -> Survey:
        """Sizes, modes and unusable files of all splits."""

    @abstractmethod
    def scan(self, split: str) -> Scan:
        """Hashes and small versions of the images of a split: decodes each once."""

    @abstractmethod
    def _decode(
        self,
        split: str,
        target: Target,
        grey: bool,
        store: Path | None = None,
        own: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, dict[str, str]]:
        """(N, H, W, C) uint8 of a split and {id: why} of the unusable files, whose rows mean nothing.

        `store` is a folder for decoded images, if they are to be kept on disk; `own` the size that all must have.
        """

    @cached_property
    def stats(self) -> ClassStats:
        """Class statistics of the train split, without decoding an image."""
        return ClassStats.from_labels(self.labels("train"), self.class_names)

    @property
    def balanced(self) -> bool:
        """The largest train class is at most 1.5 times the smallest: a long-tail profile and a judge make sense."""
        return self.stats.imbalance_factor <= BALANCED_WITHIN

    def read(self, split: str = "train", size: Size | None = None, resize: str = "crop") -> ImageSet:
        """The decoded images of a split; what was decided about their size is issued as a warning.

        Args:
            split: one of `splits`.
            size: pixels, int or (height, width); None keeps one common size (see :mod:`imbdiff.data.decode`).
            resize: crop, pad or stretch.

        Raises:
            DataError: no such split; unusable files, all listed; mixed sizes and no size given.
            ConfigError: an impossible size or policy.
        """
        sets, notes = self.read_all(size, resize, splits=(split,))
        for note in notes:
            warnings.warn(note, stacklevel=2)
        return sets[split]

    def read_all(
        self,
        size: Size | None = None,
        resize: str = "crop",
        splits: Sequence[str] | None = None,
        cache: str | Path | None = None,
    ) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
        """The decoded images of all (or the given) splits in one size and one number of channels, and notes.

        Unusable files of all these splits are listed in one error.

        Args:
            size: as for :meth:`read`.
            resize: as for :meth:`read`.
            splits: of `splits`; None = all.
            cache: folder where decoded images of files are kept, so that they need not fit into memory; None = the
                user's cache folder for sets of at least 512 MiB decoded; "off" = memory.
        """
        splits = self.splits if splits is None else tuple(splits)
        for split in splits:
            self.check_split(split)
        guessed = self._guess()
        if guessed is not None:
            sizes, grey = guessed
            target, notes = resolve(sizes, size, resize, self.name)
            own = next(iter(sizes)) if size is None else None
            sets, bad = self._read(splits, target, grey, cache, own)
            if not bad:
                return sets, notes
        survey = self.survey()
        if survey.bad:
            self._refuse(self.all_bad())
        target, notes = resolve(survey.sizes, size, resize, self.name)
        sets, bad = self._read(splits, target, survey.grey, cache)
        if bad:
            self._refuse(bad)
        return sets, notes

    def _read(
        self,
        splits: Sequence[str],
        target: Target,
        grey: bool,
        cache: str | Path | None,
        own: tuple[int, int] | None = None,
    ) -> tuple[dict[str, ImageSet], dict[str, str]]:
        """The decoded splits, and {id: why} of the unusable images; with `own`, images of another size are unusable."""
        total = sum(len(self.labels(split)) for split in splits)
        store = caches.chosen(cache, total * target.height * target.width * (1 if grey else 3))
        bad: dict[str, str] = {}
        sets = {}
        for split in splits:
            images, bad_here = self._decode(split, target, grey, store, own)
            bad |= bad_here
            if not bad:
                sets[split] = ImageSet(images, self.labels(split), self.class_names, self.ids(split))
        return sets, bad

    def _guess(self) -> tuple[dict[tuple[int, int], int], bool] | None:
        """One size, and whether all images are grey, as a sample has them; None where headers have to be read.

        Decoding finds out whether the guess was right, so that not every file needs to be opened twice.
        """
        return None

    def all_bad(self) -> dict[str, str]:
        """{id: why} of every unusable image of every split: decodes them all."""
        bad = dict(self.survey().bad)
        for split in self.splits:
            bad |= self.scan(split).bad
        return bad

    def check_split(self, split: str) -> None:
        if split not in self.splits:
            raise DataError(f"{self.name} has no split {split!r}", f"it has: {', '.join(self.splits)}")

    def _refuse(self, bad: dict[str, str]) -> None:
        rows = [f"{display_name(name, 200)}: {display_name(why, 200)}" for name, why in sorted(bad.items())]
        raise DataError(
            f"{len(bad)} of the images of {self.name} cannot be used:\n{listing(rows, 100)}",
            "replace or remove these files",
        )

    def __repr__(self) -> str:
        counts = ", ".join(f"{split} {len(self.labels(split))}" for split in self.splits)
        return f"<{type(self).__name__} {self.name!r}: {counted(len(self.class_names), 'class', 'classes')}, {counts}>"


def check_classes(counts: np.ndarray, class_names: Sequence[str], where: str) -> None:
    """Refuses a training split of fewer than two classes, or with a class that has no image."""
    if len(class_names) < 2:
        raise DataError(
            f"{where} has only one class, {class_names[0]!r}" if len(class_names) else f"{where} has no class",
            "give at least two classes: imbalance is a relation between classes",
        )
    empty = [repr(name) for name, n in zip(class_names, counts.tolist(), strict=True) if n == 0]
    if empty:
        raise DataError(
            f"{where}: {counted(len(empty), 'class has', 'classes have')} no training image:\n{listing(empty)}",
            "add images of them, or leave these classes out",
        )
