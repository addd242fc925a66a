"""Folders of class folders, ``DIR/cat/1.png`` or ``DIR/train/cat/1.png``: which are classes and which are splits.

The rules are the same for a folder on disk and for one inside an archive.
"""

from __future__ import annotations

import os
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import splitext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.labels import check_classes
from imbdiff.data.names import counted, display_name, is_text
from imbdiff.data.reading import PathReader
from imbdiff.data.source import EncodedSource, Records
from imbdiff.runtime.errors import DataError, listing

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

# What is left aside, one and several.
HIDDEN = ("hidden file", "hidden files")
OTHER = ("file that is no image", "files that are no images")
OUTSIDE = ("image outside a class folder", "images outside a class folder")
LINKED = ("linked folder inside a class", "linked folders inside a class")
NAMED = 3  # files that are no images, named in the warning


class FolderSource(EncodedSource):
    """Image files in class folders. Files are listed when it is opened and decoded when they are read.

    With a folder ``train`` inside, the splits are the folders ``train``, ``val`` (or ``valid``, ``validation``) and
    ``test``; without, every folder inside is a class. Classes are ordered by name, by value if all are integers.
    Hidden files and files that are no images are ignored and counted; symbolic links that leave the folder are refused.

    Raises:
        DataError: no image, one class only, a class without images, a class in val or test that train lacks, links
            that leave the folder, names that are not valid text.
    """

    kind = "folder"

    def __init__(self, folder: Path, name: str | None = None, flippable: bool = False) -> None:
        listed = Listing(FolderTree(Path(folder)))
        names, records = listed.records(name or str(folder))
        super().__init__(name or str(folder), names, records, PathReader(Path(folder)), flippable, listed.warnings())


class Entry(NamedTuple):
    """A file or folder in a tree: its name, its path below the root with forward slashes, and what it is.

    `folder` and `regular` (an ordinary file) are true of links to such too; `link` says that it is one.
    """

    name: str
    path: str
    folder: bool
    regular: bool
    link: bool = False

    @property
    def hidden(self) -> bool:
        return self.name.startswith((".", "__"))

    @property
    def image(self) -> bool:
        # regular files only, no pipe and no broken link: opening a pipe would wait for ever
        return self.regular and splitext(self.name)[1].lower() in EXTENSIONS


class Tree(ABC):
    """Folders and files below a root. `str` of it is what messages call the root."""

    @abstractmethod
    def entries(self, folder: str) -> Iterable[Entry]:
        """What a folder holds, by name, without what may not be used; "" is the root."""

    def refuse(self) -> None:  # noqa: B027 - most trees have nothing to refuse
        """Raises DataError for what was found that may not be used."""

    def inner(self, folder: str) -> str:
        """What to give, in the words of a remedy, to have `folder` for the root."""
        return f"a folder of what is in {folder}"


