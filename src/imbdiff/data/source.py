"""What every source of labelled images offers: names and labels at once, pixels when asked.

A source lists its images with labels in *records* when it is opened. Sources of encoded files, wherever these lie (in a
folder, an archive, a table), also name a *reader* that gives an image's encoded bytes: headers, pixels, hashes and the
cache of decoded images are the same for all of them, and are here. A survey of all images is made once and remembered.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import __version__ as pillow

from imbdiff.data import cache as caches
from imbdiff.data import reading
from imbdiff.data.decode import Header, Size, Target, UnusableImageError, decode, is_dark, is_deep, read_header, resolve
from imbdiff.data.imageset import ImageSet, Rows
from imbdiff.data.names import counted, display_name
from imbdiff.data.reading import Decoding, Reader, chunks, decoded, in_chunks
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.runtime.errors import DataError, listing
from imbdiff.runtime.files import digest
from imbdiff.runtime.progress import Progress

BALANCED_WITHIN = 1.5
SMALL = 8
"""Pixels along each side of the small versions."""
SAMPLE_FROM = 4096  # images from which a second look at every file is worth avoiding
SAMPLE = 256  # images of a split that stand for all, until they are decoded
PROGRESS_FROM = 20_000  # images from which it is worth showing progress

Symmetry = Literal["none", "mirror", "turns"]
"""What leaves the meaning of images as it is: nothing, mirroring left and right, or mirroring and quarter turns."""


@dataclass(frozen=True, eq=False)
class Records:
    """The images of a split, in the order of the source.

    Attributes:
        ids: (N,) stable names; for a folder, paths below it with forward slashes.
        labels: (N,) int64.
        places: (N,) what the reader opens; the ids themselves where None.
    """

    ids: Sequence[str]
    labels: np.ndarray
    places: Sequence[Any] | None = None

    @property
    def opened(self) -> Sequence[Any]:
        return self.ids if self.places is None else self.places


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


@dataclass(frozen=True)
class Defaults:
    """How a source is split unless :func:`imbdiff.data.splits.prepare` is called with other arguments; see there.

    Attributes:
        imbalance_factor: of the tail that is cut; None = no tail is cut.
        profile, protocol, order: of the tail.
        n_max: images of the largest class after the cut.
        test_per_class: balanced test images per class that are held out.
        groups: the partition of the classes, from the statistics of the training images.
        notes: what one has to know about them, such as another set of the same name in the literature.
    """

    imbalance_factor: float | None = None
    profile: str = "exponential"
    protocol: str = "imbdiff"
    order: str | None = None
    n_max: int | None = None
    test_per_class: int | None = None
    groups: Callable[[ClassStats], Groups] | None = None
    notes: tuple[str, ...] = ()


class Source(ABC):
    """Labelled images in one or more splits. Open one with :func:`imbdiff.data.sources.load`.

    Attributes:
        name: "digits", or the path as it was given.
        kind: "digits", "folder", "npz", "arrays" and so on.
        class_names: (C,) in label order.
        records: {split: its images}: always "train"; where the source brings them, "val" and "test".
        flippable: images may be mirrored in augmentation; False where that is not known.
        defaults: how :func:`prepare` splits unless it is called with other arguments.
        warnings: what was ignored or changed on opening.
        place: the name with absolute paths.
    """

    kind: str
    defaults: Defaults = Defaults()

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        records: Mapping[str, Records],
        flippable: bool = False,
        warnings: Sequence[str] = (),
    ) -> None:
        self.name = self.place = name
        self.class_names = tuple(class_names)
        self.records = dict(records)
        self.flippable = flippable
        self.warnings = tuple(warnings)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.records)

    def labels(self, split: str = "train") -> np.ndarray:
        """(N,) int64 labels of a split, without decoding an image."""
        self.check_split(split)
        return self.records[split].labels.copy()

    def ids(self, split: str = "train") -> tuple[str, ...]:
        """(N,) stable names of the images of a split."""
        self.check_split(split)
        return tuple(self.records[split].ids)

    def survey(self) -> Survey:
        """Sizes, modes and unusable files of all splits; every header is read once, by the first call."""
        return self._survey

    @cached_property
    def _survey(self) -> Survey:
        return self._look()

    def sizes(self) -> dict[tuple[int, int], int]:
        """{(height, width): images}, as a sample of the images has them where all of it agrees and there are many."""
        sampled = self._sampled
        return self.survey().sizes if sampled is None else sampled[0]

    @cached_property
    def _sampled(self) -> tuple[dict[tuple[int, int], int], bool] | None:
        return self._sample()

    @abstractmethod
    def scan(self, split: str) -> Scan:
        """Hashes and small versions of the images of a split: decodes each once."""

    @abstractmethod
    def pictures(self, split: str, rows: np.ndarray, target: Target, grey: bool) -> np.ndarray:
        """(n, H, W, C) uint8: the usable images at `rows` (n,) of a split, and no others, brought to `target`."""

    @abstractmethod
    def _look(self) -> Survey: ...

    @abstractmethod
    def _decode(
        self, split: str, target: Target, grey: bool, store: Path | None = None, own: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, dict[str, str]]:
        """(N, H, W, C) uint8 of a split and {id: why} of the unusable files, whose rows mean nothing.

        `store` is a folder for decoded images, if they are to be kept on disk; `own` the size that all must have.
        """

    def _sample(self) -> tuple[dict[tuple[int, int], int], bool] | None:
        """One size, and whether all images are grey, as a sample has them; None where headers have to be read.

        Decoding finds out whether that was right, so that not every file needs to be opened twice.
        """
        return None

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
            size, resize: as for :meth:`read`.
            splits: of `splits`; None = all.
            cache: folder where decoded images of files are kept, so that they need not fit into memory; None = the
                user's cache folder for sets of at least 512 MiB decoded; "off" = memory.
        """
        splits = self.splits if splits is None else tuple(splits)
        for split in splits:
            self.check_split(split)
        if "_survey" not in self.__dict__ and self._sampled is not None:
            sizes, grey = self._sampled
            target, notes = resolve(sizes, size, resize, self.name)
            sets, bad = self._read(splits, target, grey, cache, next(iter(sizes)) if size is None else None)
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
        total = sum(len(self.records[split].ids) for split in splits)
        store = caches.chosen(cache, total * target.height * target.width * (1 if grey else 3))
        bad: dict[str, str] = {}
        sets = {}
        for split in splits:
            images, bad_here = self._decode(split, target, grey, store, own)
            bad |= bad_here
            if not bad:
                sets[split] = ImageSet(images, self.labels(split), self.class_names, self.ids(split))
        return sets, bad

    def all_bad(self) -> dict[str, str]:
        """{id: why} of every unusable image of every split: decodes them all."""
        bad = dict(self.survey().bad)
        for split in self.splits:
            bad |= self.scan(split).bad
        return bad

    def check_split(self, split: str) -> None:
        if split not in self.records:
            raise DataError(f"{self.name} has no split {split!r}", f"it has: {', '.join(self.splits)}")

    def _refuse(self, bad: dict[str, str]) -> None:
        rows = [f"{display_name(name, 200)}: {display_name(why, 200)}" for name, why in sorted(bad.items())]
        raise DataError(
            f"{len(bad)} of the images of {self.name} cannot be used:\n{listing(rows, 100)}",
            "replace or remove these files",
        )

    def __repr__(self) -> str:
        counts = ", ".join(f"{split} {len(records.ids)}" for split, records in self.records.items())
        return f"<{type(self).__name__} {self.name!r}: {counted(len(self.class_names), 'class', 'classes')}, {counts}>"


