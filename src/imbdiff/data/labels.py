"""Labels, as numbers or as text, become class names in order and class numbers: one rule for every kind of source."""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.names import counted, display_name, is_text
from imbdiff.runtime.errors import DataError, listing

Names = Sequence[str] | Mapping[str, str]
"""The names of classes 0, 1, 2..., or {label: name}."""
LONGEST = 1000
"""Characters of a label or class name."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}(\.0+)?")
_LARGEST_FILE = 64 * 2**20


def encode(
    raw: Mapping[str, Sequence[int | str] | np.ndarray], names: Names | None, where: str, *, strict: bool = True
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, and {split: (N,) int64 class numbers}.

    Every label that occurs in training is a class, called by its value; the order is that of the numbers where all
    labels are whole numbers ("2" before "10"), otherwise alphabetical. With `names`, whole numbers count from 0 (from
    1 in text where 0 does not occur and the largest is the number of names), other labels are names themselves.

    Args:
        raw: {split: labels}, integers or text.
        names: of the classes, in order.
        where: what messages call the source.
        strict: for training. Otherwise one class is enough, any split may have any class, and names that no image has
            are left out.

    Raises:
        DataError: a negative label, one without a name, a class without training image, one that only val or test has,
            fewer than two classes.
    """
    if strict and "train" not in raw:
        raise DataError(f"{where} has no training images", "name them x_train and y_train")
    texts = {split: y.tolist() if isinstance(y, np.ndarray) else y for split, y in raw.items()}
    unique = {split: set(values) for split, values in texts.items()}
    every = set().union(*unique.values())
    if len({isinstance(value, str) for value in every}) > 1:
        raise DataError(f"{where}: some splits have labels that are strings, others integers", "use one kind")
    _check_length([value for value in every if isinstance(value, str)], where, "label")
    whole = all(not isinstance(value, str) or _INTEGER.fullmatch(value) for value in every)
    key = {value: _number(value) if whole else nfc(str(value)) for value in every}
    values: dict[str, set[Any]] = {split: {key[value] for value in found} for split, found in unique.items()}
    known: set[Any] = set().union(*values.values())
    if whole and min(known, default=0) < 0:
        raise DataError(
            f"{where}: labels out of range: {sorted(v for v in known if v < 0)[:20]}", "number classes from 0"
        )
    if names is None:
        order = [(value, _spelled(value, every, key)) for value in sorted(values["train"] if strict else known)]
    else:
        order = _by_names(known, names, whole, any(isinstance(value, str) for value in every), where)
        order = order if strict else [(value, name) for value, name in order if value in known]
    rank = {value: k for k, (value, _) in enumerate(order)}
    for split, found in values.items():
        strange = [display_name(repr(value), 100) for value in sorted(found - set(rank))]
        if strange and names is None:
            raise DataError(
                f"{where}: these classes are in {split} but not in train:\n{listing(strange)}",
                "add training images of them, or remove them from the split",
            )
        if strange:
            raise DataError(
                f"{where}: labels of {split} out of range, without a name among the {len(names or ())} class names:\n"
                f"{listing(strange)}",
                "name all classes, or relabel these images",
            )
    number = {value: rank[key[value]] for value in every}
    labels = {split: np.fromiter((number[v] for v in y), np.int64, len(y)) for split, y in texts.items()}
    class_names = tuple(name for _, name in order)
    if strict:
        check_classes(np.bincount(labels["train"], minlength=len(class_names)), class_names, where)
    return class_names, labels


def check_classes(counts: np.ndarray, class_names: Sequence[str], where: str) -> None:
    """Refuses a training split of fewer than two classes, or with a class that has no image."""
    if len(class_names) < 2:
        raise DataError(
            f"{where} has only one class, {class_names[0]!r}" if len(class_names) else f"{where} has no class",
            "give at least two classes: imbalance is a relation between classes",
        )
    empty = [repr(name) for name, n in zip(class_names, counts.tolist(), strict=True) if n == 0]
    if empty:
        raise DataError(
            f"{where}: {counted(len(empty), 'class has', 'classes have')} no training image:\n{listing(empty)}",
            "add images of them, or leave these classes out",
        )


