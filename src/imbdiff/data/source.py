"""What every source of labelled images offers: names and labels at once, pixels when asked.

A source lists its images with labels when it is opened. What differs from source to source is the *reader* that gives
an image's bytes; headers, pixels, hashes and the cache are the same for all of them.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import __version__ as pillow

from imbdiff.data import cache as caches
from imbdiff.data import reading
from imbdiff.data.decode import (
    File,
    Header,
    Size,
    Target,
    header,
    is_colourless,
    opened,
    pixels,
    read_header,
    resolve,
)
from imbdiff.data.grouping import of_splits
from imbdiff.data.imageset import ImageSet, Rows
from imbdiff.data.labels import Names, encode, missing_names
from imbdiff.data.names import counted, display_name
from imbdiff.data.reading import Decoding, Reader, chunks, colourless, converted_grey, in_chunks, worked
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.runtime.errors import DataError, listing
from imbdiff.runtime.files import digest
from imbdiff.runtime.progress import Progress

BALANCED_WITHIN = 1.5
SMALL = 8  # pixels along each side of the small versions
SAMPLE_FROM = 4096  # images from which reading every header before decoding is worth avoiding
SAMPLE = 256  # images of a split whose headers stand for all
BLOCK = 2**27  # bytes of images decoded at a time, where each is used once
PROGRESS_FROM = 20_000  # images from which it is worth showing progress
DARK = 32  # values below which images look black
DARK_SHARE = 0.2  # of images that look black, from which on it is said where some have more than 8 bits
GREY = "no image has a coloured pixel, though they are saved in colour: read as grey; otherwise: --data.channels colour"


@dataclass(frozen=True, eq=False)
class Records:
    """The images of a split, in the order of the source.

    Attributes:
        ids: (N,) stable names; for a folder, paths below it with forward slashes.
        labels: (N,) int64; on the way into a source also integers or texts that :func:`imbdiff.data.labels.encode`
            takes.
        places: (N,) what the reader opens; the ids themselves where None.
        groups: (N,) texts: images of one text belong together. None where nothing is known.
    """

    ids: Sequence[str]
    labels: Any
    places: Sequence[Any] | None = None
    groups: Sequence[str] | None = None

    @property
    def opened(self) -> Sequence[Any]:
        return self.ids if self.places is None else self.places


@dataclass(eq=False)
class Survey:
    """What headers say.

    Attributes:
        sizes: {(height, width): usable images}.
        grey: every usable image is grey.
        bad: {id: why} of the unusable.
        several: usable images with more than one page or frame.
        deep: usable images of more than 8 bits.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    grey: bool = True
    bad: dict[str, str] = field(default_factory=dict)
    several: int = 0
    deep: int = 0

    def add(self, found: Header) -> None:
        """Counts a usable image."""
        self.sizes[found.size] += 1
        self.grey = self.grey and found.grey
        self.several, self.deep = self.several + found.several, self.deep + found.deep


@dataclass(eq=False)
class Scan(Survey):
    """What decoding every image once, in its own size, gave.

    Attributes:
        hashes: {split: (N,) hash of each image's size and pixels; None if it is unusable}.
        small: {split: (N, 8, 8, C) uint8 small versions, C = 1 where all are grey; rows of unusable images mean
            nothing}.
        modes: {Pillow's mode: usable images}.
        coloured: usable images with a pixel that is not grey, whatever they are saved as.
    """

    hashes: dict[str, list[str | None]] = field(default_factory=dict)
    small: dict[str, np.ndarray] = field(default_factory=dict)
    modes: Counter[str] = field(default_factory=Counter)
    coloured: int = 0


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


