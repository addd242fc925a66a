"""Lists of image files with labels: ``train.txt`` of "path label" lines, and CSV or TSV tables with a header.

train.txt?root=/data/imagenet&test=test.txt
HAM10000_metadata.csv?root=images&label=dx
"""

from __future__ import annotations

import codecs
import csv
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from imbdiff.data.arrays import ONE_CLASS
from imbdiff.data.byproducts import left_out_byproducts
from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.folder import grouped, is_image, is_inside
from imbdiff.data.grouping import FOLDER, of_values, unused_columns
from imbdiff.data.labels import check_file, read_names, several_labels
from imbdiff.data.names import counted, display_name
from imbdiff.data.reading import PathReader
from imbdiff.data.source import Records, Source
from imbdiff.data.spec import Spec, user_path
from imbdiff.data.split_names import SPELLINGS, assigned, of_cells, split_column
from imbdiff.runtime.errors import ConfigError, DataError, listing

OPTIONS = ("root", "image", "label", "split", "group", "several", "val", "test", "names")
USUAL = {
    "image": ("image", "path", "filename", "file_name", "image_id"),
    "label": ("label", "class", "dx"),
}
"""Columns that are taken where the options name none, by exactly these names."""
LONGEST_LINE = 2**20
"""Characters of one line; a file with longer ones is no list of images."""
_ENDINGS = tuple(e for ending in sorted(EXTENSIONS) for e in (ending, ending.upper()))
_OUT, _MISSING = "leads out of the root", "does not exist"

Lines = list[tuple[int, list[str]]]
"""(number of the line, its cells)."""


class Row(NamedTuple):
    """An image of a list: its path below the root, its label, its split, the line that says so, the root, its group."""

    path: str
    label: str
    split: str
    line: str
    root: Path
    group: str | None = None

    @property
    def place(self) -> str:
        return os.path.join(os.path.abspath(self.root), self.path)


def open_source(spec: Spec) -> Source:
    """Images that a list or table names, in its order.

    Options: root (folder where the paths begin; each list's own), image, label, split and group (columns), val and test
    (further lists), names (file of class names), several (what to do with images of several labels).

    Raises:
        DataError: a damaged table, no such columns, files that do not exist or are outside the root, labels that are
            missing or contradict each other; all offenders are listed.
    """
    path, given = user_path(spec.rest), spec.options
    further = {split: _near(given[split], path) for split in ("val", "test") if given.get(split)}
    if further and given.get("split"):
        raise ConfigError(f"{spec.text}: both a column and lists say what is not for training", "give one of them")
    notes: list[str] = []
    by_column = _is_table(path, given) and bool(given.get("group")) and not _is_pattern(given["group"])
    root = _near(given["root"], path) if given.get("root") else None
    rows = [
        row._replace(root=root or file.parent)
        for split, file in ({"train": path} | further).items()
        for row in _read(file, split, given, notes, strict=spec.strict, by_column=by_column, alone=not further)
    ]
    several, more = several_labels((row.label for row in rows), spec.text, given.get("several"))
    rows = _once(_found([row for row in rows if row.label not in several], spec.text, notes), spec.text, notes)
    splits, ids = {}, {}
    for split in SPELLINGS:
        own = [row for row in rows if row.split == split]
        if own:
            elsewhere = None if own[0].root == rows[0].root else [row.place for row in own]
            ids[split] = [row.path for row in own]
            together = of_values((row.group for row in own), ids[split], split) if by_column else None
            splits[split] = Records(ids[split], [row.label for row in own], elsewhere, together)
    if not by_column:
        warn = spec.strict and not any("group=" in note for note in notes)
        splits, found = grouped(splits, given.get("group"), spec.text, warn=warn)
        more += found
    every = [path for some in ids.values() for path in some]
    more += left_out_byproducts(every, spec.text, 0, keep=True)[1]
    tops = [top for some in assigned({path.partition("/")[0] for path in every}).values() for top in some]
    if list(splits) == ["train"] and len(tops) > 1 and "split" not in given:
        more.append(
            f"paths of {spec.text} begin with {', '.join(tops)}, and all are for training: a column of train, val and "
            "test (split=NAME), or lists (test=FILE), would say otherwise"
        )
    notes = list(dict.fromkeys([*notes, *more]))
    names = read_names(_near(given["names"], path)) if given.get("names") else None
    return Source(spec.text, "list", splits, PathReader(rows[0].root), names, notes, strict=spec.strict)