def read_names(path: Path) -> Names:
    """The class names in a file: one in every line, or JSON, a list or {label: name}.

    Raises:
        DataError: no such file, damaged, empty, or a name that is missing or no text.
    """
    check_file(path)
    try:
        with open(path, "rb") as handle:
            data = handle.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise ValueError(f"more than {_LARGEST_FILE:,} bytes")
        text = data.decode("utf-8-sig")
        found: Any = json.loads(text) if text.lstrip()[:1] in ("{", "[") else text.rstrip().split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"the class names in {path} cannot be read: {error}",
            'write one name in every line, or JSON such as {"0": "cat", "1": "dog"}',
        ) from error
    listed = list(found.values()) if isinstance(found, dict) else found
    wrong = [name for name in listed if not isinstance(name, str) or not name.strip()]
    if wrong or not listed:
        what = f"{counted(len(wrong), 'class name')} that are empty or no text" if wrong else "no class name"
        raise DataError(f"{path} holds {what}", "give every class a name")
    clean = [nfc(name) for name in checked_names(listed, str(path))]
    return dict(zip(found, clean, strict=True)) if isinstance(found, dict) else clean


def checked_names(names: Sequence[str], where: str) -> list[str]:
    """Class names as they are, once all of them are text (JSON can hold half of a surrogate pair) and not too long."""
    _check_length(names, where, "class name")
    return list(names)


def check_file(path: Path) -> None:
    """Refuses what is no ordinary file that can be read; opening a pipe would wait for ever."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be opened: {why}", "check the name and permissions") from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is no file", "give the path of a file")


def nfc(text: str) -> str:
    """Text without spaces at its ends, in one spelling of accents."""
    return unicodedata.normalize("NFC", text.strip())


def _check_length(texts: Iterable[str], where: str, what: str) -> None:
    wrong = [
        f"{display_name(ascii(text) if not is_text(text) else text, 40)}: "
        + ("not valid text" if not is_text(text) else f"{len(text):,} characters")
        for text in texts
        if len(text) > LONGEST or not is_text(text)
    ]
    if wrong:
        raise DataError(
            f"{where}: {counted(len(wrong), what)} that cannot be used:\n{listing(wrong)}",
            "choose another column or file of the labels, or shorten them, as UTF-8 text",
        )


def _by_names(known: set[Any], names: Names, whole: bool, text: bool, where: str) -> list[tuple[Any, str]]:
    """(label, name) of every class in the order of `names`."""
    pairs: list[tuple[Any, str]]
    if isinstance(names, Mapping) and all(_INTEGER.fullmatch(label) for label in names):
        numbered = sorted((_number(label), name) for label, name in names.items())
        pairs = [(number if whole else name, name) for number, name in numbered]
    elif isinstance(names, Mapping):
        pairs = [(nfc(label), name) for label, name in names.items()]
    elif whole:
        start = int(text and bool(known) and 0 not in known and max(known) == len(names))
        pairs = list(enumerate(names, start))
    else:
        pairs = [(name, name) for name in names]
    for what, listed in (("class names", [name for _, name in pairs]), ("labels", [str(v) for v, _ in pairs])):
        twice = sorted(name for name, n in Counter(listed).items() if n > 1)
        if twice:
            raise DataError(
                f"{where}: {what} occur twice:\n{listing(display_name(name, 100) for name in twice)}",
                "give every class a name of its own",
            )
    return pairs


def _spelled(value: Any, every: set[Any], key: Mapping[Any, Any]) -> str:
    """A class without a name is called as its label is written, "007" too, unless there are two ways of writing it."""
    if not isinstance(value, int):
        return str(value)
    written = {str(label).strip().partition(".")[0] for label in every if key[label] == value}
    return written.pop() if len(written) == 1 else str(value)


def _number(value: int | str) -> int:
    return int(value.partition(".")[0]) if isinstance(value, str) else int(value)
