"""Which images belong together: of one patient, lesion, slide or track. Splits never cut such a group.

A group is named by a column (``table.csv?group=lesion_id``), by a pattern on the image's path
(``photos?group=(patient\\d+)``), by its folder (``photos?group=folder``), or by an array.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from imbdiff.data.labels import is_missing
from imbdiff.data.names import counted, display_name
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.streams import rng

FOLDER = "folder"
_THINGS = (
    "patients?|persons?|people|subj(?:ect)?s?|participants?|donors?|individuals?|animals?|plants?|trees?|lesions?|"
    "cases?|stud(?:y|ies)|slides?|wsi|specimens?|biops(?:y|ies)|tracks?|tracklets?|seq(?:uence)?s?|videos?|clips?|"
    "sessions?|visits?|scans?|bursts?|events?|deployments?|cameras?|locations?|wells?|plates?|tiles?|identit(?:y|ies)"
)
_COLUMN = re.compile(
    rf"(?:{_THINGS}|mrn|pid)[ _-]?(?:ids?|nos?|nr|num(?:ber)?|index|idx|key|code|uid|names?)?|"
    rf"(?:id|uid)[ _-](?:{_THINGS})",
    re.IGNORECASE,
)
_IN_PATH = re.compile(rf"(?<![a-z])({_THINGS}|pid)[ _-]?\d+", re.IGNORECASE)


def of_values(values: Iterable[object], ids: Sequence[str], split: str) -> list[str]:
    """The groups as text; an image without one is a group of its own."""
    texts = ("" if value is None else str(value).strip() for value in values)
    return [f"\0{split}/{i}" if is_missing(text) else text for text, i in zip(texts, ids, strict=True)]


def of_splits(groups: Any, ids: Mapping[str, Sequence[str]], where: str) -> dict[str, list[str]]:
    """{split: (N,) group of each image}.

    Args:
        groups: (N,) values of the training images, or {split: (N,) values}, of every split.
        ids: {split: (N,) names of the images}.

    Raises:
        DataError: splits are missing, or a number of values is not that of the images.
    """
    given = dict(groups) if isinstance(groups, Mapping) else {"train": groups}
    lengths, sizes = {s: len(v) for s, v in given.items()}, {s: len(v) for s, v in ids.items()}
    if lengths != sizes:
        raise DataError(
            f"{where}: groups for {lengths}, images {sizes}",
            "give one value for each image: an array, or {split: array} where there are several splits",
        )
    return {split: of_values(list(given[split]), ids[split], split) for split in ids}


def by_pattern(ids: Mapping[str, Sequence[str]], pattern: str, where: str) -> tuple[dict[str, list[str]], list[str]]:
    """{split: (N,) group of each image} and notes: what a regular expression finds in its path, or its folder.

    Of an expression with parentheses, the group is what is inside these.

    Args:
        ids: {split: (N,) paths of the images}.

    Raises:
        ConfigError: no regular expression.
        DataError: it is in no path.
    """
    try:
        look = re.compile(r"(.*)/" if pattern == FOLDER else pattern)
    except re.error as error:
        raise ConfigError(
            f"{where}: group={pattern} is no regular expression: {error}",
            "write for example group=(patient[0-9]+), group=^[^/]+/([^_]+), or group=folder",
        ) from error
    found = {split: [look.search(path) for path in paths] for split, paths in ids.items()}
    groups = {
        split: of_values(
            ["" if m is None else "/".join(part or "" for part in m.groups()) or m[0] for m in matches],
            ids[split],
            split,
        )
        for split, matches in found.items()
    }
    lacking = [path for split, matches in found.items() for path, m in zip(ids[split], matches, strict=True) if not m]
    total = sum(map(len, ids.values()))
    if len(lacking) == total:
        raise DataError(
            f"{where}: group={pattern} is found in no path, such as {display_name(lacking[0], 120)}",
            "give a regular expression that finds what images that belong together share, or group=folder",
        )
    one = f"image, whose path does not match group={pattern}, is a group of its own"
    several = f"images, whose paths do not match group={pattern}, are each a group of their own"
    example = f": {display_name(lacking[0], 120)}" if lacking else ""
    return groups, [f"{where}: {counted(len(lacking), one, several)}{example}"] if lacking else []


def is_group_column(name: str) -> bool:
    """Whether a column is called as those that say what belongs together."""
    return _COLUMN.fullmatch(name.strip().rpartition(".")[2]) is not None


def unused_columns(columns: Mapping[str, Sequence[object]], classes: int, where: str) -> list[str]:
    """Warnings of columns that look as if they said what belongs together: of such a name, with repeated values.

    Args:
        columns: {name: (N,) values}, without those that are used.
        classes: how many there are; a column of no more values is another description.
    """
    notes = []
    for name, values in columns.items():
        if not is_group_column(name):
            continue
        counts = Counter(text for v in values if not is_missing(text := str(v).strip()))
        if max(classes, 2) < len(counts) < sum(counts.values()):
            notes.append(_warning(f"the column {name!r} of {where}", sum(counts.values()), len(counts), name))
    return notes


def unused_names(paths: Collection[str], where: str) -> list[str]:
    """A warning where paths of images name a patient, a slide or the like, several images each."""
    found = [match[0].casefold() for path in paths if (match := _IN_PATH.search(path))]
    if 2 * len(found) < len(paths) or not 2 < len(set(found)) < len(found):
        return []
    word = Counter(re.sub(r"\d+$", "", text) for text in found).most_common(1)[0][0]
    what = f"what the paths of {where} name, as {found[0]!r},"
    return [_warning(what, len(found), len(set(found)), f"(?i)({re.escape(word)}[0-9]%2B)".replace("\\", ""))]


def _warning(what: str, images: int, values: int, option: str) -> str:
    return (
        f"{what} repeats ({images} images, {values} values), and is not used: images that belong together may be in "
        f"training and in test. group={option} behind the question mark of SOURCE?group= keeps them in one split; "
        "group= (empty) says that they need not be"
    )


def hold_out(
    labels: np.ndarray, groups: np.ndarray, wanted: Sequence[int], seed: int, name: str, last: np.ndarray
) -> np.ndarray:
    """Sorted indices of whole groups with at most `wanted`[k] images of each class k, as near to it as they reach.

    Of a class that would have none, the smallest group is taken, unless that were more than half of a class. Groups
    with images of a class of which none is wanted stay, and those where `last` (N,) is True come last.
    """
    _, first, code = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))  # in the order of the images, whatever groups are called
    code = rank[code]
    cells, number = np.unique(np.stack([code, labels]), axis=1, return_counts=True)
    parts = np.split(np.arange(cells.shape[1]), np.flatnonzero(np.diff(cells[0])) + 1)
    classes, counts = [cells[1, p] for p in parts], [number[p] for p in parts]
    late = np.zeros(len(first), bool)
    late[code[last]] = True
    order = rng(seed, name, "groups").permutation(len(first))
    order = order[np.argsort(late[order], kind="stable")]
    need, total = np.asarray(wanted), np.bincount(labels, minlength=len(wanted))
    taken, chosen = np.zeros_like(need), np.zeros(len(first), bool)

    def take(g: int) -> None:
        chosen[g] = True
        taken[classes[g]] += counts[g]

    for g in order.tolist():
        if (taken[classes[g]] + counts[g] <= need[classes[g]]).all():
            take(g)
    for k in np.flatnonzero((taken == 0) & (need > 0)).tolist():
        fits = [
            g
            for g in order.tolist()
            if k in classes[g]
            and (need[classes[g]] > 0).all()
            and (2 * (taken[classes[g]] + counts[g]) <= total[classes[g]]).all()
        ]
        if fits and not taken[k]:
            take(min(fits, key=lambda g: int(counts[g].sum())))
    return np.flatnonzero(chosen[code])