class FolderTree(Tree):
    """A folder on disk. Links that lead out of it and names that are not text may not be used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.escaping: set[str] = set()
        self.garbled: set[str] = set()

    def __str__(self) -> str:
        return str(self.root)

    def entries(self, folder: str) -> list[Entry]:
        path = self.root / folder
        try:
            with os.scandir(path) as found:
                made = [self._entry(entry, f"{folder}/{entry.name}" if folder else entry.name) for entry in found]
        except OSError as error:
            raise DataError(f"cannot list {path}: {error.strerror}", "check its permissions") from error
        return sorted(entry for entry in made if entry.hidden or self._usable(entry))

    def _usable(self, entry: Entry) -> bool:
        if not is_text(entry.name):
            self.garbled.add(ascii(str(self.root / entry.path)))
            return False
        if entry.link and not is_inside(os.path.realpath(self.root / entry.path), self.real_root):
            self.escaping.add(str(self.root / entry.path))
            return False
        return True

    def refuse(self) -> None:
        if self.escaping:
            lead = counted(len(self.escaping), "symbolic link leads", "symbolic links lead")
            raise DataError(
                f"{lead} out of {self.root}:\n{listing(sorted(self.escaping))}",
                "copy these images into the folder, or remove the links",
            )
        if self.garbled:
            raise DataError(
                f"{counted(len(self.garbled), 'name is', 'names are')} not valid UTF-8:\n"
                f"{listing(sorted(self.garbled))}",
                "rename these files or folders",
            )

    def inner(self, folder: str) -> str:
        return str(self.root / folder)

    @staticmethod
    def _entry(entry: os.DirEntry[str], path: str) -> Entry:
        try:
            return Entry(entry.name, path, entry.is_dir(), entry.is_file(), entry.is_symlink())
        except OSError:  # links in a circle
            return Entry(entry.name, path, False, False, True)


class Listing:
    """The image files of a tree by split and class, and what was left aside.

    Not `strict`: every folder inside is a class, also "train" or "test", and there need not be any.

    Attributes:
        classes: {split: {class: paths below the root}}.
    """

    def __init__(self, tree: Tree, strict: bool = True) -> None:
        self.tree = tree
        self.ignored: Counter[tuple[str, str]] = Counter()
        self.not_images: list[str] = []
        self.stray_folders: list[str] = []
        self.empty_splits: list[str] = []
        self.classes: dict[str, dict[str, list[str]]] = {}
        for split, folder in (self._split_folders() if strict else {"train": ""}).items():
            classes = self._classes_of(folder)
            if split == "train" or any(classes.values()):
                self.classes[split] = classes
            else:
                self.empty_splits.append(split)
        tree.refuse()
        if strict:
            self._refuse_train()

    def in_root(self) -> list[str]:
        """Image files directly in the root."""
        return [entry.path for entry in self._shown("") if entry.image]

    def records(self, where: str) -> tuple[list[str], dict[str, Records]]:
        """Class names in order, and the images of every split, class by class, each sorted by name.

        Raises:
            DataError: a class in val or test that train lacks, fewer than two classes.
        """
        names = sorted(self.classes["train"], key=class_order(self.classes["train"]))
        records = {}
        for split, classes in self.classes.items():
            strange = sorted(set(classes) - set(names))
            if strange:
                raise DataError(
                    f"these classes are in {split} but not in train:\n{listing(map(repr, strange))}",
                    "add training images of them, or remove these folders",
                )
            records[split] = class_records(names, classes)
        check_classes(np.bincount(records["train"].labels, minlength=len(names)), names, where)
        return names, records

    def warnings(self) -> tuple[str, ...]:
        shown = [display_name(name, 120) for name in sorted(self.not_images)[:NAMED]]
        named = ": " + ", ".join(shown) + (", ..." if len(self.not_images) > NAMED else "")
        notes = [
            f"ignored in {self.tree}: {counted(n, *what)}{named if what == OTHER else ''}"
            for what, n in sorted(self.ignored.items())
            if n
        ]
        notes += [f"{split}/ in {self.tree} holds no image and counts as not given" for split in self.empty_splits]
        if self.stray_folders:
            notes.append(f"ignored next to train/: the folders {', '.join(self.stray_folders[:20])}")
        return tuple(notes)

    def _split_folders(self) -> dict[str, str]:
        folders = self._folders("")
        found = {split: [f for f in folders if f.lower() in names] for split, names in SPLIT_FOLDERS.items()}
        if not found["train"]:
            orphans = [
                f
                for f in found["val"] + found["test"]
                if self._folders(f) and not any(entry.image for entry in self._shown(f))
            ]
            if orphans:
                raise DataError(
                    f"{self.tree} has {', '.join(orphans)}/ with class folders inside, but no train/",
                    "put the training images into train/CLASS/, or give the folder that holds the class folders",
                )
            return {"train": ""}
        for split, same in found.items():
            if len(same) > 1:
                raise DataError(f"{self.tree} has more than one {split} folder: {', '.join(same)}", "keep one of them")
        used = [folder for same in found.values() for folder in same]
        self.stray_folders = sorted(folder for folder in folders if folder not in used)
        return {split: same[0] for split, same in found.items() if same}

    def _classes_of(self, folder: str) -> dict[str, list[str]]:
        classes: dict[str, list[str]] = {}
        for entry in self._counted(folder):
            if not entry.folder:
                self.ignored[OUTSIDE] += self._is_image(entry)
                continue
            name = unicodedata.normalize("NFC", entry.name)  # macOS writes accents as separate characters
            if name in classes:
                raise DataError(
                    f"two class folders in {self.tree}{'/' + folder if folder else ''} have the same name {name!r} in "
                    "different Unicode spellings",
                    "merge them",
                )
            classes[name] = self._walk(entry.path)
        return classes

    def _walk(self, folder: str) -> list[str]:
        """Image files at any depth. Not by recursion: folders may be nested deeper than Python's stack."""
        files: list[str] = []
        todo = [folder]
        while todo:
            for entry in self._counted(todo.pop()):
                if not entry.folder:
                    if self._is_image(entry):
                        files.append(entry.path)
                elif entry.link:
                    self.ignored[LINKED] += 1  # followed, they may lead in circles
                else:
                    todo.append(entry.path)
        return files

    def _shown(self, folder: str) -> list[Entry]:
        return [entry for entry in self.tree.entries(folder) if not entry.hidden]

    def _counted(self, folder: str) -> list[Entry]:
        entries = list(self.tree.entries(folder))
        shown = [entry for entry in entries if not entry.hidden]
        self.ignored[HIDDEN] += len(entries) - len(shown)
        return shown

    def _folders(self, folder: str) -> list[str]:
        return [entry.path for entry in self._shown(folder) if entry.folder]

    def _is_image(self, entry: Entry) -> bool:
        if not entry.image:
            self.ignored[OTHER] += 1
            self.not_images.append(entry.path)
        return entry.image

    def _refuse_train(self) -> None:
        train = self.classes["train"]
        if not any(train.values()):
            outside = self.ignored[OUTSIDE]
            found = f"{counted(outside, 'image lies', 'images lie')} directly in it, outside any class folder"
            raise DataError(
                f"{self.tree}: no class folder with images found; {found if outside else 'it holds no image'}",
                "give a folder that has one folder per class (DIR/cat/1.png), or DIR/train/cat/1.png",
            )
        empty = sorted(name for name, files in train.items() if not files)
        if empty:
            raise DataError(
                f"these class folders of {self.tree} hold no image for training:\n{listing(map(repr, empty))}",
                f"add images ({', '.join(sorted(e[1:] for e in EXTENSIONS))}) or remove these folders",
            )
        if len(train) == 1 and len(self.classes) == 1:
            ((name, files),) = train.items()
            deeper = {file.split("/")[1] for file in files if file.count("/") > 1}
            if len(deeper) > 1:
                raise DataError(
                    f"{self.tree} has only one class folder, {name!r}, and that has {len(deeper)} folders inside",
                    f"the classes may be one level deeper: give {self.tree.inner(files[0].split('/')[0])}",
                )


def class_order(names: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    """By name, or by value where every name is an integer: 2 before 10."""
    numeric = all(name.isascii() and name.isdigit() for name in names)
    return lambda name: (int(name) if numeric else 0, name)


def class_records(names: Sequence[str], classes: Mapping[str, Sequence[str]]) -> Records:
    """The files of all classes, class by class in the order of `names`, each sorted by name."""
    files = [path for name in names for path in sorted(classes.get(name, ()))]
    counts = [len(classes.get(name, ())) for name in names]
    return Records(files, np.repeat(np.arange(len(names), dtype=np.int64), counts))


def is_inside(path: str, root: str) -> bool:
    """Whether a path is `root` or below it; both without links and dots."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
