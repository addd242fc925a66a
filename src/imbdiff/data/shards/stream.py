"""Sources that are too large or too far away to be read at random: passed over once to learn what is in them, and once
more to decode what is missing in the cache.

The first pass keeps ids, labels and the headers of the images in an index, so that later starts need neither network
nor the images. The second reads the images in order, in the process that asks for them, and hands their bytes to
threads that decode; chunks that the cache holds are skipped.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imbdiff.data.cache import default_folder
from imbdiff.data.decode import LARGEST, Header, Size, UnusableImageError
from imbdiff.data.encoded import EncodedSource, Reader, Records
from imbdiff.data.imageset import ImageSet
from imbdiff.data.source import Scan, Survey


class BytesReader(Reader):
    """Images whose bytes are here already; a place is those bytes, or why there are none."""

    def open(self, place: bytes | str) -> BinaryIO:
        if isinstance(place, str):
            raise UnusableImageError(place)
        return BytesIO(place)

    def stamp(self, place: Any) -> str:
        raise NotImplementedError("bytes are not cached by themselves")


class StreamReader(Reader):
    """Images that come one after the other. One is read at a time, also where several threads ask."""

    streams = True

    def __init__(self) -> None:
        self._one = threading.Lock()

    @abstractmethod
    def fetch(self, place: Any) -> bytes:
        """The bytes of an image; quick for places that lie behind the last one, in their order.

        Raises:
            UnusableImageError: this image cannot be read.
            DataError: nothing more can be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of connections and buffers; a later fetch opens what it needs anew."""

    def open(self, place: Any) -> BinaryIO:
        return BytesIO(self._fetched(place))

    def _fetched(self, place: Any) -> bytes:
        with self._one:
            data = self.fetch(place)
        if len(data) > LARGEST:
            raise UnusableImageError(f"{len(data):,} bytes, more than {LARGEST // 2**20} MiB")
        return data

    def bring(self, places: Sequence[Any]) -> tuple[Reader, Sequence[Any]]:
        return BytesReader(), [self._attempt(place) for place in places]

    def _attempt(self, place: Any) -> bytes | str:
        try:
            return self._fetched(place)
        except UnusableImageError as error:
            return str(error)


class StreamedSource(EncodedSource):
    """Base of streamed sources. A subclass sets `reader`, `records` and `found`.

    Attributes:
        found: {split: for each image its header, or why it cannot be used}, from the first pass.
    """

    reader: StreamReader
    found: Mapping[str, Sequence[Header | str]]

    def survey(self) -> Survey:
        try:
            return super().survey()
        finally:
            self.reader.close()  # here and below: no connection stays open between two passes

    def scan(self, split: str) -> Scan:
        try:
            return super().scan(split)
        finally:
            self.reader.close()

    def _decode(self, *args: Any, **more: Any) -> tuple[np.ndarray, dict[str, str]]:
        try:
            return super()._decode(*args, **more)
        finally:
            self.reader.close()

    def read_all(
        self,
        size: Size | None = None,
        resize: str = "crop",
        splits: Sequence[str] | None = None,
        cache: str | Path | None = None,
    ) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
        """As for every source, but None is the user's cache folder for small sets too, which would be streamed at
        every start otherwise."""
        return super().read_all(size, resize, splits, default_folder() if cache is None else cache)

    def _look(self, records: Records) -> Iterable[tuple[str, Header | None, str]]:
        split = next(split for split, own in self.records.items() if own is records)
        for name, header in zip(records.ids, self.found[split], strict=True):
            yield (name, None, header) if isinstance(header, str) else (name, header, "")


def unpack_headers(table: Sequence[Sequence[Any]], header: Sequence[int | str]) -> list[Header | str]:
    """Headers as an index holds them: distinct [height, width, mode, grey], and a number or why not for each image."""
    distinct = [Header((h, w), mode, grey) for h, w, mode, grey in table]
    return [distinct[number] if isinstance(number, int) else number for number in header]
