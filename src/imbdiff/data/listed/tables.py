"""Tables of images and labels: lists "path label", CSV and TSV files, Parquet files. All cells are text here."""

from __future__ import annotations

import codecs
import csv
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from os.path import splitext
from pathlib import Path

from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.names import counted, display_name
from imbdiff.runtime.errors import DataError, listing

LONGEST_LINE = 2**20
"""Characters of one line; a file with longer ones is no list of images."""
DELIMITERS = (",", ";", "\t")


class Table(ABC):
    """Rows with named columns.

    Attributes:
        where: what messages call it.
        names: of the columns, in order.
        rows: their number.
        notes: what was skipped.
    """

    where: str
    names: tuple[str, ...]
    rows: int
    notes: tuple[str, ...] = ()

    @abstractmethod
    def column(self, name: str) -> Sequence[str]:
        """(rows,) the cells of a column, with their spaces; "" where there is none.

        Raises:
            DataError: two columns of this name, or cells of a kind that is neither text nor numbers.
        """

    @abstractmethod
    def line(self, row: int) -> str:
        """How messages call a row: "line 17"."""

    def holds_images(self, name: str) -> bool:
        """Whether the cells of a column are encoded images, not paths."""
        return False

    def class_names(self, name: str) -> list[str] | None:
        """The names of the classes that the integers of a column stand for, where the table says so."""
        return None


class TextTable(Table):
    """A table out of a text file.

    Args:
        where: what messages call it.
        names: of the columns.
        cells: (rows,) of (columns,) cells.
        lines: (rows,) line of each row in the file, from 1.
    """

    def __init__(
        self, where: str, names: Sequence[str], cells: list[list[str]], lines: list[int], notes: Sequence[str] = ()
    ) -> None:
        self.where, self.names, self.rows, self.notes = where, tuple(names), len(cells), tuple(notes)
        self._cells, self._lines = cells, lines

    def column(self, name: str) -> list[str]:
        if self.names.count(name) > 1:
            raise DataError(f"{self.where} has {self.names.count(name)} columns called {name!r}", "rename one of them")
        i = self.names.index(name)
        return [cells[i] for cells in self._cells]

    def line(self, row: int) -> str:
        return f"line {self._lines[row]}"


def read_table(path: Path, where: str, columns: bool) -> Table:
    """Reads a table, by the ending of its name.

    Args:
        columns: the user named columns, so that a ``.txt`` file has a header too.

    Raises:
        DataError: it does not exist, is damaged, empty or of another kind.
        ConfigError: what reads Parquet is not installed.
    """
    check_file(path, where)
    ending = path.suffix.lower()
    if ending == ".parquet":
        from imbdiff.data.listed.parquet import ParquetTable

        return ParquetTable(path, where)
    table = read_csv(path, where) if ending in (".csv", ".tsv") or columns else read_list(path, where)
    if not table.rows:
        raise DataError(f"{where} lists no image", "give a file with one line for each image")
    return table


def check_file(path: Path, where: str) -> None:
    """Refuses what is no ordinary file that can be read; opening a pipe would wait for ever."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{where} cannot be opened: {getattr(error, 'strerror', None) or error}", "check the name and permissions"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{where} is no file", "give the path of a file")


def read_list(path: Path, where: str) -> TextTable:
    """Lines of a path, spaces or tabs, and a label; the label is what follows the last of these."""
    cells, lines, wrong = [], [], []
    comments = 0
    for number, line in enumerate(_lines(path, where, None), 1):
        text = line.rstrip(" \t\r\n")
        if not text.strip():
            continue
        if text.startswith("#"):
            comments += 1
            continue
        cut = max(text.rfind(" "), text.rfind("\t"))
        if cut <= 0:
            wrong.append(f"line {number}: {display_name(text, 120)}")
            continue
        cells.append([text[:cut].rstrip(" \t"), text[cut + 1 :]])
        lines.append(number)
    if wrong:
        none = "no line" if not cells else counted(len(wrong), "line")
        have = "has" if not cells else "without"
        raise DataError(
            f"{where}: {none} {have} a label behind the path:\n{listing(wrong)}",
            "write one line for each image: PATH LABEL; a table with a header has a name that ends with .csv or .tsv",
        )
    return TextTable(where, ("path", "label"), cells, lines, _comment_note(comments, where))


def read_csv(path: Path, where: str) -> TextTable:
    """A table with a header, or without one where its first line names an image: then columns are "1", "2" ..."""
    raw = _lines(path, where, "")
    comments, before, first = 0, 0, ""
    for line in raw:
        before += 1
        if line.startswith("#"):
            comments += 1
        elif line.strip():
            first = line
            break
    delimiter = max(DELIMITERS, key=lambda d: _cells_of(first, d))
    spaced = delimiter != "\t" and first.count(delimiter) == first.count(delimiter + " ") > 0
    reader = csv.reader(_chain(first, raw), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    names: list[str] = []
    cells: list[list[str]] = []
    lines, ragged = [], []
    end = before - 1
    try:
        for row in reader:
            start, end = end + 1, before - 1 + reader.line_num
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                names = [name.strip() for name in row]
                if not any(is_image_name(name) for name in names):
                    continue
                names = [str(i + 1) for i in range(len(row))]
            if len(row) == len(names):
                cells.append(row)
                lines.append(start)
            elif row[0].startswith("#"):
                comments += 1
            else:
                ragged.append(f"line {start}: {counted(len(row), 'cell')}, {display_name(delimiter.join(row), 100)}")
    except csv.Error as error:
        raise DataError(
            f"{where}, line {before - 1 + reader.line_num}: {error}", "repair the quotes there, or save the table again"
        ) from error
    if ragged:
        raise DataError(
            f"{where} has {counted(len(names), 'column')}, but not in these lines:\n{listing(ragged)}",
            "repair these lines; a cell with a comma or a line break in it needs quotes",
        )
    return TextTable(where, names, cells, lines, _comment_note(comments, where))


def is_image_name(text: str) -> bool:
    return splitext(text)[1].lower() in EXTENSIONS


def repeated(names: Iterable[str]) -> list[str]:
    """Those that occur more than once."""
    return sorted(name for name, n in Counter(names).items() if n > 1)


def _cells_of(line: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error:  # a cell beyond the limit; the whole table is read with the same limit, and says so
        return 0


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _comment_note(n: int, where: str) -> tuple[str, ...]:
    return (f"skipped in {where}: {counted(n, 'line that begins', 'lines that begin')} with #",) if n else ()


def _lines(path: Path, where: str, newline: str | None) -> Iterator[str]:
    """The lines of a text file; UTF-8, or UTF-16 where its first bytes say so.

    Raises:
        DataError: it is no text, or in another encoding.
    """
    with open(path, "rb") as raw:
        start = raw.read(4)
    wide = start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        with open(path, encoding="utf-16" if wide else "utf-8-sig", newline=newline) as handle:
            number = 0
            while line := handle.readline(LONGEST_LINE):
                number += 1
                if "\0" in line or len(line) >= LONGEST_LINE:
                    what = "a NUL byte" if "\0" in line else f"more than {LONGEST_LINE:,} characters"
                    raise DataError(f"{where} is no text file: {what} in line {number}", "give a list or a table")
                yield line
    except UnicodeError as error:
        raise DataError(
            f"{where} is not in UTF-8: {error}", "save it in UTF-8; where it is no text, give a list or a table"
        ) from error
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}", "check its permissions") from error
