"""Labels, as numbers or as text, become class names in order and class numbers: one rule for every kind of source."""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
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
        raise DataError(f"{where} has no training images", "give some: a split called train")
    if isinstance(names, Mapping):
        names = {str(label): str(name) for label, name in names.items()}
    elif names is not None:
        names = [str(name) for name in names]
    texts = {split: y.tolist() if isinstance(y, np.ndarray) else y for split, y in raw.items()}
    unique = {split: set(values) for split, values in texts.items()}
    every = set().union(*unique.values())
    if len({isinstance(value, str) for value in every}) > 1:
        raise DataError(f"{where}: some splits have labels that are strings, others integers", "use one kind")
    _check_text(
        [*(v for v in every if isinstance(v, str)), *(names.values() if isinstance(names, Mapping) else names or ())],
        where,
    )
    whole = all(not isinstance(value, str) or _INTEGER.fullmatch(value) for value in every)
    key = {value: _number(value) if whole else nfc(str(value)) for value in every}
    values: dict[str, set[Any]] = {split: {key[value] for value in found} for split, found in unique.items()}
    known: set[Any] = set().union(*values.values())
    if whole and min(known, default=0) < 0:
        raise DataError(
            f"{where}: labels out of range: {sorted(v for v in known if v < 0)[:20]}", "number classes from 0"
        )
    if names is None:
        spelled = _spelled(key)
        order = [(value, spelled[value]) for value in sorted(values["train"] if strict else known)]
    else:
        order = _by_names(known, names, whole, any(isinstance(value, str) for value in every), where)
        order = order if strict else [(value, name) for value, name in order if value in known]
    rank = {value: k for k, (value, _) in enumerate(order)}
    class_names = tuple(name for _, name in order)
    for split, found in values.items():
        strange = [display_name(repr(value), 100) for value in sorted(found - set(rank))]
        if strange:
            known_names = "not in train" if names is None else f"without a name among the {len(names)} class names"
            raise DataError(
                f"{where}: these labels are in {split} but {known_names}:\n{listing(strange)}",
                "relabel these images, leave them out, or complete train or the class names",
            )
    number = {value: rank[key[value]] for value in every}
    labels = {split: np.fromiter((number[v] for v in y), np.int64, len(y)) for split, y in texts.items()}
    if not strict:
        return class_names, labels
    if len(class_names) < 2:
        raise DataError(
            f"{where} has {f'only one class, {class_names[0]!r}' if class_names else 'no class'}",
            "give at least two classes: imbalance is a relation between classes",
        )
    empty = [repr(name) for name, n in zip(class_names, np.bincount(labels["train"], minlength=len(order)), strict=True)
             if n == 0]  # fmt: skip
    if empty:
        raise DataError(
            f"{where}: {counted(len(empty), 'class has', 'classes have')} no training image:\n{listing(empty)}",
            "add images of them, or leave these classes out",
        )
    return class_names, labels


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
        listed = list(found.values()) if isinstance(found, dict) else found
        if not listed or not all(isinstance(name, str) and name.strip() for name in listed):
            raise ValueError("a name is missing, empty or no text")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"the class names in {path} cannot be read: {error}",
            'write one name in every line, or JSON such as {"0": "cat", "1": "dog"}',
        ) from error
    clean = [nfc(name) for name in listed]
    return dict(zip(found, clean, strict=True)) if isinstance(found, dict) else clean


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
    """Text without spaces at its ends, in one spelling of accents: macOS writes these as separate characters."""
    return unicodedata.normalize("NFC", text.strip())


def _check_text(texts: Iterable[str], where: str) -> None:
    wrong = [
        f"{display_name(ascii(text), 40)}: "
        + (f"{len(text):,} characters" if len(text) > LONGEST else "cannot be written as UTF-8 text")
        for text in texts
        if len(text) > LONGEST or not is_text(text)
    ]
    if wrong:
        raise DataError(
            f"{where}: {counted(len(wrong), 'label or class name', 'labels or class names')} that cannot be used:\n"
            f"{listing(wrong)}",
            "choose another column or file, or shorten them",
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


def _spelled(key: Mapping[Any, Any]) -> dict[Any, str]:
    """{class: its name}: its label as it is written ("007"), if there is one way of writing it."""
    written: dict[Any, set[str]] = defaultdict(set)
    for label, value in key.items():
        written[value].add(str(label).strip().partition(".")[0] if isinstance(value, int) else value)
    return {value: names.pop() if len(names) == 1 else str(value) for value, names in written.items()}


def _number(value: int | str) -> int:
    return int(value.partition(".")[0]) if isinstance(value, str) else int(value)
