"""Lists and tables of images: ``train.txt`` of "path label" lines, CSV and TSV files, Parquet with paths or images.

train.txt?root=/data/imagenet&test=test.txt
HAM10000_metadata.csv?root=images&label=dx&extension=jpg
train.parquet?image=image&label=fine_label
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imbdiff.data.encoded import EncodedSource, PathReader, Reader, Records
from imbdiff.data.listed.columns import image_column, label_columns, label_texts, split_column, splits_of
from imbdiff.data.listed.labels import Names, checked_names, encode, read_names
from imbdiff.data.listed.paths import find_files
from imbdiff.data.listed.tables import Table, read_table
from imbdiff.data.names import counted, display_name
from imbdiff.data.source import Source
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import ConfigError, DataError, listing

OPTIONS = ("root", "image", "label", "split", "val", "test", "names", "extension")


def open_source(spec: Spec, flippable: bool) -> Source:
    options = {name: spec.take(name) for name in OPTIONS}
    spec.finish(OPTIONS)
    return ListSource(user_path(spec.rest), options, spec.text, flippable)


class ListSource(EncodedSource):
    """Images that a list or table names, or that a Parquet table holds, in the order of the list.

    Args:
        path: the list of the training images, or of all.
        options: {name: value}: root (folder where the paths begin; the list's own), image and label (columns; several
            label columns of 0 and 1 with commas between), split (column whose values are train, val, test), val and
            test (further lists), names (file of class names), extension (added to names without ending).
        name: what messages call the source.
        flippable: images may be mirrored.

    Raises:
        DataError: a damaged table, unclear columns, files that do not exist or lie outside the root, labels that are
            missing or contradict each other; all offenders are listed.
        ConfigError: options that do not fit each other or the table.
    """

    def __init__(
        self, path: Path, options: Mapping[str, str | None], name: str | None = None, flippable: bool = False
    ) -> None:
        where = name or str(path)
        given = dict.fromkeys(OPTIONS) | dict(options)
        lists = [_read(file, split, path, given) for split, file in _files(path, given).items()]
        held = {found.table.holds_images(found.image) for found in lists}
        if len(held) > 1:
            raise DataError(f"{where}: some of the tables hold images, others paths", "give tables of one kind")
        self.kind = "parquet" if held == {True} else "list"
        self.reader, rows, notes = _embedded(lists) if held == {True} else _named(lists, path, given)
        kept = _once(rows, where, notes)
        ids = apart({split: [row.id for row in found] for split, found in kept.items()},
                    {split: [row.place for row in found] for split, found in kept.items()})  # fmt: skip
        encoded = encode({split: [row.label for row in found] for split, found in kept.items()},
                         _class_names(lists, path, given), where)  # fmt: skip
        self.records = {
            split: Records(ids[split], encoded.labels[split], [row.place for row in found])
            for split, found in kept.items()
        }
        super().__init__(where, encoded.names, flippable, (*notes, *encoded.notes))


@dataclass(frozen=True, eq=False)
class _List:
    """One table: its file, columns, the label of each row, and the rows of each split."""

    file: Path
    table: Table
    image: str
    columns: tuple[str, ...]
    labels: list[str]
    splits: dict[str, Sequence[int]]
    notes: tuple[str, ...]


class _Row:
    """An image of a list: what it is called, where it is, its label, and the table and row that say so."""

    __slots__ = ("id", "label", "place", "row", "said_by")

    def __init__(self, id: str, place: Any, said_by: _List, row: int) -> None:
        self.id, self.place, self.said_by, self.row = id, place, said_by, row
        self.label = said_by.labels[row]

    @property
    def line(self) -> str:
        return f"{self.said_by.file.name} {self.said_by.table.line(self.row)}"


def _files(path: Path, given: Mapping[str, str | None]) -> dict[str, Path]:
    """{split: file}; a split column may divide the first further."""
    further = {split: given[split] for split in ("val", "test") if given[split]}
    if further and given["split"]:
        raise ConfigError(
            f"split={given['split']} and {', '.join(f'{s}={f}' for s, f in further.items())} both say what is not "
            "for training",
            "give a column or further lists",
        )
    return {"train": path} | {split: _near(str(file), path) for split, file in further.items()}


def _near(given: str, path: Path) -> Path:
    """A path in an option: from the working folder, as SOURCE itself, or else from the list's folder."""
    direct = user_path(given)
    beside = path.parent / direct
    return beside if not os.path.lexists(direct) and os.path.lexists(beside) else direct