def _near(given: str, path: Path) -> Path:
    """A path in an option: from the working folder, as SOURCE itself, or else from the list's folder."""
    direct = user_path(given)
    own = path.parent / direct
    return own if not os.path.lexists(direct) and os.path.lexists(own) else direct


def _is_pattern(group: str) -> bool:
    """Whether the option group of a table is a pattern on paths, and not the name of a column."""
    return group == FOLDER or re.search(r"[()\[\]\\]", group) is not None


def _is_table(path: Path, given: Mapping[str, str]) -> bool:
    return path.suffix.lower() in (".csv", ".tsv") or "image" in given or "label" in given


def _read(
    file: Path, split: str, given: Mapping[str, str], notes: list[str], *, strict: bool, by_column: bool, alone: bool
) -> list[Row]:
    """The rows of one list; those of a table without a column of splits are of `split`.

    Where it is not for training no labels are needed: images of a list without any are of one class.

    Raises:
        DataError: no list, no such column, rows without a label or of no split.
    """
    if _is_table(file, given):
        names, cells = read_table(file, notes)
    else:
        names, cells = ["path", "label"], read_lines(file, notes, strict=strict)
    if not cells:
        raise DataError(f"{file} lists no image", "give a file with one line for each image")
    image = _column(file, names, cells[0][1], "image", given.get("image"))
    if not strict and "label" not in given and not any(name.lower() in USUAL["label"] for name in names):
        names, label = [*names, "label"], len(names)
        cells = [(number, [*row, ONE_CLASS]) for number, row in cells]
    else:
        label = _column(file, names, cells[0][1], "label", given.get("label"))
    by = _column(file, names, cells[0][1], "split", given["split"]) if given.get("split") else None
    group = _column(file, names, cells[0][1], "group", given["group"]) if by_column else None
    used = {image, label, by, group}
    others = {name: [row[i] for _, row in cells] for i, name in enumerate(names) if i not in used}
    if by is None and "split" not in given:
        chosen, more = split_column(others, str(file), given=not alone)
        by = None if chosen is None else names.index(chosen)
        notes += more
    if group is None and "group" not in given and strict:
        notes += unused_columns(others, len({row[label] for _, row in cells}), str(file))
    known = {} if by is None else of_cells(names[by], [row[by] for _, row in cells])
    rows, wrong = [], []
    for number, row in cells:
        own = split if by is None else known.get(row[by], "")
        if not row[label].strip():
            wrong.append(f"line {number}: no label")
        elif not own:
            wrong.append(f"line {number}: {display_name(row[by or 0])!r} is no split")
        together = None if group is None else row[group]
        rows.append(Row(row[image], row[label].strip(), own, f"{file.name} line {number}", file.parent, together))
    if wrong:
        raise DataError(
            f"{file} has {counted(len(wrong), 'row')} without a label or split:\n{listing(wrong)}",
            "complete or remove these rows; splits are train, val and test; SOURCE?split= (empty) takes all rows "
            "for training",
        )
    return rows


def read_lines(file: Path, notes: list[str], *, strict: bool = True) -> Lines:
    """Lines of a path, spaces or tabs, and a label; the label is what follows the last of these.

    Where it is not for training, a line that ends as an image's name does is a path alone.

    Raises:
        DataError: no text file, lines without a label.
    """
    cells, wrong = [], []
    for number, line in _text(file, notes, table=False):
        text = line.rstrip(" \t\r\n")
        cut = max(text.rfind(" "), text.rfind("\t"))
        if not strict and is_image(text):
            cells.append((number, [text, ONE_CLASS]))
        elif cut > 0:
            cells.append((number, [text[:cut].rstrip(" \t"), text[cut + 1 :]]))
        elif text.strip():
            wrong.append(f"line {number}: {display_name(text, 120)}")
    if wrong:
        raise DataError(
            f"{file}: {counted(len(wrong), 'line')} without a label behind the path:\n{listing(wrong)}",
            "write one line for each image: PATH LABEL; a table with a header has a name that ends with .csv or .tsv",
        )
    return cells