class EncodedSource(Source):
    """Base of the sources of encoded files; `reader` opens the places of the records."""

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        records: Mapping[str, Records],
        reader: Reader,
        flippable: bool = False,
        warnings: Sequence[str] = (),
    ) -> None:
        super().__init__(name, class_names, records, flippable, warnings)
        self.reader = reader

    def _look(self) -> Survey:
        headers: dict[str, Header] = {}
        bad: dict[str, str] = {}
        deep: list[Any] = []
        seen: dict[Header, Header] = {}  # the same few headers a million times
        often: Counter[Header] = Counter()
        for records in self.records.values():
            looks = self._each(_headers, records, "headers")
            for (name, header, why), place in zip(looks, records.opened, strict=True):
                if header is None:
                    bad[name] = why
                    continue
                headers[name] = seen.setdefault(header, header)
                often[headers[name]] += 1
                if is_deep(header.mode) and len(deep) < 64:
                    deep.append(place)
        if deep and all(is_dark(self.reader.open(place)) for place in deep):
            self.warnings += (
                "the 16-bit images use less than an eighth of the range 0..65535 and come out nearly black: "
                "save 10- or 12-bit data scaled to 16 or 8 bits",
            )
        sizes: Counter[tuple[int, int]] = Counter()
        modes: Counter[str] = Counter()
        for header, n in often.items():
            sizes[header.size] += n
            modes[header.mode] += n
        brief = {header: (header.size, header.mode) for header in often}
        kept = {name: brief[header] for name, header in headers.items()}
        return Survey(dict(sizes), dict(modes), all(header.grey for header in often), bad, kept)

    def scan(self, split: str) -> Scan:
        grey = self.survey().grey
        records = self.records[split]
        small = np.zeros((len(records.ids), SMALL, SMALL, 1 if grey else 3), dtype=np.uint8)
        keys: list[str | None] = []
        bad: dict[str, str] = {}
        for i, (name, found, why) in enumerate(self._each(_scanned, records, f"look at {split}", grey)):
            if found is None:
                keys.append(None)
                bad[name] = why
            else:
                keys.append(found[0])
                small[i] = found[1]
        return Scan(keys, small, bad)

    def pictures(self, split: str, rows: np.ndarray, target: Target, grey: bool) -> np.ndarray:
        places = self.records[split].opened
        return decoded(Decoding(self.reader, target, grey), [places[i] for i in rows.tolist()], 16)[0]

    def _decode(
        self, split: str, target: Target, grey: bool, store: Path | None = None, own: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, dict[str, str]]:
        records = self.records[split]
        places = list(records.opened)
        decoding = Decoding(self.reader, target, grey, own)
        if store is None or self.reader.stays:
            images, bad = decoded(decoding, places)
            return images, {records.ids[i]: why for i, why in bad.items()}
        shape = (len(places), *target.shape, 1 if grey else 3)
        stamps = [self.reader.stamp(place) for place in places]
        # the place too: files of two sets may agree in names, sizes and times
        where = [self.place, self.kind, pillow]
        key = digest([caches.VERSION, *where, list(records.ids), stamps, list(shape), target.policy, *(own or ())])
        about = {"source": str(self.name), "split": split, "policy": target.policy}
        stored, bad = caches.kept(store / key[:32], shape, decoding, places, about)
        rows = Rows([stored], np.arange(len(places)))
        return rows, {records.ids[i]: why for i, why in bad.items()}  # type: ignore[return-value]

    def _sample(self) -> tuple[dict[tuple[int, int], int], bool] | None:
        n = sum(len(records.ids) for records in self.records.values())
        if n < SAMPLE_FROM or self.reader.stays:
            return None  # a header costs little
        found = []
        for records in self.records.values():
            step = max(1, len(records.ids) // SAMPLE)
            found += [header for header, _ in _headers(self.reader, records.opened[::step])]
        known = [header for header in found if header is not None]
        sizes = {header.size for header in known}
        if len(known) < len(found) or len(sizes) != 1 or any(is_deep(header.mode) for header in known):
            return None
        if all(header.grey for header in known):
            return None  # that all are grey is known only when all were looked at
        return {sizes.pop(): n}, False

    def _each(self, work: Any, records: Records, what: str, *more: Any) -> Iterator[tuple[str, Any, str]]:
        """(id, result or None, why not) of every image of a split, in order."""
        n = len(records.ids)
        tasks = ((self.reader, part, *more) for part in chunks(records.opened, reading.CHUNK))
        done = 0
        with Progress(what, n, quiet=n < PROGRESS_FROM) as bar:
            for results in in_chunks(work, tasks, 0 if self.reader.stays else n):
                for found, why in results:
                    yield records.ids[done], found, why
                    done += 1
                bar.update(done)


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


def _headers(reader: Reader, places: Sequence[Any]) -> list[tuple[Header | None, str]]:
    seen: dict[Header, Header] = {}  # equal ones travel back to the main process once a chunk

    def one(place: Any) -> Header:
        header = read_header(reader.open(place))
        return seen.setdefault(header, header)

    return [_attempt(one, place) for place in places]


def _scanned(reader: Reader, places: Sequence[Any], grey: bool) -> list[tuple[tuple[str, np.ndarray] | None, str]]:
    """The hash of an image's pixels in its own size, and a small version of it."""

    def one(place: Any) -> tuple[str, np.ndarray]:
        x = decode(reader.open(place), None, grey)
        return pixel_hash(x), smaller(x)

    return [_attempt(one, place) for place in places]


def _attempt(work: Callable[[Any], Any], place: Any) -> tuple[Any, str]:
    try:
        return work(place), ""
    except (UnusableImageError, OSError) as error:
        return None, str(error)
