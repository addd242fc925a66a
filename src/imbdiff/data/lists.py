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
from dataclasses import dataclass
from functools import cache
from os.path import splitext
from pathlib import Path

from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.folder import is_inside
from imbdiff.data.labels import check_file, encode, read_names
from imbdiff.data.names import counted, display_name
from imbdiff.data.reading import PathReader
from imbdiff.data.source import EncodedSource, Records
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import ConfigError, DataError, listing

OPTIONS = ("root", "image", "label", "split", "val", "test", "names")
IMAGE = ("image", "path", "filename", "file_name", "image_id")
LABEL = ("label", "class", "dx")
"""Columns that are taken where the options name none, by exactly these names."""
SPLIT = "split"
SPELLINGS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""{how a split is written: split}."""
LONGEST_LINE = 2**20
"""Characters of one line; a file with longer ones is no list of images."""
_USUAL = tuple(e for ending in sorted(EXTENSIONS) for e in (ending, ending.upper()))


def open_source(spec: Spec, flippable: bool) -> EncodedSource:
    options = {name: spec.take(name) for name in OPTIONS}
    spec.finish(OPTIONS)
    return ListSource(user_path(spec.rest), options, spec.text, flippable)


@dataclass
class Row:
    """An image of a list: its path as it is written, its label, its split, and the file and line that say so."""

    path: str
    label: str
    split: str
    line: str
    id: str = ""
    place: str = ""


class ListSource(EncodedSource):
    """Images that a list or table names, in its order.

    Args:
        path: the list of the training images, or of all.
        options: {name: value}: root (folder where the paths begin; the list's own), image, label and split (columns),
            val and test (further lists), names (file of class names).
        name: what messages call the source.
        flippable: images may be mirrored.

    Raises:
        DataError: a damaged table, no such columns, files that do not exist or are outside the root, labels that are
            missing or contradict each other; all offenders are listed.
        ConfigError: options that do not fit each other or the table.
    """

    kind = "list"

    def __init__(
        self, path: Path, options: Mapping[str, str | None], name: str | None = None, flippable: bool = False
    ) -> None:
        where = name or str(path)
        given = dict.fromkeys(OPTIONS) | dict(options)
        further = {split: file for split in ("val", "test") if (file := given[split])}
        if further and given["split"]:
            raise ConfigError(
                f"split={given['split']} and {', '.join(f'{s}={f}' for s, f in further.items())} both say what is not "
                "for training",
                "give a column or further lists",
            )
        notes: list[str] = []
        files = {"train": path} | {split: _near(file, path) for split, file in further.items()}
        first = _near(given["root"], path) if given["root"] else path.parent
        kept: dict[str, list[Row]] = {}
        for split, file in files.items():
            table = _read(file, split, given, bool(further), notes)
            root = first if given["root"] else file.parent
            _find(table, root, str(file), notes)
            for row in table:
                row.place = row.id if root == first else os.path.abspath(root / row.id)
                kept.setdefault(row.split, []).append(row)
        kept = _once({split: kept[split] for split in ("train", "val", "test") if split in kept}, where, notes)
        if "train" not in kept:
            raise DataError(f"{where}: no row is for training", "give training images, or another column: split=NAME")
        names = read_names(_near(given["names"], path)) if given["names"] else None
        class_names, labels = encode({split: [row.label for row in rows] for split, rows in kept.items()}, names, where)
        _tell_apart(kept)
        records = {
            split: Records([row.id for row in rows], labels[split], [row.place for row in rows])
            for split, rows in kept.items()
        }
        super().__init__(where, class_names, records, PathReader(first), flippable, notes)


def _near(given: str, path: Path) -> Path:
    """A path in an option: from the working folder, as SOURCE itself, or else from the list's folder."""
    direct = user_path(given)
    beside = path.parent / direct
    return beside if not os.path.lexists(direct) and os.path.lexists(beside) else direct


def _read(file: Path, split: str, given: Mapping[str, str | None], one_split: bool, notes: list[str]) -> list[Row]:
    """The rows of one list.

    Raises:
        DataError: no list, rows without a label or of no split.
        ConfigError: no such column.
    """
    check_file(file)
    header = file.suffix.lower() in (".csv", ".tsv") or given["image"] or given["label"]
    names, cells = _table(file, notes) if header else _lines_of(file, notes)
    if not cells:
        raise DataError(f"{file} lists no image", "give a file with one line for each image")
    image = _column(file, names, cells[0][1], "image", given["image"], IMAGE)
    label = _column(file, names, cells[0][1], "label", given["label"], LABEL)
    by = None
    if not one_split and given["split"] != "":
        wanted = given["split"] or SPLIT
        if wanted in names or given["split"]:
            by = _column(file, names, cells[0][1], "split", given["split"], (SPLIT,))
            if given["split"] is None:
                notes.append(
                    f"the splits are those of the column {SPLIT!r} of {file}; split= (empty) trains on all rows"
                )
    rows, empty, strange = [], [], []
    for line, row in cells:
        said = split if by is None else SPELLINGS.get(row[by].strip().lower(), "")
        if not row[label].strip():
            empty.append(f"line {line}")
        if by is not None and not said:
            strange.append(f"line {line}: {display_name(row[by])!r}")
        rows.append(Row(row[image], row[label].strip(), said, f"{file.name} line {line}"))
    if empty:
        raise DataError(
            f"{file} has {counted(len(empty), 'row')} without a label:\n{listing(empty)}",
            "label these images, or leave them out",
        )
    if strange:
        raise DataError(
            f"{file}: {counted(len(strange), 'row')} of which {names[by or 0]!r} is no split:\n{listing(strange)}",
            f"write {', '.join(SPELLINGS)}; split= (empty) uses all rows for training",
        )
    return rows


def _lines_of(file: Path, notes: list[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Lines of a path, spaces or tabs, and a label; the label is what follows the last of these."""
    cells, wrong, comments = [], [], 0
    for number, line in enumerate(_text(file, None), 1):
        text = line.rstrip(" \t\r\n")
        cut = max(text.rfind(" "), text.rfind("\t"))
        if text.startswith("#"):
            comments += 1
        elif cut > 0 and text.strip():
            cells.append((number, [text[:cut].rstrip(" \t"), text[cut + 1 :]]))
        elif text.strip():
            wrong.append(f"line {number}: {display_name(text, 120)}")
    if wrong:
        raise DataError(
            f"{file}: {counted(len(wrong), 'line')} without a label behind the path:\n{listing(wrong)}",
            "write one line for each image: PATH LABEL; a table with a header has a name that ends with .csv or .tsv",
        )
    _note_comments(comments, file, notes)
    return ["path", "label"], cells


def _table(file: Path, notes: list[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Columns, and (line, cells) of every row; without a header, where the first line names an image, "1", "2" ..."""
    lines = [(number, line) for number, line in enumerate(_text(file, ""), 1)]
    start = next((i for i, (_, line) in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    first = lines[start][1] if start < len(lines) else ""
    delimiter = max((",", ";", "\t"), key=first.count)
    spaced = delimiter != "\t" and first.count(delimiter) == first.count(delimiter + " ") > 0
    reader = csv.reader((line for _, line in lines[start:]), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    names: list[str] = []
    cells: list[tuple[int, list[str]]] = []
    ragged, comments, end = [], sum(line.startswith("#") for _, line in lines[:start]), start
    try:
        for row in reader:
            number, end = end + 1, start + reader.line_num
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                names = [name.strip() for name in row]
                if not any(_named_as_image(name) for name in names):
                    continue
                names = [str(i + 1) for i in range(len(row))]
            if len(row) == len(names):
                cells.append((number, row))
            elif row[0].startswith("#"):
                comments += 1
            else:
                ragged.append(f"line {number}: {counted(len(row), 'cell')}, {display_name(delimiter.join(row), 100)}")
    except csv.Error as error:
        raise DataError(
            f"{file}, line {start + reader.line_num}: {error}", "repair the quotes there, or save the table again"
        ) from error
    if ragged:
        raise DataError(
            f"{file} has {counted(len(names), 'column')}, but not in these lines:\n{listing(ragged)}",
            "repair these lines; a cell with a comma or a line break in it needs quotes",
        )
    _note_comments(comments, file, notes)
    return names, cells


def _text(file: Path, newline: str | None) -> Iterator[str]:
    """The lines of a text file; UTF-8, or UTF-16 where its first bytes say so.

    Raises:
        DataError: it is no text, or in another encoding.
    """
    try:
        with open(file, "rb") as raw:
            wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        with open(file, encoding="utf-16" if wide else "utf-8-sig", newline=newline) as handle:
            number = 0
            while line := handle.readline(LONGEST_LINE):
                number += 1
                if "\0" in line or len(line) >= LONGEST_LINE:
                    what = "a NUL byte" if "\0" in line else f"more than {LONGEST_LINE:,} characters"
                    raise DataError(f"{file} is no text file: {what} in line {number}", "give a list or a table")
                yield line
    except UnicodeError as error:
        raise DataError(
            f"{file} is not in UTF-8: {error}", "save it in UTF-8; where it is no text, give a list or a table"
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error


def _column(
    file: Path, names: Sequence[str], first: Sequence[str], option: str, given: str | None, usual: Sequence[str]
) -> int:
    """The number of the column that an option names, or of the only one with a usual name.

    Raises:
        ConfigError: no column of the given name.
        DataError: none or several could be meant; the columns are listed, each with its first value.
    """
    columns = listing(
        f"{display_name(name)} ({display_name(cell, 40)})" for name, cell in zip(names, first, strict=True)
    )
    if given is not None and given not in names:
        raise ConfigError(f"{file} has no column {given!r} ({option}=):\n{columns}", "name one of these")
    found = [i for i, name in enumerate(names) if (name == given if given is not None else name.lower() in usual)]
    if not found and names == [str(i + 1) for i in range(len(names))]:  # there is no header
        found = [i for i, cell in enumerate(first) if _named_as_image(cell) == (option == "image")]
    if len(found) != 1:
        several = f"several columns of {file} could be the {option}s: {', '.join(repr(names[i]) for i in found)}"
        none = f"no column of {file} is called {' or '.join(usual)}"
        raise DataError(
            f"{several if found else none}; its columns, each with its first value:\n{columns}",
            f"say which: {option}=NAME behind the question mark of SOURCE?{option}=NAME",
        )
    return found[0]


def _note_comments(n: int, file: Path, notes: list[str]) -> None:
    if n:
        notes.append(f"skipped in {file}: {counted(n, 'line that begins', 'lines that begin')} with #")


def _named_as_image(text: str) -> bool:
    return splitext(text)[1].lower() in EXTENSIONS


def _find(rows: Sequence[Row], root: Path, where: str, notes: list[str]) -> None:
    """Sets the id of every row: the path below the root of the file that it names.

    A path may be absolute if it is below the root. One without the ending of an image that is no file gets the only
    usual ending with which it is one.

    Raises:
        DataError: no root; paths that lead out of the root, also through links; files that do not exist; all listed.
    """
    if not root.is_dir():
        raise DataError(f"the root {root} of {where} is no folder", "give the folder where the paths begin")
    finder = _Finder(root)
    out, missing, wrong, added = [], [], [], 0
    for row in rows:
        said = f"{row.line}: {display_name(row.path, 200)}"
        name = finder.below_root(row.path)
        row.id, why = (name, _OUT) if name is None else finder.file(name)  # type: ignore[assignment]
        added += why == "" and row.id != name
        if why == _OUT:
            out.append(said)
        elif why == _MISSING:
            missing.append(said)
        elif why:
            wrong.append(f"{said}: {why}")
    if out:
        raise DataError(
            f"{where}: {counted(len(out), 'path leads', 'paths lead')} out of the root {root}:\n{listing(out)}",
            "give a root that holds all images: root=DIR behind the question mark of SOURCE?root=DIR",
        )
    if missing:
        some = "add these files, or leave their lines out"
        none = "say where the images are: root=DIR behind the question mark of SOURCE?root=DIR"
        raise DataError(
            f"of the {counted(len(rows), 'file')} that {where} lists, {len(missing)} cannot be found below {root}:\n"
            f"{listing(missing)}",
            some if 2 * len(missing) < len(rows) else none,
        )
    if wrong:
        raise DataError(
            f"{counted(len(wrong), 'file')} of {where} cannot be used:\n{listing(wrong)}",
            "replace them, or leave their lines out",
        )
    if added:
        notes.append(f"an ending was added to {counted(added, 'name')} in {where}")


_OUT, _MISSING = "leads out of the root", "does not exist"


class _Finder:
    """Looks for files below a root. No path may lead out of it: lists come from anywhere."""

    def __init__(self, root: Path) -> None:
        self.root, self.real = os.path.abspath(root), os.path.realpath(root)
        self._parent_inside = cache(
            lambda folder: is_inside(os.path.realpath(os.path.join(self.root, folder)), self.real)
        )

    def below_root(self, path: str) -> str | None:
        """A path below the root with forward slashes; None if it leaves the root."""
        if ("\\" in path or path != path.strip()) and not ("\0" not in path and os.path.lexists(f"{self.root}/{path}")):
            path = path.strip().replace("\\", "/")
        path = posixpath.normpath(path)
        if os.path.isabs(path):
            for root in (self.root, self.real):
                if is_inside(path, root):
                    return os.path.relpath(path, root).replace(os.sep, "/")
            return None
        return (
            None
            if path == ".." or path.startswith("../") or (os.name == "nt" and re.match("[A-Za-z]:", path))
            else path
        )

    def file(self, name: str) -> tuple[str, str]:
        """(path below the root of the file that a name means, why it cannot be used)."""
        why = self._look(name)
        if why != _MISSING or _named_as_image(name):
            return name, why
        found = [name + ending for ending in _USUAL if self._look(name + ending) == ""]
        # "a.jpg" and "a.JPG" are one file where upper and lower case are the same
        found = found[:1] + [
            f for f in found[1:] if not os.path.samefile(f"{self.root}/{found[0]}", f"{self.root}/{f}")
        ]
        if len(found) != 1:
            return name, f"exists as {', '.join(map(posixpath.basename, found))}" if found else _MISSING
        return found[0], ""

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
        return "" if stat.S_ISREG(found.st_mode) else "no ordinary file"


def _once(rows: Mapping[str, list[Row]], where: str, notes: list[str]) -> dict[str, list[Row]]:
    """The rows without those that repeat another of the same split.

    Raises:
        DataError: images with several labels, all listed.
    """
    first: dict[str, Row] = {}
    kept: dict[str, list[Row]] = {}
    against: list[str] = []
    repeats = []
    for split, found in rows.items():
        kept[split] = []
        here = set()
        for row in found:
            known = first.setdefault(row.place, row)
            if known.label != row.label:
                labels = f"{display_name(known.label)!r} ({known.line}), {display_name(row.label)!r} ({row.line})"
                against.append(f"{display_name(row.id, 120)}: {labels}")
            elif row.place in here:
                repeats.append(row.id)
            else:
                kept[split].append(row)
                here.add(row.place)
    if against:
        raise DataError(
            f"{counted(len(against), 'line gives', 'lines give')} an image of {where} a second label:\n"
            f"{listing(against)}",
            "keep the label that is right",
        )
    if repeats:
        some = ", ".join(display_name(name, 120) for name in repeats[:3]) + (", ..." if len(repeats) > 3 else "")
        repeat = counted(len(repeats), f"line of {where} repeats", f"lines of {where} repeat")
        notes.append(f"{repeat} an image of the same split and label; each image counts once: {some}")
    return kept


def _tell_apart(rows: Mapping[str, list[Row]]) -> None:
    """Gives ids that an earlier split has for another file the name of the split in front."""
    taken = {row.id for found in rows.values() for row in found}
    first: dict[str, str] = {}
    for split, found in rows.items():
        for row in found:
            if first.setdefault(row.id, row.place) != row.place:
                while row.id in taken:
                    row.id = f"{split}/{row.id}"
                taken.add(row.id)
