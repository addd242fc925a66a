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

from imbdiff.data.names import counted, display_name, is_text, named, shown
from imbdiff.runtime.errors import ConfigError, DataError, listing

Names = Sequence[str] | Mapping[str, str]
"""The names of classes 0, 1, 2..., or {label: name}."""
LONGEST = 1000
"""Characters of a label or class name."""
MISSING = frozenset({"", "nan", "-nan", "<na>", "nat", "#n/a", "#na", "--"})
"""What programs write where a value is missing; :data:`DOUBTFUL` are words that may name a class too."""
DOUBTFUL = frozenset({"none", "null", "na", "n/a", "-"})
_INTEGER = re.compile(r"[+-]?[0-9]+(\.0+)?")
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?")
_NOTHING = ("NAType", "NaTType", "MaskedConstant")
_KEEP = f"keep = [str(v) not in {('None', 'nan', '<NA>', 'NaT', '--')} for v in y]; X[keep], np.asarray(y)[keep]"
_LARGEST_FILE = 64 * 2**20


def encode(
    raw: Mapping[str, Sequence[int | str] | np.ndarray],
    names: Names | None,
    where: str,
    *,
    strict: bool = True,
    spare: bool = True,
) -> tuple[tuple[str, ...], dict[str, np.ndarray], list[str]]:
    """Class names, {split: (N,) int64 class numbers}, and notes.

    Every label that occurs in training is a class, called as it is written; the order is that of
    :func:`in_class_order`. "1.0" is 1, "01" is not. With `names`, whole numbers count from 0 (from 1 in text where 0
    does not occur and the largest is the number of names), other labels are names themselves.

    Args:
        raw: {split: labels}, integers or text.
        names: of the classes, in order. Numbers that no image has may have names too.
        where: what messages call the source.
        strict: for training. Otherwise one class is enough, any split may have any class, and names that no image has
            are left out.
        spare: numbers that no image has may have names, which are left out.

    Raises:
        DataError: a negative label, one without a name, one that only val or test has, fewer than two classes.
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
    whole = all(not isinstance(value, str) or _INTEGER.fullmatch(value.strip()) for value in every)
    numbered = whole and names is not None
    key: dict[Any, Any] = {value: _number(value) if numbered else _written(value, whole) for value in every}
    values: dict[str, set[Any]] = {split: {key[value] for value in found} for split, found in unique.items()}
    known: set[Any] = set().union(*values.values())
    if whole and min(map(int, known), default=0) < 0:
        below = sorted(int(v) for v in known if int(v) < 0)
        raise DataError(
            f"{where}: labels out of range: {below[:20]}",
            "number classes from 0; images without a label (often -1) have to be left out: X[y >= 0], y[y >= 0]",
        )
    notes = [] if numbered else _merged(key, where)
    if names is None:
        order = [(value, value) for value in in_class_order(values["train"] if strict else known)]
    else:
        order = _by_names(known, names, whole, any(isinstance(value, str) for value in every), where)
        more = [name for value, name in order if value not in known] if (whole and spare) or not strict else []
        order = [(value, name) for value, name in order if name not in more]
        if strict and more:
            what = counted(len(more), "class has", "classes have")
            notes.append(f"{what} a name in {where}, but no image in any split, and left out: {named(more)}")
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
        return class_names, labels, notes
    if len(class_names) < 2:
        raise DataError(
            f"{where} has {f'only one class, {class_names[0]!r}' if class_names else 'no class'}",
            "give at least two classes: imbalance is a relation between classes",
        )
    return class_names, labels, notes


def in_class_order(names: Iterable[str]) -> list[str]:
    """By name, or by value where every name is a whole number: 2 before 10, and 007 before 10."""
    names = list(names)
    whole = all(_INTEGER.fullmatch(name) for name in names)
    return sorted(names, key=lambda name: (_number(name) if whole else 0, name))


def without_missing(y: Any, where: str) -> np.ndarray:
    """Labels as a plain array, objects as text or integers; what anyone calls a missing value is refused.

    Args:
        y: (N, ...) anything that numpy makes an array of: None, NaN, NaT, pandas' NA and masked entries are missing.

    Raises:
        DataError: missing labels, with the numbers of their rows; text and numbers in one array.
    """
    x = np.asarray(y)
    if x.dtype.kind == "O":
        gone = np.array([v is None or type(v).__name__ in _NOTHING or (isinstance(v, float | np.floating) and v != v)
                         for v in x.ravel()], bool).reshape(x.shape)  # fmt: skip
    else:
        gone = np.isnat(x) if x.dtype.kind in "mM" else np.isnan(x) if x.dtype.kind == "f" else np.zeros(x.shape, bool)
    gone = gone | np.ma.getmaskarray(y) if isinstance(y, np.ma.MaskedArray) else gone
    if gone.any():
        rows = np.flatnonzero(gone.reshape(len(x), -1).any(axis=1)).tolist()
        these = shown([str(row) for row in rows], 20)
        raise DataError(
            f"{where}: {counted(len(rows), 'label is', 'labels are')} missing (row {these})",
            f"label these images, or leave them out: {_KEEP}",
        )
    if x.dtype.kind == "S":
        return np.char.decode(x, "utf-8")
    if x.dtype.kind != "O":
        return x
    kinds = {str if isinstance(v, str) else type(v) for v in x.ravel()}
    if len(kinds) > 1 and str in kinds:
        raise DataError(f"{where}: some labels are text, others are not", "use one kind: y = [str(v) for v in y]")
    return np.array(x.tolist()) if kinds <= {str} or all(issubclass(k, int | np.integer) for k in kinds) else x


def is_missing(text: str) -> bool:
    """Whether a text stands for a missing value, surely or perhaps; blanks alone are the name of a folder."""
    return _plain(text) in MISSING | DOUBTFUL


def missing_names(
    class_names: Sequence[str], labels: Mapping[str, np.ndarray], ids: Mapping[str, Sequence[str]], where: str,
    *, strict: bool = True,
) -> list[str]:  # fmt: skip
    """Notes on classes whose name stands for a missing label, with their images.

    Args:
        class_names: (C,); labels: {split: (N,) class numbers}; ids: {split: (N,) what messages call the images}.
        strict: for training.

    Raises:
        DataError: where that is certain: what only programs write (nan), or a word (none) among numbers.
    """
    found = [name for name in class_names if is_missing(name)]
    others = [name for name in class_names if name not in found]
    numbers = bool(others) and all(_NUMBER.fullmatch(name) for name in others)
    notes = []
    for name in found:
        k = class_names.index(name)
        rows = [ids[split][i] for split, y in labels.items() for i in np.flatnonzero(y == k).tolist()]
        text = f"{where}: {counted(len(rows), 'image has', 'images have')} the label {name!r}: {shown(rows, 5, 80)}"
        if strict and (numbers or _plain(name) not in DOUBTFUL):
            raise DataError(
                f"{text}; that stands for a missing label",
                "label these images or leave them out; where it is the name of a class, write another one",
            )
        notes.append(f"{text}; it counts as a class, and may stand for a missing label")
    return notes


def several_labels(labels: Iterable[object], where: str, wish: str | None) -> tuple[set[object], list[str]]:
    """The labels that name several classes ("Effusion|Mass"), whose images are left out, and notes.

    A label is one of these if parts of it are labels of other images too: of "|" any part, of ";" and "," all.

    Args:
        wish: "drop", "keep" (each combination is a class) or None.

    Raises:
        ConfigError: another wish.
        DataError: there are such labels, and no wish.
    """
    if wish not in (None, "drop", "keep"):
        raise ConfigError(f"{where}: several={wish} is neither drop nor keep", "write several=drop or several=keep")
    counts = Counter(label for label in labels if isinstance(label, str))
    several: set[object] = set()
    for mark, enough in (("|", any), (";", all), (",", all)) if wish != "keep" else ():
        parts = {label: {part.strip() for part in label.split(mark)} - {""} for label in counts if mark in label}
        often = Counter(part for some in parts.values() for part in some)
        several |= {
            label
            for label, some in parts.items()
            if len(some) > 1 and enough(part in counts or often[part] > 1 for part in some)
        }
    if not several:
        return several, []
    n, first = sum(counts[str(label)] for label in several), sorted(map(str, several))
    what = f"{counted(n, 'image of', 'images of')} {where}"
    if wish is None:
        raise DataError(
            f"{what} have several labels, such as {display_name(first[0], 100)!r}, {len(first)} combinations in all: "
            "a generator and a classifier of single classes cannot be trained on them",
            "leave these images out by SOURCE?several=drop, or make every combination a class by SOURCE?several=keep",
        )
    return several, [f"{what} with several labels are left out, such as {display_name(first[0], 100)!r}"]


def _plain(name: str) -> str:
    """A name as it is looked up; blanks alone are the name of a folder."""
    return name.strip().casefold() or name


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


def _merged(key: Mapping[Any, str], where: str) -> list[str]:
    """A note on labels that are written in several ways and count as one."""
    ways: dict[str, set[str]] = defaultdict(set)
    for label, name in key.items():
        ways[name].add(str(label))
    several = [" and ".join(map(repr, sorted(written))) for _, written in sorted(ways.items()) if len(written) > 1]
    return [f"{where}: labels written in several ways count as one class: {'; '.join(several[:5])}"] if several else []


def _written(value: int | str, whole: bool) -> str:
    """A label's text; of whole numbers without ".0"."""
    text = nfc(str(value))
    return text.partition(".")[0] if whole else text


def _number(value: int | str) -> int:
    return int(value.partition(".")[0]) if isinstance(value, str) else int(value)