def read_table(file: Path, notes: list[str]) -> tuple[list[str], Lines]:
    """The columns and rows of a table; without a header, where the first line names an image, they are "1", "2" ..."""
    lines = [line for _, line in _text(file, notes, table=True)]
    first = next((line for line in lines if line.strip()), "")
    delimiter = max((",", ";", "\t"), key=first.count)
    spaced = delimiter != "\t" and first.count(delimiter) == first.count(delimiter + " ") > 0
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    names: list[str] = []
    cells: Lines = []
    ragged, end = [], 0
    try:
        for row in reader:
            number, end = end + 1, reader.line_num
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                header = not any(is_image(cell.strip()) for cell in row)
                names = [name.strip() for name in row] if header else [str(i + 1) for i in range(len(row))]
                if header:
                    continue
            if len(row) == len(names):
                cells.append((number, row))
            else:
                ragged.append(f"line {number}: {counted(len(row), 'cell')}, {display_name(delimiter.join(row), 100)}")
    except csv.Error as error:
        raise DataError(
            f"{file}, line {reader.line_num}: {error}", "repair the quotes there, or save the table again"
        ) from error
    if ragged:
        raise DataError(
            f"{file} has {counted(len(names), 'column')}, but not in these lines:\n{listing(ragged)}",
            "repair these lines; a cell with a comma or a line break in it needs quotes",
        )
    return names, cells


