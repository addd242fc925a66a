"""Labels that are text, as tables and lists hold them: class names in order, and class numbers."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.listed.tables import check_file, repeated
from imbdiff.data.names import counted, display_name, is_text
from imbdiff.data.source import check_classes
from imbdiff.runtime.errors import DataError, listing

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}(\.0+)?")
LONGEST_LABEL = 1000
"""Characters of a label or class name."""
_LARGEST_FILE = 64 * 2**20

Names = Sequence[str] | Mapping[str, str]
"""The names of classes 0, 1, 2..., or {label: name}."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Class names in label order, {split: (N,) int64 class numbers}, and notes."""

    names: tuple[str, ...]
    labels: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def encode(raw: Mapping[str, Sequence[str]], names: Names | None, where: str) -> Encoded:
    """Class numbers of labels that are text.

    Labels that all are integers are class numbers from 0, or from 1 where there is no 0, and none may be missing in
    between; where less than half of the numbers occur they are taken for names. Other labels are class names, in
    alphabetical order unless `names` gives another.

    Args:
        raw: {split: (N,) labels}, train among them.
        names: of the classes.
        where: what messages call the source.

    Raises:
        DataError: negative labels, labels without a name, classes without training image, classes that only val or
            test has, fewer than two classes.
    """
    for split, own in raw.items():
        long = [f"{split}: {display_name(text, 40)} ({len(text):,} characters)" for text in dict.fromkeys(own)
                if len(text) > LONGEST_LABEL]  # fmt: skip
        if long:
            raise DataError(
                f"{where}: {counted(len(long), 'label')} of more than {LONGEST_LABEL:,} characters:\n{listing(long)}",
                "choose the column or file of the labels, or shorten them",
            )
    integers = all(_INTEGER.fullmatch(text) for found in raw.values() for text in set(found))
    key = _number if integers else _nfc
    values: dict[str, set[Any]] = {split: {key(text) for text in set(found)} for split, found in raw.items()}
    every = set().union(*values.values())
    notes: list[str] = []
    if integers and min(every, default=0) < 0:
        raise DataError(f"{where}: negative labels: {sorted(every)[:20]}", "number classes from 0")
    order = _numbered(values["train"], where, notes) if names is None else _by_names(every, names, where, notes)
    rank = {value: k for k, (value, _) in enumerate(order)}
    for split, found in values.items():
        strange = [value for value in found if value not in rank]
        if strange:
            rows = [display_name(repr(value), 100) for value in sorted(strange)]
            if names is None:
                raise DataError(
                    f"{where}: these classes are in {split} but not in train:\n{listing(rows)}",
                    "add training images of them, or remove them from the split",
                )
            raise DataError(
                f"{where}: {counted(len(rows), 'label')} of {split} without a name among the {len(order)} class "
                f"names:\n{listing(rows)}",
                "name all classes, or relabel these images",
            )
    labels = {}
    for split, texts in raw.items():
        number = {text: rank[key(text)] for text in set(texts)}
        labels[split] = np.fromiter((number[text] for text in texts), np.int64, len(texts))
    class_names = tuple(name for _, name in order)
    check_classes(np.bincount(labels["train"], minlength=len(class_names)), class_names, where)
    return Encoded(class_names, labels, tuple(notes))


def read_names(path: Path, where: str) -> Names:
    """The class names in a file: one in every line, or JSON, a list or {label: name}.

    Raises:
        DataError: no such file, damaged, empty, or a name that is missing.
    """
    check_file(path, where)
    try:
        with open(path, "rb") as handle:
            data = handle.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise ValueError(f"more than {_LARGEST_FILE:,} bytes")
        text = data.decode("utf-8-sig")
        found: Any = json.loads(text) if text.lstrip()[:1] in ("{", "[") else text.rstrip().split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"the class names in {where} cannot be read: {error}",
            'write one name in every line, or JSON such as {"0": "cat", "1": "dog"}',
        ) from error
    listed = list(found.values()) if isinstance(found, dict) else found
    wrong = [name for name in listed if not isinstance(name, str) or not name.strip()]
    if wrong or not listed:
        raise DataError(
            f"{where}: {counted(len(wrong), 'class name')} that are empty or no text" if wrong else f"{where} is empty",
            "give every class a name",
        )
    clean = [_nfc(name) for name in checked_names(listed, where)]
    return dict(zip(found, clean, strict=True)) if isinstance(found, dict) else clean


def checked_names(names: Sequence[str], where: str) -> list[str]:
    """Class names as they are, once all of them can be written as text.

    Raises:
        DataError: names that no UTF-8 stands for (half of a surrogate pair, as JSON's ``\\ud800``) or that are longer
            than 1,000 characters; all listed.
    """
    wrong = []
    for k, name in enumerate(names):
        if not is_text(name):
            wrong.append(f"name {k}: {display_name(ascii(name), 100)} is not valid text")
        elif len(name) > LONGEST_LABEL:
            wrong.append(f"name {k}: {display_name(name, 40)} has {len(name):,} characters")
    if wrong:
        raise DataError(
            f"{where}: {counted(len(wrong), 'class name')} that cannot be used:\n{listing(wrong)}",
            "write the names as UTF-8 text",
        )
    return list(names)


def _numbered(values: set[Any], where: str, notes: list[str]) -> list[tuple[Any, str]]:
    """(value, name) of every class in order, where the training labels alone say what classes there are."""
    train = sorted(values)
    if not train or not isinstance(train[0], int):
        return [(value, value) for value in train]
    start = 1 if train[0] == 1 else 0
    last = train[-1]
    if 2 * len(train) < last - start + 1:
        some = ", ".join(map(str, train[:5]))
        notes.append(f"the labels of {where} ({some}, ...) are taken for names: most numbers up to {last} do not occur")
    elif len(train) < last - start + 1:
        gaps = sorted(set(range(start, last + 1)) - set(train))
        raise DataError(
            f"{where}: {counted(len(gaps), 'class number')} between {start} and {last} without a training image:\n"
            f"{listing(gaps)}",
            "add images of these classes, number the classes without gaps, or label the images by names",
        )
    return [(value, str(value)) for value in train]


def _by_names(every: set[Any], names: Names, where: str, notes: list[str]) -> list[tuple[Any, str]]:
    """(value, name) of every class in the order of `names`."""
    integers = all(isinstance(value, int) for value in every)
    pairs: list[tuple[Any, str]]
    if isinstance(names, Mapping) and all(_INTEGER.fullmatch(label) for label in names):
        # {number: name}; the labels may be the numbers or the names
        numbered = sorted((_number(label), name) for label, name in names.items())
        pairs = [(number if integers else name, name) for number, name in numbered]
    elif isinstance(names, Mapping):
        pairs = [(_nfc(label), name) for label, name in names.items()]
    elif integers and every and 0 not in every and max(every) == len(names):
        notes.append(f"the labels of {where} run from 1: class 1 is the first of the class names")
        pairs = list(enumerate(names, 1))
    else:
        pairs = list(enumerate(names)) if integers else [(name, name) for name in names]
    for what, listed in (("class names", [name for _, name in pairs]), ("labels", [str(v) for v, _ in pairs])):
        twice = repeated(listed)
        if twice:
            raise DataError(
                f"{where}: {what} occur twice:\n{listing(display_name(name, 100) for name in twice)}",
                "give every class a name of its own",
            )
    return pairs


def _number(text: str) -> int:
    return int(text.partition(".")[0])


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())
