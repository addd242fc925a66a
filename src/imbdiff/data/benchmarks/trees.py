"""What the benchmarks of image files share: class folders, list files, and the source that they make."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.encoded import EncodedSource, PathReader, Records
from imbdiff.data.source import check_classes
from imbdiff.runtime.errors import DataError, listing

WORDNET = re.compile(r"n\d{8}")
TRIED = 16
"""Listed images that are looked for on opening; the rest is when headers are read."""


@dataclass(frozen=True)
class Listed:
    """Images of a split in order: (N,) paths below a folder, with forward slashes, and (N,) labels.

    `places` are where the files lie below the folder, where that is not where the list says.
    """

    paths: Sequence[str]
    labels: Sequence[int]
    places: Sequence[str] | None = None


class TreeSource(EncodedSource):
    """The image files of a benchmark below one folder.

    Attributes:
        nearly: counts as balanced though classes differ in size: the literature cuts a tail from it all the same.

    Raises:
        DataError: a label that no training image has, a class without training images.
    """

    kind = "benchmark"

    def __init__(
        self, name: str, root: Path, names: Sequence[str], splits: Mapping[str, Listed], nearly: bool = False
    ) -> None:
        super().__init__(name, names, True)
        self.nearly = nearly
        self.reader = PathReader(root)
        self.records = {}
        for split, listed in splits.items():
            labels = np.asarray(listed.labels, dtype=np.int64)
            strange = sorted(set(labels[(labels < 0) | (labels >= len(names))].tolist()))
            if strange:
                raise DataError(
                    f"{name}: {split} has labels that train has not: {strange[:20]}",
                    "take the lists of all splits from one place",
                )
            self.records[split] = Records(listed.paths, labels, listed.places)
        check_classes(np.bincount(self.records["train"].labels, minlength=len(names)), names, name)

    @property
    def balanced(self) -> bool:
        return self.nearly or super().balanced


def class_folders(folder: Path, wordnet: bool = False) -> list[str]:
    """Names of the folders in `folder` in sorted order, hidden ones left out; `wordnet`: only WordNet ids."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    return sorted(name for name in names if not wordnet or WORDNET.fullmatch(name))


def images_of(root: Path, folder: str, names: Sequence[str], inner: str = "") -> Listed:
    """The images in ``root/folder/NAME[/inner]``, class by class, each sorted by name as torchvision's ImageFolder is.

    Raises:
        DataError: classes without a folder or image, all listed.
    """
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    for k, name in enumerate(names):
        below = "/".join(part for part in (folder, name, inner) if part)
        found = image_files(root / below)
        if not found:
            empty.append(below)
        paths += [f"{below}/{file}" for file in found]
        labels += [k] * len(found)
    if empty:
        raise DataError(f"these folders of {root} are missing or hold no image:\n{listing(empty)}", "unpack it again")
    return Listed(paths, labels)


def image_files(folder: Path) -> list[str]:
    """Sorted names of the image files directly in a folder; none if it is not there.

    Pipes, devices and folders are left out: opening a pipe waits for ever. Links that lead nowhere are kept and are
    unusable later, rather than missing without a word.
    """
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        named = [e for e in entries if os.path.splitext(e.name)[1].lower() in EXTENSIONS and e.name[0] != "."]
        return sorted(e.name for e in named if e.is_file(follow_symlinks=False) or _may_be_file(e.path))


def _may_be_file(path: str) -> bool:
    return os.path.isfile(path) or not os.path.exists(path)


def read_list(path: Path) -> Listed:
    """A list file with a path and a class number on each line.

    Raises:
        DataError: lines that are something else, paths that lead out of the folder, paths listed twice; all of them.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "give a text file with PATH LABEL on each line") from error
    paths, labels, wrong = [], [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2 or not re.fullmatch(r"[0-9]{1,9}", parts[1]):
            wrong.append(f"line {number}: {line[:80]!r}")
        else:
            paths.append(parts[0].strip().removeprefix("/"))
            labels.append(int(parts[1]))
    if wrong or not paths:
        raise DataError(
            f"{path}: {listing(wrong) if wrong else 'no line in it'}", "write PATH LABEL, the label a class number"
        )
    return checked(path, paths, labels)


def checked(path: Path, paths: list[str], labels: list[int]) -> Listed:
    """The images that the file `path` lists, once no path leads out of the folder or occurs twice."""
    outside = [repr(p) for p in paths if not inside(p)]
    if outside:
        raise DataError(f"{path} has paths that lead out of the folder:\n{listing(outside)}", "write paths below it")
    if len(set(paths)) < len(paths):
        seen: set[str] = set()
        twice = [repr(p) for p in paths if p in seen or seen.add(p)]  # type: ignore[func-returns-value]
        raise DataError(f"{path} lists images twice:\n{listing(twice)}", "list each image once")
    return Listed(paths, labels)


def inside(path: str) -> bool:
    """Whether a path with forward slashes stays below the folder it starts from."""
    return bool(path) and path[0] != "/" and ".." not in path.split("/") and "\\" not in path and "\0" not in path


def first_existing(root: Path, listed: Iterable[str]) -> bool:
    """Whether all of a few images, evenly taken from the list, lie below `root`."""
    every = list(listed)
    return all((root / p).is_file() for p in every[:: max(1, len(every) // TRIED)])


def names_of(listed: Listed, skip: int) -> list[str]:
    """Names of the classes 0 to the largest label, from the folders of their images less the first `skip` ones.

    A class whose images lie in several folders, or in another class's, makes all of them be called by number.

    Raises:
        DataError: a label larger than the number of images.
    """
    if max(listed.labels) >= len(listed.labels):
        raise DataError(
            f"{listed.paths[int(np.argmax(listed.labels))]} has the label {max(listed.labels)}, and there are "
            f"{len(listed.labels)} images: most classes would have none",
            "number classes from 0",
        )
    folders: dict[int, set[str]] = {}
    for path, k in zip(listed.paths, listed.labels, strict=True):
        folders.setdefault(k, set()).add("/".join(path.split("/")[skip:-1]))
    count = max(folders) + 1
    names = [next(iter(folders[k])) if len(folders.get(k, ())) == 1 else "" for k in range(count)]
    return names if all(names) and len(set(names)) == count else [str(k) for k in range(count)]