def _read(file: Path, split: str, path: Path, given: Mapping[str, str | None]) -> _List:
    table = read_table(file, str(file), bool(given["image"] or given["label"]))
    image = image_column(table, given["image"])
    columns = label_columns(table, given["label"], image)
    by = None if given["val"] or given["test"] else split_column(table, given["split"])
    notes = list(table.notes)
    splits: dict[str, Sequence[int]] = {split: range(table.rows)}
    if by is not None:
        splits = dict(splits_of(table, by))
        if given["split"] is None:
            notes.append(f"the splits are those of the column {by!r} of {file}; split= (empty) trains on all rows")
    return _List(file, table, image, columns, label_texts(table, columns), splits, tuple(notes))


def _named(
    lists: Sequence[_List], path: Path, given: Mapping[str, str | None]
) -> tuple[Reader, dict[str, list[_Row]], list[str]]:
    """The files that the lists name."""
    rows: dict[str, list[_Row]] = {}
    notes: list[str] = []
    roots = [_near(given["root"], path) if given["root"] else found.file.parent for found in lists]
    for found, root in zip(lists, roots, strict=True):
        if not root.is_dir():
            raise DataError(f"the root {root} of {path} is no folder", "give the folder where the paths begin")
        paths = found.table.column(found.image)
        files = find_files(paths, root, given["extension"], str(found.file), found.table.line)
        notes += [*found.notes, *files.notes]
        places = files.places if root == roots[0] else [os.path.abspath(root / place) for place in files.places]
        for split, numbers in found.splits.items():
            rows[split] = [_Row(files.ids[i], places[i], found, i) for i in numbers]
    return PathReader(roots[0]), rows, notes


def _embedded(lists: Sequence[_List]) -> tuple[Reader, dict[str, list[_Row]], list[str]]:
    """The images that the tables hold."""
    from imbdiff.data.listed.parquet import CellReader

    reader = CellReader.of([(found.file, found.image) for found in lists])
    rows = {
        split: [_Row(f"{found.file.name}:{i}", (k, i), found, i) for i in numbers]
        for k, found in enumerate(lists)
        for split, numbers in found.splits.items()
    }
    return reader, rows, [note for found in lists for note in found.notes]


def _class_names(lists: Sequence[_List], path: Path, given: Mapping[str, str | None]) -> Names | None:
    if given["names"]:
        file = _near(given["names"], path)
        return read_names(file, str(file))
    known = [found.table.class_names(found.columns[0]) if len(found.columns) == 1 else None for found in lists]
    if any(names != known[0] for names in known):
        raise DataError(
            f"{', '.join(str(found.file) for found in lists)} name their classes differently",
            "give tables that were written together, or the class names: names=FILE",
        )
    if known[0] is None and len(lists[0].columns) > 1:
        return lists[0].columns
    return None if known[0] is None else checked_names(known[0], str(lists[0].file))


def apart(ids: Mapping[str, Sequence[str]], files: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """Ids that differ across splits: one that an earlier split has for another file gets the split's name in front.

    Args:
        ids: {split: (N,) ids}, train first; all different within a split.
        files: {split: (N,)} what tells files apart.
    """
    first: dict[str, Any] = {}
    taken = {name for own in ids.values() for name in own}
    found: dict[str, list[str]] = {}
    for split, own in ids.items():
        found[split] = []
        for name, file in zip(own, files[split], strict=True):
            if first.setdefault(name, file) != file:
                while name in taken:
                    name = f"{split}/{name}"
                taken.add(name)
            found[split].append(name)
    return found


def _once(rows: Mapping[str, list[_Row]], where: str, notes: list[str]) -> dict[str, list[_Row]]:
    """The rows without those that repeat another of the same split.

    Raises:
        DataError: images with several labels, all listed.
    """
    first: dict[Any, _Row] = {}
    kept: dict[str, list[_Row]] = {}
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
        notes.append(f"{counted(len(repeats), 'line of ' + where + ' repeats', 'lines of ' + where + ' repeat')} "
                     f"an image of the same split and label; each image counts once: {some}")  # fmt: skip
    return kept
