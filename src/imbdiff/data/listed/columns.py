"""Which columns of a table hold the images, the labels and the splits."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

from imbdiff.data.layout import SPLIT_FOLDERS
from imbdiff.data.listed.tables import Table, is_image_name
from imbdiff.data.names import counted, display_name
from imbdiff.runtime.errors import ConfigError, DataError, listing

# compared in lower case, with underscores for spaces, dashes and dots
IMAGE_NAMES = frozenset(
    {"image", "images", "img", "path", "file", "filename", "filepath", "photo", "picture", "imagepath", "id_code"}
    | {f"{what}_{part}" for what in ("image", "img", "file") for part in ("path", "name", "id", "file", "filename")}
)
LABEL_NAMES = frozenset(
    {"label", "labels", "class", "classes", "target", "targets", "category", "dx", "diagnosis", "species"}
    | {f"{what}_{part}" for what in ("label", "class", "category") for part in ("id", "name", "label")}
)
SPLIT_NAMES = frozenset({"split", "set", "subset", "partition", "phase", "fold"})
SPELLINGS = {
    spelling: split
    for split, more in (("train", ("training",)), ("val", ("dev",)), ("test", ("testing",)))
    for spelling in (*SPLIT_FOLDERS[split], *more)
}
"""{how a split is written: split}."""
_BINARY = frozenset({"0", "1", "0.0", "1.0"})


def image_column(table: Table, given: str | None) -> str:
    """The column of the images: the one that was named, that holds encoded images, or that has a usual name.

    Raises:
        ConfigError: no column of the given name.
        DataError: none or several could be meant; the columns are listed.
    """
    if given is not None:
        return _named(table, "image", given)
    found = [name for name in table.names if table.holds_images(name)]
    found = found or [name for name in table.names if _usual(name) in IMAGE_NAMES]
    if not found and table.names == tuple(str(i + 1) for i in range(len(table.names))):
        found = [name for name in table.names if is_image_name(table.column(name)[0])]  # there is no header
    if len(found) != 1:
        raise _unclear(table, "image", "images", found)
    return found[0]


def label_columns(table: Table, given: str | None, image: str) -> tuple[str, ...]:
    """The column of the labels, or the columns of one class each where these were named, with commas between.

    Raises:
        ConfigError, DataError: as of :func:`image_column`.
    """
    if given is not None:
        if given in table.names:
            return (given,)
        several = [name.strip() for name in next(csv.reader([given], skipinitialspace=True), [])]
        return tuple(_named(table, "label", name) for name in several) or (_named(table, "label", given),)
    others = [name for name in table.names if name != image]
    found = [name for name in others if _usual(name) in LABEL_NAMES]
    found = found or [name for name in others if table.class_names(name)]
    if not found and table.names == tuple(str(i + 1) for i in range(len(table.names))):
        found = others
    if len(found) == 1:
        return (found[0],)
    one_hot = [] if found else _one_hot(table, others)
    if one_hot:
        named = ",".join(one_hot)
        raise DataError(
            f"{table.where} has no column of labels, but one for each class, with a single 1 in every row:\n"
            f"{_columns(table)}",
            f"name them: label={named}" if len(named) < 500 else "name them: label=FIRST,SECOND,THIRD, all of them",
        )
    raise _unclear(table, "label", "labels", found)


def split_column(table: Table, given: str | None) -> str | None:
    """The column of the splits: the one that was named, or the only one with a usual name and nothing but splits in it.

    Raises:
        ConfigError: no column of the given name.
    """
    if given is not None:
        return _named(table, "split", given) if given else None
    usual = [name for name in table.names if _usual(name) in SPLIT_NAMES and table.names.count(name) == 1]
    found = [name for name in usual if all(cell.strip().lower() in SPELLINGS for cell in _cells(table, name))]
    return found[0] if len(found) == 1 else None


def splits_of(table: Table, column: str) -> dict[str, list[int]]:
    """{split: rows} by the cells of a column, train first.

    Raises:
        DataError: a cell that is no split, or no training images.
    """
    rows: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    strange: dict[str, int] = {}
    for row, cell in enumerate(table.column(column)):
        split = SPELLINGS.get(cell.strip().lower())
        if split is None:
            strange[cell] = strange.get(cell, 0) + 1
        else:
            rows[split].append(row)
    if strange:
        said = [f"{display_name(cell)!r}: {counted(n, 'row')}" for cell, n in strange.items()]
        raise DataError(
            f"{table.where}: these values of the column {column!r} name no split:\n{listing(said)}",
            f"write {', '.join(SPELLINGS)}; split= (empty) uses all rows for training",
        )
    if not rows["train"]:
        raise DataError(f"{table.where}: no row of the column {column!r} says train", "give training images")
    return {split: found for split, found in rows.items() if found}


def label_texts(table: Table, columns: Sequence[str]) -> list[str]:
    """(rows,) the label of every row; of columns of one class each, the name of the one that has a 1.

    Raises:
        DataError: rows without label, or with several, all listed.
    """
    wrong = []
    if len(columns) == 1:
        labels = [cell.strip() for cell in table.column(columns[0])]
        wrong = [table.line(row) for row, label in enumerate(labels) if not label]
    else:
        labels = []
        for row, raw in enumerate(zip(*(table.column(name) for name in columns), strict=True)):
            cells = [cell.strip() for cell in raw]
            ones = [name for name, cell in zip(columns, cells, strict=True) if cell in ("1", "1.0")]
            strange = [cell for cell in cells if cell not in _BINARY]
            labels.append(ones[0] if ones else "")
            if strange:
                wrong.append(f"{table.line(row)}: {display_name(strange[0])!r} is neither 0 nor 1")
            elif len(ones) != 1:
                wrong.append(f"{table.line(row)}: {display_name(' and '.join(ones), 100) or 'no class'}")
    if wrong:
        what = "without a label" if len(columns) == 1 else "that do not name exactly one class"
        raise DataError(
            f"{table.where} has {counted(len(wrong), 'row')} {what}:\n{listing(wrong)}",
            "label these images, or leave them out",
        )
    return labels


def _named(table: Table, option: str, given: str) -> str:
    if given not in table.names:
        raise ConfigError(f"{table.where} has no column {given!r} ({option}=):\n{_columns(table)}", "name one of these")
    return given


def _unclear(table: Table, option: str, what: str, found: Sequence[str]) -> DataError:
    several = f"several columns of {table.where} could hold the {what}: {', '.join(map(repr, found))}"
    none = f"no column of {table.where} has a name that says that it holds the {what}"
    return DataError(
        f"{several if found else none}; its columns, each with its first value:\n{_columns(table)}",
        f"say which: {option}=NAME behind the question mark of SOURCE?{option}=NAME",
    )


def _columns(table: Table) -> str:
    rows = []
    for name in table.names:
        first = "..." if table.holds_images(name) else next(iter(_cells(table, name)), "")
        rows.append(f"{display_name(name)} ({display_name(first, 40)})")
    return listing(rows)


def _cells(table: Table, name: str) -> Sequence[str]:
    try:
        return table.column(name)
    except DataError:  # of a kind that is no label
        return ()


def _one_hot(table: Table, names: Sequence[str]) -> list[str]:
    """The columns of 0 and 1 where every row has a single 1 in them."""
    cells = {name: _cells(table, name) for name in names}
    binary = [name for name, column in cells.items() if column and {cell.strip() for cell in column} <= _BINARY]
    if len(binary) < 2:
        return []
    sums = (sum(cell.strip()[0] == "1" for cell in row) for row in zip(*(cells[name] for name in binary), strict=True))
    return binary if all(n == 1 for n in sums) else []


def _usual(name: str) -> str:
    return re.sub(r"[\s\-.]+", "_", name.strip().casefold())