class Source:
    """Labelled images in one or more splits. Open one with :func:`imbdiff.data.sources.load`.

    Args:
        name: "digits", or the path as it was given.
        kind: "digits", "folder", "npz", "arrays" and so on.
        splits: {split: its images}, with labels as they are found.
        reader: opens the places of the images.
        names: of the classes, in order, where they do not follow from the labels.
        warnings: what was ignored or changed on opening.
        strict, spare: as for :func:`imbdiff.data.labels.encode`.

    Attributes:
        class_names: (C,) in label order.
        without_images: classes without a training image, which are refused for training.
        records: {split: its images}: "train"; where the source brings them, "val" and "test".
        flippable: images may be mirrored in augmentation; False where that is not known.
        defaults: how :func:`prepare` splits unless it is called with other arguments.

    Raises:
        DataError: labels that cannot be used, fewer than two classes.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        splits: Mapping[str, Records],
        reader: Reader,
        names: Names | None = None,
        warnings: Sequence[str] = (),
        *,
        strict: bool = True,
        spare: bool = True,
    ) -> None:
        raw = {split: records.labels for split, records in splits.items()}
        self.class_names, labels, notes = encode(raw, names, name, strict=strict, spare=spare)
        notes += missing_names(self.class_names, labels, {s: r.ids for s, r in splits.items()}, name, strict=strict)
        seen = set(labels["train"].tolist()) if "train" in labels else set()
        self.without_images = tuple(name for k, name in enumerate(self.class_names) if k not in seen)
        self.records = {split: replace(one, labels=labels[split]) for split, one in splits.items()}
        self.name, self.kind, self.reader = name, kind, reader
        self.warnings = (*warnings, *notes)
        self.flippable, self.defaults = False, Defaults()

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.records)

    def labels(self, split: str = "train") -> np.ndarray:
        """(N,) int64 labels of a split, without decoding an image."""
        return self._split(split).labels.copy()

    def ids(self, split: str = "train") -> tuple[str, ...]:
        """(N,) stable names of the images of a split."""
        return tuple(self._split(split).ids)

    def group_by(self, groups: Any) -> None:
        """Says which images belong together; `groups` as for :func:`imbdiff.data.grouping.of_splits`."""
        for split, found in of_splits(groups, {s: one.ids for s, one in self.records.items()}, self.name).items():
            self.records[split] = replace(self.records[split], groups=found)

    @cached_property
    def stats(self) -> ClassStats:
        """Class statistics of the train split, without decoding an image."""
        return ClassStats.from_labels(self.labels("train"), self.class_names)

    @property
    def balanced(self) -> bool:
        """The largest train class is at most 1.5 times the smallest: a long-tail profile and a judge make sense."""
        return self.stats.imbalance_factor <= BALANCED_WITHIN

    def stamped(self) -> Any:
        """What changes when an image does, found without reading any: of files their sizes and times. A JSON value, or
        None where nothing is known of the images before they are read."""
        pixels = {split: self._stamps(split) for split in self.records}
        if None in pixels.values():
            return None
        about = [[split, r.ids, r.labels.tolist(), r.groups] for split, r in self.records.items()]
        return [self.kind, self.reader.identity, list(self.class_names), about, pixels]

    def _stamps(self, split: str) -> Any:
        """What changes when the pixels of a split do; None: not known."""
        return None if self.reader.in_process else [self.reader.stamp(place) for place in self.records[split].opened]

    def survey(self) -> Survey:
        """Sizes and unreadable files of all splits; every header is read once, by the first call."""
        return self._survey

    @cached_property
    def _survey(self) -> Survey:
        survey = Survey()
        for records in self.records.values():
            for name, found, why in self._each(read_header, records, "headers"):
                if found is None:
                    survey.bad[name] = why
                else:
                    survey.add(found)
        return survey

    def sizes(self) -> dict[tuple[int, int], int]:
        """{(height, width): images}, as a sample of the images has them where all of it agrees and there are many."""
        return (self._sampled or self.survey()).sizes

    @cached_property
    def _sampled(self) -> Survey | None:
        """One size and no grey image, as the headers of a sample say; None where all headers have to be read.

        Decoding finds out whether it was right, so that not every file is opened twice.
        """
        n = sum(len(records.ids) for records in self.records.values())
        if n < SAMPLE_FROM or self.reader.in_process:
            return None
        places = [p for r in self.records.values() for p in r.opened[:: max(1, len(r.ids) // SAMPLE)]]
        found = [header for header, _ in worked(read_header, self.reader, places)]
        sizes = {None if header is None else header.size for header in found}
        # that all are grey is known only when all were looked at
        if len(sizes) != 1 or None in sizes or all(header.grey for header in found):
            return None
        several, deep = (-(-n * sum(kind) // len(found)) for kind in zip(
            *((header.several, header.deep) for header in found if header), strict=True))  # fmt: skip
        return Survey(Counter({size: n for size in sizes if size}), False, {}, several, deep)

    def scan(self) -> Scan:
        """Decodes every image of every split once."""
        scan, dark = Scan(), 0
        for split, records in self.records.items():
            keys: list[str | None] = []
            small = np.zeros((len(records.ids), SMALL, SMALL, 3), dtype=np.uint8)
            for i, (name, found, why) in enumerate(self._each(_seen, records, f"look at {split}")):
                head, key, small[i], coloured = found or (None, None, 0, False)
                keys.append(key)
                if head is None:
                    scan.bad[name] = why
                else:
                    scan.add(head)
                    scan.modes[head.mode] += 1
                    dark += bool((small[i] < DARK).all())
                    scan.coloured += coloured
            scan.hashes[split], scan.small[split] = keys, small
        scan.grey = scan.grey or (self.greys_found and not scan.coloured)
        if scan.grey:
            scan.small = {split: x[..., :1] for split, x in scan.small.items()}
        found = pixel_notes(scan.several, scan.deep, dark, scan.sizes.total())
        self.warnings = tuple(dict.fromkeys((*self.warnings, *found)))
        return scan

    def converted(self, target: Target, grey: bool) -> Iterator[tuple[str, tuple[np.ndarray, bool] | None, str]]:
        """(id, (pixels, whether colours were lost) or None, why it is unusable) of every image of all splits, in order.

        They are decoded block by block, so that memory does not grow with their number.

        Args:
            target: what they are brought to; pixels are (H, W, C) uint8.
            grey: C = 1, otherwise 3.
        """
        size = max(reading.CHUNK, min(reading.PROCESSES_FROM, BLOCK // (target.height * target.width * 3)))
        work = partial(converted_grey, target, grey)
        for records in self.records.values():
            ids = iter(records.ids)
            for block in chunks(records.opened, size):
                tasks = ((work, self.reader, part) for part in chunks(block, reading.CHUNK))
                for results in in_chunks(worked, tasks, self.reader, len(block)):
                    yield from ((next(ids), *result) for result in results)

    def pictures(self, split: str, rows: np.ndarray, target: Target, grey: bool) -> np.ndarray:
        """(n, H, W, C) uint8: the usable images at `rows` (n,) of a split, and no others, brought to `target`."""
        places = self.records[split].opened
        return Decoding(self.reader, target, grey).many([places[i] for i in rows.tolist()], 16)[0]

    def read(self, split: str = "train", size: Size | None = None, resize: str = "auto") -> ImageSet:
        """The images of one split, as of :meth:`read_all`; what was decided about their size is issued as a warning."""
        sets, notes = self.read_all(size, resize, splits=(split,))
        for note in notes:
            warnings.warn(note, stacklevel=2)
        return sets[split]

    def read_all(
        self,
        size: Size | None = None,
        resize: str = "auto",
        splits: Sequence[str] | None = None,
        cache: str | Path | None = None,
        channels: str | None = None,
    ) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
        """The decoded images of all (or the given) splits in one size and one number of channels, and notes.

        Args:
            size: pixels, int or (height, width); None: what :func:`imbdiff.data.decode.resolve` chooses.
            resize: crop, pad or stretch; auto: pad where cropping would cut much, otherwise crop.
            splits: of `splits`; None = all.
            cache: folder where decoded images of files are kept, so that they need not fit into memory; None = the
                user's cache folder for sets of at least 512 MiB decoded; "off" = memory.
            channels: "grey" or "colour"; "auto": grey where no image has a coloured pixel, however they are saved;
                None: grey where all images are saved in grey.

        Raises:
            DataError: no such split; unusable files, all listed.
            ConfigError: an impossible size or policy.
        """
        chosen = {split: self._split(split) for split in splits or self.splits}
        if "_survey" not in self.__dict__ and self._sampled is not None:
            own = next(iter(self._sampled.sizes)) if size is None else None
            sets, notes, bad = self._read(chosen, self._sampled, size, resize, cache, channels, own)
            if not bad:
                return sets, notes
        bad = self.scan().bad if self.survey().bad else {}
        if not bad:
            sets, notes, bad = self._read(chosen, self.survey(), size, resize, cache, channels)
        if bad:
            rows = [f"{display_name(name, 200)}: {display_name(why, 200)}" for name, why in sorted(bad.items())]
            raise DataError(
                f"{len(bad)} of the images of {self.name} cannot be used:\n{listing(rows, 100)}",
                "replace or remove these files",
            )
        return sets, notes

    def _read(
        self,
        splits: Mapping[str, Records],
        survey: Survey,
        size: Size | None,
        resize: str,
        cache: str | Path | None,
        channels: str | None,
        own: tuple[int, int] | None = None,
    ) -> tuple[dict[str, ImageSet], tuple[str, ...], dict[str, str]]:
        """The decoded splits, notes, and {id: why} of the unusable images; with `own`, all images of another size."""
        target, notes = resolve(survey.sizes, size, resize, self.name)
        grey = survey.grey if channels in (None, "auto") else channels == "grey"
        sets: dict[str, ImageSet] = {}
        bad: dict[str, str] = {"": "not decoded"}
        if channels == "auto" and not grey and self.greys_found and self._seem_grey(splits):
            sets, bad = self._decoded(splits, Decoding(self.reader, target, True, own, no_colour=True), cache)
            if not bad:
                notes = (*notes, GREY)
        if bad:
            sets, bad = self._decoded(splits, Decoding(self.reader, target, grey, own), cache)
        if not bad:
            some = [one.images[np.arange(0, len(one), -(-len(one) // 64))] for one in sets.values() if len(one)]
            dark = sum(int((x < DARK).all(axis=(1, 2, 3)).sum()) for x in some)
            notes = (*notes, *pixel_notes(survey.several, survey.deep, dark, sum(map(len, some))))
        return sets, notes, bad

    @property
    def greys_found(self) -> bool:
        """Whether grey images that are saved in colour are taken for grey; arrays given in Python are what they are."""
        return self.kind != "arrays"

    def _seem_grey(self, splits: Mapping[str, Records]) -> bool:
        """Whether a few images of each split have grey pixels alone: whether it is worth looking at all of them."""
        places = [p for r in splits.values() for p in r.opened[:: max(1, len(r.ids) // 8)][:8]]
        return all(found or why for found, why in worked(colourless, self.reader, places))

    def _decoded(
        self, splits: Mapping[str, Records], decoding: Decoding, cache: str | Path | None
    ) -> tuple[dict[str, ImageSet], dict[str, str]]:
        """The decoded splits, and {id: why} of the unusable images."""
        total = sum(len(records.ids) for records in splits.values())
        height, width = decoding.target.shape
        store = caches.chosen(cache, total * height * width * (1 if decoding.grey else 3))
        sets: dict[str, ImageSet] = {}
        bad: dict[str, str] = {}
        for split, records in splits.items():
            images, wrong = self._decode(split, decoding, store)
            bad |= {records.ids[i]: why for i, why in wrong.items()}
            if bad and decoding.no_colour:
                break
            if not bad:
                sets[split] = ImageSet(images, self.labels(split), self.class_names, self.ids(split), records.groups)
        return sets, bad

    def _decode(self, split: str, decoding: Decoding, store: Path | None) -> tuple[Any, dict[int, str]]:
        """(N, H, W, C) uint8 of a split and {number: why} of the unusable images, whose rows mean nothing.

        `store` is a folder for decoded images, if they are to be kept on disk.
        """
        records, places = self.records[split], list(self.records[split].opened)
        if store is None or self.reader.in_process:
            return decoding.many(places)
        shape = (len(places), *decoding.target.shape, 1 if decoding.grey else 3)
        what = [self.reader.identity, pillow, list(records.ids), [self.reader.stamp(place) for place in places]]
        key = digest([*what, list(shape), decoding.target.policy, *(decoding.own or ())])
        about = {"source": self.name, "split": split, "shape": list(shape), "policy": decoding.target.policy}
        stored, bad = caches.kept(store / key[:32], shape, decoding, places, about)
        return Rows([stored], np.arange(len(places))), bad

    def _split(self, split: str) -> Records:
        if split not in self.records:
            raise DataError(f"{self.name} has no split {split!r}", f"it has: {', '.join(self.splits)}")
        return self.records[split]

    def _each(self, work: Callable[[File], Any], records: Records, what: str) -> Iterator[tuple[str, Any, str]]:
        """(id, ``work(file)`` or None, why not) of every image of a split, in order."""
        n = len(records.ids)
        tasks = ((work, self.reader, part) for part in chunks(records.opened, reading.CHUNK))
        done = 0
        with Progress(what, n, quiet=n < PROGRESS_FROM) as bar:
            for results in in_chunks(worked, tasks, self.reader, n):
                for found, why in results:
                    yield records.ids[done], found, why
                    done += 1
                bar.update(done)


def pixel_notes(several: int, deep: int, dark: int, n: int) -> list[str]:
    """Notes on images of which a part is left out, or that look wrong.

    Args:
        several: images with more than one page or frame; deep: images of more than 8 bits.
        dark: images that look black, among the `n` that were looked at.
    """
    notes = []
    if several:
        have = counted(several, "image has", "images have")
        notes.append(f"{have} several pages or frames, of which only the first is used; split them to use all")
    if n and (dark == n or (deep and dark >= DARK_SHARE * n)):
        which = "the images are" if dark == n else f"{dark} of {n} images that were looked at are"
        notes.append(
            f"{which} nearly black: 10- or 12-bit data saved in 16 bits use a small part of the range; "
            "scale them to 16 or 8 bits"
        )
    return notes


def _seen(file: File) -> tuple[Header, str, np.ndarray, bool]:
    """The header of an image, the hash of its pixels in its own size, a small version of it, whether it has colours."""
    with opened(file) as image:
        found, x = header(image), pixels(image, None, False)
    return found, pixel_hash(x), smaller(x), not is_colourless(x)


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
