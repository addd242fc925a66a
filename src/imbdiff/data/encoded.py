"""Sources of encoded image files, wherever these lie: in a folder, an archive, a table, shards.

A source of this kind lists its images with labels when it is opened, and names a *reader* that gives an image's encoded
bytes. Headers, pixels, hashes and the cache of decoded images are the same for all of them, and are here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import __version__ as pillow

from imbdiff.data import cache
from imbdiff.data.decode import File, Header, Target, UnusableImageError, decode, is_dark, is_deep, read_header
from imbdiff.data.imageset import Rows
from imbdiff.data.parallel import chunks, in_chunks
from imbdiff.data.source import SMALL, Scan, Source, Survey, pixel_hash, smaller
from imbdiff.runtime.files import digest
from imbdiff.runtime.progress import Progress

GUESS_FROM = 4096  # images from which a second look at every file is worth avoiding
SAMPLE = 256  # images of a split that stand for all, until they are decoded
PROGRESS_FROM = 20_000  # images from which it is worth saying how far one is


class Reader(ABC):
    """Gives the encoded bytes of an image. It travels to worker processes, so it holds names and not open files.

    Attributes:
        streams: images come one after the other and not by their places (a network's stream, say): they are read in
            the process that asks for them, in order, and this reader does not travel.
    """

    streams = False

    @abstractmethod
    def open(self, place: Any) -> File:
        """The image at `place`: a path, or bytes that can be read and sought.

        Raises:
            UnusableImageError, OSError: it cannot be read; the message says why.
        """

    @abstractmethod
    def stamp(self, place: Any) -> str:
        """What changes when the image at `place` does, found without reading it: size and time, or a checksum."""

    def bring(self, places: Sequence[Any]) -> tuple[Reader, Sequence[Any]]:
        """The reader and the places that a worker gets for the images at `places`; called in their order."""
        return self, places


@dataclass(frozen=True)
class PathReader(Reader):
    """Files below a folder; places are paths below it with forward slashes."""

    root: Path

    def open(self, place: str) -> File:
        return self.root / place

    def stamp(self, place: str) -> str:
        try:
            found = os.stat(self.root / place)
        except OSError as error:
            return str(error.errno)
        return f"{found.st_size} {found.st_mtime_ns}"


@dataclass(frozen=True, eq=False)
class Records:
    """The images of a split, in the order of the source.

    Attributes:
        ids: (N,) stable names.
        labels: (N,) int64.
        places: (N,) what the reader opens; the ids themselves where None.
    """

    ids: Sequence[str]
    labels: np.ndarray
    places: Sequence[Any] | None = None

    @property
    def opened(self) -> Sequence[Any]:
        return self.ids if self.places is None else self.places


class EncodedSource(Source):
    """Base of the sources of encoded files. A subclass sets `reader` and `records` and calls ``Source.__init__``."""

    reader: Reader
    records: dict[str, Records]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.records)

    def labels(self, split: str = "train") -> np.ndarray:
        self.check_split(split)
        return self.records[split].labels.copy()

    def ids(self, split: str = "train") -> tuple[str, ...]:
        self.check_split(split)
        return tuple(self.records[split].ids)

    def survey(self) -> Survey:
        return self._survey

    @cached_property
    def _survey(self) -> Survey:
        headers: dict[str, Header] = {}
        bad: dict[str, str] = {}
        deep: list[Any] = []
        seen: dict[Header, Header] = {}  # the same few headers a million times
        often: Counter[Header] = Counter()
        for records in self.records.values():
            for found, place in zip(self._look(records), records.opened, strict=True):
                name, header, why = found
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
        return Survey(
            dict(sizes), dict(modes), all(header.grey for header in often), bad,
            {name: brief[header] for name, header in headers.items()},
        )  # fmt: skip

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

    def _decode(
        self,
        split: str,
        target: Target,
        grey: bool,
        store: Path | None = None,
        own: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, dict[str, str]]:
        from imbdiff.data.sources import parse  # which knows all kinds, this one among them

        records = self.records[split]
        shape = (*target.shape, 1 if grey else 3)
        places = list(records.opened)
        if store is not None:
            stamps = [self.reader.stamp(place) for place in places]
            # the place too: files of two sets may agree in names, sizes and times
            where = [parse(self.name).absolute(), self.kind, pillow]
            key = digest([cache.VERSION, *where, list(records.ids), stamps, list(shape), target.policy, *(own or ())])
            stored, bad = cache.decoded(
                store / key[:32], (len(places), *shape), cache.Decoding(self.reader, target, grey, own), places,
                records.ids,
                about={"source": str(self.name), "split": split, "policy": target.policy},
            )  # fmt: skip
            return Rows([stored], np.arange(len(places))), bad  # type: ignore[return-value]
        images = np.zeros((len(places), *shape), dtype=np.uint8)
        bad = {}
        done = 0
        decoding = cache.Decoding(self.reader, target, grey, own)
        tasks = (decoding.task(part) for part in chunks(places))
        for x, wrong in in_chunks(cache.run, tasks, 0 if self.reader.streams else len(places)):
            images[done : done + len(x)] = x
            bad |= {records.ids[done + i]: why for i, why in wrong.items()}
            done += len(x)
        return images, bad

    def _guess(self) -> tuple[dict[tuple[int, int], int], bool] | None:
        n = sum(len(records.ids) for records in self.records.values())
        if n < GUESS_FROM or self.reader.streams or "_survey" in self.__dict__:
            return None  # a header costs little, or is known
        found = []
        for records in self.records.values():
            step = max(1, len(records.ids) // SAMPLE)
            found += [header for header, _ in _headers(self.reader, records.opened[::step])]
        sizes = {header.size for header in found if header is not None}
        colour = any(header is not None and not header.grey for header in found)
        if None in found or len(sizes) != 1 or not colour or any(h is not None and is_deep(h.mode) for h in found):
            return None  # that all are grey is known only when all were looked at
        return {sizes.pop(): n}, False

    def _look(self, records: Records) -> Iterable[tuple[str, Header | None, str]]:
        """(id, header or None, why not) of every image of a split, in order."""
        return self._each(_headers, records, "headers")

    def _each(self, work: Any, records: Records, what: str, *more: Any) -> Any:
        """(id, result or None, why not) of every image of a split, in order."""
        n = len(records.ids)
        tasks = ((*self.reader.bring(part), *more) for part in chunks(records.opened))
        done = 0
        with Progress(what, n, quiet=n < PROGRESS_FROM) as bar:
            for results in in_chunks(work, tasks, 0 if self.reader.streams else n):
                for found, why in results:
                    yield records.ids[done], found, why
                    done += 1
                bar.update(done)


def _headers(reader: Reader, places: Sequence[Any]) -> list[tuple[Header | None, str]]:
    seen: dict[Header, Header] = {}  # equal ones travel back to the main process once a chunk

    def one(place: Any) -> Header:
        header = read_header(reader.open(place))
        return seen.setdefault(header, header)

    return [_attempt(lambda place=place: one(place)) for place in places]


def _scanned(reader: Reader, places: Sequence[Any], grey: bool) -> list[tuple[tuple[str, np.ndarray] | None, str]]:
    """The hash of an image's pixels in its own size, and a small version of it."""

    def one(place: Any) -> tuple[str, np.ndarray]:
        x = decode(reader.open(place), None, grey)
        return pixel_hash(x), smaller(x)

    return [_attempt(lambda place=place: one(place)) for place in places]


def _attempt(work: Any) -> tuple[Any, str]:
    try:
        return work(), ""
    except (UnusableImageError, OSError) as error:
        return None, str(error)
