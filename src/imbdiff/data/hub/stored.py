"""Hugging Face data sets on this disk: images as bytes in memory-mapped Arrow files, or as files that these name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imbdiff.data.decode import File
from imbdiff.data.encoded import EncodedSource, PathReader, Reader, Records
from imbdiff.data.hub import columns as hub_columns
from imbdiff.data.hub.opening import Wanted, class_labels, columns_of, encoded_only, image_bytes, load_sets
from imbdiff.data.listed.lists import apart
from imbdiff.data.names import counted
from imbdiff.runtime.errors import DataError, listing
from imbdiff.runtime.files import digest


class HubSource(EncodedSource):
    """A Hugging Face data set on this disk, or downloaded to it by the library.

    Raises:
        DataError: it cannot be loaded; columns or splits that cannot be told apart; images without labels; files that
            lie outside the set.
    """

    kind = "hf"

    def __init__(self, wanted: Wanted, flippable: bool = False) -> None:
        where = wanted.text
        sets = load_sets(wanted)
        chosen, notes = hub_columns.which_splits(list(sets), wanted.splits, where)
        columns = columns_of(sets[chosen["train"]].features, wanted)
        for ours, theirs in chosen.items():
            if columns_of(sets[theirs].features, wanted) != columns:
                raise DataError(f"{where}: the columns or class names of {ours} and train differ", "make them the same")
        used = {ours: encoded_only(sets[theirs], columns) for ours, theirs in chosen.items()}
        values = {ours: _column(x, columns.label) for ours, x in used.items()}
        names, labels, more = class_labels(values, columns.names, wanted)
        self.records, readers = {}, {}
        for ours, y in labels.items():
            readers[ours], self.records[ours] = _images(used[ours], columns.image, ours, y, wanted)
        # paths of splits may begin at different folders
        files = {
            ours: [(getattr(readers[ours], "root", ours), place) for _, place in records.opened]
            for ours, records in self.records.items()
        }
        ids = apart({ours: records.ids for ours, records in self.records.items()}, files)
        self.records = {ours: replace(records, ids=ids[ours]) for ours, records in self.records.items()}
        self.reader = SplitReader(readers)
        super().__init__(where, names, flippable, (*notes, *more))


def _column(dataset: Any, name: str) -> list[int | str | None]:
    return dataset.select_columns([name]).with_format("arrow")[:][name].to_pylist()


def _images(dataset: Any, column: str, split: str, labels: np.ndarray, wanted: Wanted) -> tuple[Reader, Records]:
    """Where the images of a split are: in files, if all of them are, otherwise in the rows."""
    paths = _paths(dataset, column)
    if paths is None:
        rows = range(len(labels))
        places = [(split, i) for i in rows]
        return ArrowReader(dataset.select_columns([column]), column, _state(dataset)), Records(
            [f"{split}/{i}" for i in rows], labels, places
        )
    root = _root(paths, wanted)
    inside = [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
    return PathReader(Path(root)), Records(inside, labels, [(split, path) for path in inside])


def _paths(dataset: Any, column: str) -> list[str] | None:
    """The paths of all images, where none of them is in the table itself."""
    import pyarrow
    import pyarrow.compute

    kept = dataset.select_columns([column])
    if kept._indices is not None or not pyarrow.types.is_struct(kept.data.schema.field(column).type):
        return None
    cells = kept.data.column(column)
    if pyarrow.compute.struct_field(cells, "bytes").null_count < len(cells):
        return None
    paths = pyarrow.compute.struct_field(cells, "path").to_pylist()
    return None if any(path is None for path in paths) else paths


def _root(paths: Sequence[str], wanted: Wanted) -> str:
    """The folder that all images lie in; refuses those that a table names elsewhere on this machine."""
    import datasets
    from huggingface_hub import constants

    allowed = [wanted.path] if wanted.path else [datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE]
    roots = [Path(folder).resolve() for folder in allowed]
    outside = [path for path in paths if not any(Path(path).resolve().is_relative_to(root) for root in roots)]
    if outside:
        raise DataError(
            f"{wanted.text}: {counted(len(outside), 'image lies', 'images lie')} outside the data set:\n"
            f"{listing(outside)}",
            "put these files below its folder, or write the set with the images inside (to_parquet)",
        )
    if wanted.path:
        return str(wanted.path)
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def _state(dataset: Any) -> str:
    """Changes when the Arrow files of a set do."""
    files = []
    for name in sorted(entry["filename"] for entry in dataset.cache_files):
        found = os.stat(name)
        files.append([name, found.st_size, found.st_mtime_ns])
    return digest([dataset._fingerprint, files])[:32]


@dataclass(frozen=True, eq=False)
class ArrowReader(Reader):
    """Images in a column of bytes. The data set travels as the names of its Arrow files."""

    dataset: Any
    column: str
    state: str

    def open(self, place: int) -> BinaryIO:
        return BytesIO(image_bytes(self.dataset[place][self.column]))

    def stamp(self, place: int) -> str:
        return f"{self.state} {place}"


@dataclass(frozen=True, eq=False)
class SplitReader(Reader):
    """A reader for each split; a place is (split, the place for its reader)."""

    readers: Mapping[str, Reader]

    def open(self, place: tuple[str, Any]) -> File:
        return self.readers[place[0]].open(place[1])

    def stamp(self, place: tuple[str, Any]) -> str:
        return self.readers[place[0]].stamp(place[1])
