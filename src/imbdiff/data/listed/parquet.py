"""Parquet files: tables of paths, and tables that hold the encoded images, as the Hugging Face hub's do."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imbdiff.data.decode import LARGEST, UnusableImageError
from imbdiff.data.encoded import Reader
from imbdiff.data.listed.tables import Table
from imbdiff.data.names import display_name
from imbdiff.runtime.errors import ConfigError, DataError

BATCH = 1
"""Cells of images that are in memory at a time; more would hardly be quicker, and each may have LARGEST bytes."""
LARGEST_RATIO = 100
"""A row group of more than LARGEST bytes that is packed better than so is refused: images hardly get smaller."""
LONGEST_TEXT = 4096
"""Characters of a cell of text."""
_TEXTS = 4096  # rows of text in memory at a time


class ParquetTable(Table):
    """The columns of a ``.parquet`` file; those of labels are read when they are asked for.

    Raises:
        DataError: no Parquet file, a damaged one, or one without rows.
        ConfigError: pyarrow is not installed.
    """

    def __init__(self, path: Path, where: str) -> None:
        self.where, self._path = where, path
        self._file = open_parquet(path, where)
        self._schema = self._file.schema_arrow
        self.names = tuple(self._schema.names)
        self.rows = self._file.metadata.num_rows
        if not self.rows:
            raise DataError(f"{where} has no rows", "give a table with one row for each image")

    def column(self, name: str) -> list[str]:
        import pyarrow as pa

        field = self._field(name)
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        if not (text or whole or pa.types.is_floating(kind) or pa.types.is_null(kind)):
            raise DataError(
                f"the column {name!r} of {self.where} holds {field.type}, neither text nor numbers",
                "name another column: image=NAME, label=NAME",
            )
        self._check_size(name)
        try:
            cells = list(self._cells(name, text))
        except DataError:
            raise
        except Exception as error:  # pyarrow raises anything on damaged files
            raise self._damaged(name, display_name(str(error), 200)) from error
        if len(cells) != self.rows:
            raise self._damaged(name, f"it has {len(cells)} cells in {self.rows} rows")
        ignored = {-1} if self.class_names(name) else set()  # the hub's mark for no label
        return ["" if cell is None or cell in ignored else _text(cell) for cell in cells]

    def line(self, row: int) -> str:
        return f"row {row}"

    def holds_images(self, name: str) -> bool:
        import pyarrow as pa

        def binary(kind: Any) -> bool:
            return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

        kind = self._field(name).type
        if pa.types.is_struct(kind):
            inner = [kind.field(i) for i in range(kind.num_fields)]
            return any(field.name == "bytes" and binary(field.type) for field in inner)
        return binary(kind)

    def class_names(self, name: str) -> list[str] | None:
        try:
            features = json.loads((self._schema.metadata or {})[b"huggingface"])["info"]["features"]
            found = features[name]
            names = found["names"] if found["_type"] == "ClassLabel" else None
        except (KeyError, TypeError, ValueError, RecursionError):
            return None
        return names if isinstance(names, list) and names and all(isinstance(n, str) for n in names) else None

    def _check_size(self, name: str) -> None:
        """Refuses a column by what its file says of its size, before anything is unpacked."""
        chunks = list(_chunks(self._file.metadata, name))
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        if _is_bomb(chunks) or size > 4 * LONGEST_TEXT * max(
            self.rows, 1024
        ):  # UTF-8 has at most 4 bytes for a character
            raise self._too_long(name, f"{size:,} bytes in {self.rows:,} rows")

    def _cells(self, name: str, text: bool) -> Iterator[Any]:
        """The cells of a column. Text comes as codes, so that one that is repeated is there once."""
        import pyarrow as pa
        import pyarrow.compute as pc

        file = open_parquet(self._path, self.where, [name]) if text else self._file
        for batch in file.iter_batches(_TEXTS, columns=[name], use_threads=False):
            column = batch.column(0)
            if not pa.types.is_dictionary(column.type):
                yield from column.to_pylist()
                continue
            longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
            if text and longest > 4 * LONGEST_TEXT:
                raise self._too_long(name, f"one of {longest:,} bytes")
            known = column.dictionary.to_pylist()
            yield from (None if code is None else known[code] for code in column.indices.to_pylist())

    def _too_long(self, name: str, why: str) -> DataError:
        return DataError(
            f"the column {name!r} of {self.where} holds more text than labels or paths have: {why}",
            "name another column: image=NAME, label=NAME",
        )

    def _damaged(self, name: str, why: str) -> DataError:
        return DataError(f"the column {name!r} of {self.where} is damaged: {why}", "download or write it again")

    def _field(self, name: str) -> Any:
        if self.names.count(name) > 1:
            raise DataError(f"{self.where} has {self.names.count(name)} columns called {name!r}", "rename one of them")
        return self._schema.field(name)


def _chunks(metadata: Any, name: str, groups: Sequence[int] | None = None) -> Iterator[Any]:
    """What the footer says of a column in each row group, or some; of one with parts, of each part."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    own = [i for i, path in enumerate(paths) if path == name or path.startswith(name + ".")]
    for group in range(metadata.num_row_groups) if groups is None else groups:
        row_group = metadata.row_group(group)
        yield from (row_group.column(i) for i in own)


