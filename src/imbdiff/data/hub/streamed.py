"""Hugging Face data sets that are streamed: ``hf:ORG/NAME?streaming=1``. Nothing but decoded images is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from imbdiff.data.decode import LARGEST, UnusableImageError, read_header
from imbdiff.data.encoded import Records
from imbdiff.data.hub import columns as hub_columns
from imbdiff.data.hub.opening import Wanted, class_labels, columns_of, encoded_only, first_line, image_bytes, load_sets
from imbdiff.data.shards import indexes
from imbdiff.data.shards.stream import StreamedSource, StreamReader, unpack_headers
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.files import digest
from imbdiff.runtime.progress import Progress

VERSION = 1
_SAY = 1000


class HubStream(StreamedSource):
    """A streamed Hugging Face data set: passed over once for labels and headers, and once to decode.

    Raises:
        DataError: what :class:`~imbdiff.data.hub.stored.HubSource` refuses; a connection that breaks.
    """

    kind = "hf stream"

    def __init__(self, wanted: Wanted, flippable: bool = False) -> None:
        key = ["hf", VERSION, _identity(wanted)]
        index = indexes.recall(key) or indexes.keep(key, _pass(wanted))
        values = {split: found["labels"] for split, found in index["splits"].items()}
        names, labels, notes = class_labels(values, index["names"], wanted)
        self.records = {
            split: Records([f"{split}/{i}" for i in range(len(y))], y, [(split, i) for i in range(len(y))])
            for split, y in labels.items()
        }
        self.found = {
            split: unpack_headers(index["splits"][split]["headers"], index["splits"][split]["header"])
            for split in labels
        }
        self.reader = HubReader(wanted, digest(index)[:32], indexes.place_of(key))
        super().__init__(wanted.text, names, flippable, (*index["notes"], *notes))


class HubReader(StreamReader):
    """Rows of a streamed set; a place is (split, row). The index of a set that has changed is removed."""

    def __init__(self, wanted: Wanted, state: str, index: Path) -> None:
        super().__init__()
        self.wanted, self.state, self.index = wanted, state, index
        self._opened: _Opened | None = None
        self._rows: Iterator[Any] = iter(())
        self._split, self._next = "", 0

    def fetch(self, place: tuple[str, int]) -> bytes:
        split, row = place
        if split != self._split or row < self._next:
            self._opened = self._opened or _Opened(self.wanted)
            self._rows = self._opened.rows(split, row)
            self._split, self._next = split, row
        while True:
            cell = next(self._rows, None)
            if cell is None:
                self.index.unlink(missing_ok=True)
                raise DataError(
                    f"{self.wanted.text} has fewer images in {split} than it had when it was first passed over",
                    "start again: it is passed over anew; ?revision=COMMIT keeps a set of the hub as it is",
                )
            self._next += 1
            if self._next > row:
                return _bytes(cell[0], self.wanted)

    def close(self) -> None:
        with self._one:
            self._rows, self._split, self._next = iter(()), "", 0

    def stamp(self, place: tuple[str, int]) -> str:
        return f"{self.state} {place[0]} {place[1]}"


class _Opened:
    """A streamed set, ready to be read."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        sets = load_sets(wanted, streaming=True)
        self.splits, self.notes = hub_columns.which_splits(list(sets), wanted.splits, wanted.text)
        features = sets[self.splits["train"]].features
        if features is None:
            raise DataError(f"{wanted.text}: the types of its columns are not known", "leave streaming=1 out")
        self.columns = columns_of(features, wanted)
        self.sets = {ours: encoded_only(sets[theirs], self.columns) for ours, theirs in self.splits.items()}

    def rows(self, split: str, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """(image, label) of the rows of a split from `start` on."""
        dataset = self.sets[split]
        rows = iter(dataset.skip(start) if start else dataset)
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # the network's, the library's, pyarrow's
                raise DataError(
                    f"{self.wanted.text}: reading {split} failed: {first_line(error)}",
                    "check the network and start again: what was decoded is kept",
                ) from error
            if row is None:
                return
            yield row[self.columns.image], row[self.columns.label]


def _pass(wanted: Wanted) -> dict[str, Any]:
    """Labels and headers of all splits."""
    opened = _Opened(wanted)
    splits: dict[str, Any] = {}
    for split in opened.splits:
        labels: list[Any] = []
        header: list[int | str] = []
        headers: dict[tuple[Any, ...], int] = {}
        with Progress(f"index {split}", 0) as bar:
            for cell, label in opened.rows(split):
                labels.append(label)
                try:
                    seen = read_header(BytesIO(_bytes(cell, wanted)))
                except UnusableImageError as error:
                    header.append(str(error))
                else:
                    header.append(headers.setdefault((*seen.size, seen.mode, seen.grey), len(headers)))
                if len(labels) % _SAY == 0:
                    bar.total = len(labels)
                    bar.update(len(labels))
        splits[split] = {"labels": labels, "headers": [list(h) for h in headers], "header": header}
    names = opened.columns.names
    return {"splits": splits, "names": None if names is None else list(names), "notes": list(opened.notes)}


def _bytes(cell: Any, wanted: Wanted) -> bytes:
    """The bytes of an image, in the table or in a file of the same set that it names."""
    path = cell.get("path") if isinstance(cell, dict) and cell.get("bytes") is None else None
    if path is None:
        return image_bytes(cell)
    if wanted.path is not None:
        try:
            inside = Path(path).resolve().is_relative_to(wanted.path.resolve())
            if inside and os.path.exists(path) and not os.path.isfile(path):
                raise UnusableImageError(f"{path!r} is no ordinary file")
            if inside and os.path.getsize(path) > LARGEST:
                raise UnusableImageError(f"{path!r} has more than {LARGEST // 2**20} MiB")
        except FileNotFoundError:
            raise UnusableImageError(f"{path!r} does not exist") from None
        except (OSError, ValueError, RuntimeError) as error:  # no permission, a NUL byte, links in a circle
            raise UnusableImageError(f"{path!r} cannot be read: {first_line(error)}") from error
    else:  # hf://datasets/OWNER/NAME@REVISION/cat/1.jpg, or zip://cat/1.jpg::hf://...
        archive, mark, outer = path.rpartition("::")
        inside = outer.startswith(f"hf://datasets/{wanted.repository}@")
        inside = inside and (not mark or (archive.startswith("zip://") and "::" not in archive))
    if not inside:
        raise UnusableImageError(f"{path!r} lies outside the data set")
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise UnusableImageError(f"{path!r} does not exist") from None
    except OSError as error:
        if wanted.path is None and not isinstance(error, IsADirectoryError | NotADirectoryError):
            # the network's, which must not stay in the index as the fault of this image
            raise DataError(
                f"{wanted.text}: reading {path!r} failed: {first_line(error)}",
                "check the network and start again: what was decoded is kept",
            ) from error
        raise UnusableImageError(f"{path!r} cannot be read: {first_line(error)}") from error


def _identity(wanted: Wanted) -> Any:
    """What the contents depend on; for a folder its files, for the hub what was asked for."""
    files: list[Any] = []
    if wanted.path is not None:
        for folder, _, names in os.walk(wanted.path):
            for name in sorted(names):
                found = os.stat(os.path.join(folder, name))
                files.append([os.path.join(folder, name), found.st_size, found.st_mtime_ns])
    asked = [wanted.repository, wanted.config, wanted.revision, wanted.image, wanted.label, dict(wanted.splits)]
    return [asked, sorted(files)]