def _text(file: Path, notes: list[str], *, table: bool) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file, in UTF-8, or UTF-16 where its first bytes say so.

    Comments (#), of a table those before its header, are empty lines.

    Raises:
        DataError: it is no text, or in another encoding.
    """
    check_file(file)
    comments, begun = 0, False
    try:
        with open(file, "rb") as raw:
            wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        with open(file, encoding="utf-16" if wide else "utf-8-sig", newline="") as handle:
            number = 0
            while line := handle.readline(LONGEST_LINE):
                number += 1
                if "\0" in line or len(line) >= LONGEST_LINE:
                    what = "a NUL byte" if "\0" in line else f"more than {LONGEST_LINE:,} characters"
                    raise DataError(f"{file} is no text file: {what} in line {number}", "give a list or a table")
                comment = line.startswith("#") and not (table and begun)
                comments += comment
                begun = begun or not (comment or line.isspace())
                yield number, "\n" if comment else line
    except UnicodeError as error:
        raise DataError(
            f"{file} is not in UTF-8: {error}", "save it in UTF-8; where it is no text, give a list or a table"
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error
    if comments:
        notes.append(f"skipped in {file}: {counted(comments, 'line that begins', 'lines that begin')} with #")


def _column(file: Path, names: Sequence[str], first: Sequence[str], option: str, given: str | None) -> int:
    """The number of the column that an option names, or of the only one with a usual name.

    Raises:
        DataError: none or several could be meant; the columns are listed, each with its first value.
    """
    usual = (given,) if given is not None else USUAL[option]
    found = [i for i, name in enumerate(names) if name == given or (given is None and name.lower() in usual)]
    if not found and given is None and names[0] == "1":  # there is no header
        found = [i for i, cell in enumerate(first) if is_image(cell) == (option == "image")]
    if len(found) != 1:
        rows = (f"{display_name(name)} ({display_name(cell, 40)})" for name, cell in zip(names, first, strict=True))
        raise DataError(
            f"{file}: {'several columns are' if found else 'no column is'} called {' or '.join(usual)} ({option}); "
            f"its columns, each with its first value:\n{listing(rows)}",
            f"say which: {option}=NAME behind the question mark of SOURCE?{option}=NAME",
        )
    return found[0]


def _found(rows: Sequence[Row], where: str, notes: list[str]) -> list[Row]:
    """The rows with the paths below their root of the files that they name.

    Raises:
        DataError: no root; paths that lead out of the root, also through links; files that do not exist; all listed.
    """
    finders = {root: Finder(root) for root in dict.fromkeys(row.root for row in rows)}
    for root in finders:
        if not root.is_dir():
            raise DataError(f"the root {root} of {where} is no folder", "give the folder where the paths begin")
    kept, bad = [], []
    for row in rows:
        path, why = finders[row.root].find(row.path)
        kept.append(row._replace(path=path))
        if why:
            bad.append(f"{row.line}: {display_name(row.path, 200)} {why}")
    if bad:
        raise DataError(
            f"of the {counted(len(rows), 'file')} that {where} lists, {len(bad)} cannot be used below "
            f"{' and '.join(map(str, finders))}:\n"
            f"{listing(bad)}",
            "leave these lines out, or say where all images are: root=DIR behind the question mark of SOURCE?root=DIR",
        )
    added = sum(not is_image(old.path) and is_image(new.path) for old, new in zip(rows, kept, strict=True))
    if added:
        notes.append(f"an ending was added to {counted(added, 'name')} in {where}")
    return kept


class Finder:
    """Looks for files below a root. No path may lead out of it: lists come from anywhere."""

    def __init__(self, root: Path) -> None:
        self.root, self.real = os.path.abspath(root), os.path.realpath(root)
        self._parent_inside = cache(
            lambda folder: is_inside(os.path.realpath(os.path.join(self.root, folder)), self.real)
        )

    def find(self, path: str) -> tuple[str, str]:
        """(path below the root of the file that a list's path means, why it cannot be used).

        A path may be absolute if it is below the root, and have backslashes. One without the ending of an image that is
        no file gets the only usual ending with which it is one.
        """
        if ("\\" in path or path != path.strip()) and ("\0" in path or not os.path.lexists(f"{self.root}/{path}")):
            path = path.strip().replace("\\", "/")
        path = posixpath.normpath(path)
        above = next((root for root in (self.root, self.real) if os.path.isabs(path) and is_inside(path, root)), None)
        if above is not None:
            path = os.path.relpath(path, above).replace(os.sep, "/")
        if os.path.isabs(path) or path == ".." or path.startswith("../"):
            return path, _OUT
        why = self._look(path)
        if why != _MISSING or is_image(path):
            return path, why
        usable = [path + ending for ending in _ENDINGS if self._look(path + ending) == ""]
        # by number: "a.jpg" and "a.JPG" are one file where upper and lower case are the same
        found = list({os.stat(os.path.join(self.root, name)).st_ino: name for name in reversed(usable)}.values())
        if len(found) > 1:
            return path, f"exists as {', '.join(map(posixpath.basename, found))}"
        return (found[0], "") if found else (path, _MISSING)

    def _look(self, name: str) -> str:
        """Why a path below the root is no file that can be used; "" if it can."""
        path = os.path.join(self.root, name)
        try:
            if not self._parent_inside(posixpath.dirname(name)):
                return _OUT
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                if not is_inside(os.path.realpath(path), self.real):
                    return _OUT
                found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return _MISSING
        except (OSError, ValueError) as error:  # too long, no permission; a NUL byte
            return getattr(error, "strerror", None) or str(error)
        return "" if stat.S_ISREG(found.st_mode) else "is no ordinary file"


def _once(rows: Sequence[Row], where: str, notes: list[str]) -> list[Row]:
    """The rows without those that repeat another of the same split.

    Raises:
        DataError: images with several labels, all listed.
    """
    first: dict[str, Row] = {}
    kept: dict[tuple[str, str], Row] = {}
    against, repeats = [], []
    for row in rows:
        place = row.place
        known = first.setdefault(place, row)
        if known.label != row.label:
            labels = f"{display_name(known.label)!r} ({known.line}), {display_name(row.label)!r} ({row.line})"
            against.append(f"{display_name(row.path, 120)}: {labels}")
        elif kept.setdefault((row.split, place), row) is not row:
            repeats.append(display_name(row.path, 120))
    if against:
        raise DataError(
            f"{counted(len(against), 'line gives', 'lines give')} an image of {where} a second label:\n"
            f"{listing(against)}",
            "keep the label that is right",
        )
    if repeats:
        what = counted(len(repeats), "line repeats", "lines repeat")
        notes.append(f"{what} an image of {where}, which counts once: {', '.join(repeats[:3])}")
    return list(kept.values())