def _is_bomb(chunks: Sequence[Any]) -> bool:
    size = sum(chunk.total_uncompressed_size for chunk in chunks)
    return size > LARGEST and size > LARGEST_RATIO * sum(chunk.total_compressed_size for chunk in chunks)


def open_parquet(path: str | Path, where: str, codes: Sequence[str] = ()) -> Any:
    """A pyarrow ParquetFile; columns of text in `codes` come as a dictionary and codes. Raises as the table."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"{where}: pyarrow, which reads Parquet, is not installed", "pip install 'imbalanced-diffusion[hf]'"
        ) from error
    try:
        # a buffer, so that a column is read in pieces; row groups may be as large as the file
        return pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False, read_dictionary=list(codes))
    except Exception as error:  # as above
        raise DataError(
            f"{where} is no readable Parquet file: {display_name(str(error), 200)}", "download or write it again"
        ) from error


@dataclass(frozen=True)
class CellReader(Reader):
    """Encoded images in cells of Parquet files; places are (number of the file, row).

    Every thread reads forward from where it last was, a few rows at a time, so memory does not grow with the file or
    its row groups.

    Attributes:
        files: (path, column, size in bytes, time of change in nanoseconds) of each file.
    """

    files: tuple[tuple[str, str, int, int], ...]

    @classmethod
    def of(cls, files: Sequence[tuple[Path, str]]) -> CellReader:
        stats = [os.stat(path) for path, _ in files]
        return cls(
            tuple((str(p), column, s.st_size, s.st_mtime_ns) for (p, column), s in zip(files, stats, strict=True))
        )

    def open(self, place: tuple[int, int]) -> BinaryIO:
        number, row = place
        key = (*self.files[number], os.getpid())
        try:
            cursor = getattr(_LOCAL, "cursor", None)
            if cursor is None or cursor.key != key:
                cursor = _LOCAL.cursor = _Cursor(key)
            cell = cursor.cell(row)
        except UnusableImageError:
            raise
        except Exception as error:  # as above
            _LOCAL.cursor = None
            raise UnusableImageError(f"cannot be read from the table: {display_name(str(error), 200)}") from error
        elsewhere = ""
        if isinstance(cell, dict):
            elsewhere = f", it names the file {display_name(str(cell['path']))}" if cell.get("path") else ""
            cell = cell.get("bytes")
        if not isinstance(cell, bytes):
            raise UnusableImageError("the cell holds no image" + elsewhere)
        return BytesIO(cell)

    def stamp(self, place: tuple[int, int]) -> str:
        number, row = place
        _, _, size, time = self.files[number]
        return f"{size} {time} {row}"


_LOCAL = threading.local()


class _Cursor:
    """A place in a column of a file, from which one reads on."""

    def __init__(self, key: tuple[str, str, int, int, int]) -> None:
        self.key = key
        path, self.column, size, time, _ = key
        found = os.stat(path)
        if (found.st_size, found.st_mtime_ns) != (size, time):
            raise UnusableImageError("the table has changed since it was opened")
        self.file = open_parquet(path, path)
        meta = self.file.metadata
        self.starts = np.cumsum([0] + [meta.row_group(i).num_rows for i in range(meta.num_row_groups)])
        self.group = -1
        self.start = self.end = 0  # rows of the batch at hand

    def cell(self, row: int) -> Any:
        import pyarrow as pa

        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        if group != self.group and _is_bomb(list(_chunks(self.file.metadata, self.column, [group]))):
            raise UnusableImageError("its row group unpacks to far more bytes than images do")
        if group != self.group or row < self.start:
            self.batches = self.file.iter_batches(BATCH, row_groups=[group], columns=[self.column], use_threads=False)
            self.group = group
            self.start = self.end = int(self.starts[group])
        while row >= self.end:
            self.batch = next(self.batches).column(0)
            self.start, self.end = self.end, self.end + len(self.batch)
        cell = self.batch[row - self.start]
        # asked before it is copied
        data = cell["bytes"] if isinstance(cell, pa.StructScalar) and cell.is_valid and "bytes" in cell else cell
        if (
            isinstance(data, pa.BinaryScalar | pa.LargeBinaryScalar)
            and data.is_valid
            and data.as_buffer().size > LARGEST
        ):
            raise UnusableImageError(f"{data.as_buffer().size:,} bytes, more than {LARGEST // 2**20} MiB")
        return cell.as_py()


def _text(cell: Any) -> str:
    if isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, float):
        return "" if cell != cell else str(int(cell)) if cell.is_integer() else str(cell)
    return str(cell)
