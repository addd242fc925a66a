"""The rules by which folders are classes and splits, for a folder on disk and for one inside an archive."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import splitext

import numpy as np

from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.encoded import Records
from imbdiff.data.names import counted, display_name
from imbdiff.data.source import check_classes
from imbdiff.runtime.errors import DataError, listing

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

# What is left aside, one and several.
HIDDEN = ("hidden file", "hidden files")
OTHER = ("file that is no image", "files that are no images")
OUTSIDE = ("image outside a class folder", "images outside a class folder")
LINKED = ("linked folder inside a class", "linked folders inside a class")
NAMED = 3  # files that are no images, named in the warning


class Entry:
    """A file or folder in a tree.

    Attributes:
        name: its own.
        path: below the root of the tree, with forward slashes.
        folder: it is a folder, or a link to one.
        regular: it is an ordinary file, or a link to one.
        link: it is a symbolic link.
    """

    __slots__ = ("folder", "link", "name", "path", "regular")

    def __init__(self, name: str, path: str, folder: bool, regular: bool, link: bool = False) -> None:
        self.name, self.path, self.folder, self.regular, self.link = name, path, folder, regular, link


class Tree(ABC):
    """Folders and files below a root. `str` of it is what messages call the root."""

    @abstractmethod
    def entries(self, folder: str) -> Iterable[Entry]:
        """What lies in a folder, by name; "" is the root."""

    def accept(self, entry: Entry) -> bool:
        """Whether an entry may be used; what may not be is remembered for :meth:`refuse`."""
        return True

    def refuse(self) -> None:  # noqa: B027 - most trees accept everything
        """Raises DataError for what :meth:`accept` did not accept."""

    def inner(self, folder: str) -> str:
        """What to give, in the words of a remedy, to have `folder` for the root."""
        return f"a folder of what is in {folder}"


def below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


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

    def beside(self) -> list[str]:
        """Image files that lie directly in the root."""
        return [entry.path for entry in self._scan("", count=False) if named_as_image(entry)]

    def _split_folders(self) -> dict[str, str]:
        found: dict[str, list[str]] = {}
        folders = self._folders("")
        for split, names in SPLIT_FOLDERS.items():
            found[split] = [folder for folder in folders if folder.lower() in names]
        if not found["train"]:
            orphans = [f for f in found["val"] + found["test"] if self._folders(f) and not self._images_beside(f)]
            if orphans:
                raise DataError(
                    f"{self.tree} has {', '.join(orphans)}/ with class folders inside, but no train/",
                    "put the training images into train/CLASS/, or give the folder that holds the class folders",
                )
            return {"train": ""}
        for split, same in found.items():
            if len(same) > 1:
                raise DataError(
                    f"{self.tree} has more than one {split} folder: {', '.join(same)}",
                    "keep one of them",
                )
        used = [folder for same in found.values() for folder in same]
        self.stray_folders = sorted(folder for folder in folders if folder not in used)
        return {split: same[0] for split, same in found.items() if same}

    def _classes_of(self, folder: str) -> dict[str, list[str]]:
        classes: dict[str, list[str]] = {}
        for entry in self._scan(folder):
            if not entry.folder and self._is_image(entry):
                self.ignored[OUTSIDE] += 1
        for inner in self._folders(folder):
            own = inner.rpartition("/")[2]
            name = unicodedata.normalize("NFC", own)  # macOS writes accents as separate characters
            if name in classes:
                raise DataError(
                    f"two class folders in {self._where(folder)} have the same name {name!r} in different Unicode "
                    "spellings",
                    "merge them",
                )
            classes[name] = sorted(self._walk(inner))
        return classes

    def _walk(self, folder: str) -> list[str]:
        """Image files at any depth. Not by recursion: folders may be nested deeper than Python's stack."""
        files: list[str] = []
        todo = [folder]
        while todo:
            for entry in self._scan(todo.pop()):
                if not entry.folder:
                    if self._is_image(entry):
                        files.append(entry.path)
                elif entry.link:
                    self.ignored[LINKED] += 1  # followed, they may lead in circles
                else:
                    todo.append(entry.path)
        return files

    def _scan(self, folder: str, count: bool = True) -> list[Entry]:
        """Entries of a folder by name, without hidden ones and those that the tree does not accept."""
        kept = []
        for entry in self.tree.entries(folder):
            if is_hidden(entry.name):
                self.ignored[HIDDEN] += count
            elif self.tree.accept(entry):
                kept.append(entry)
        return kept

    def _folders(self, folder: str) -> list[str]:
        return [entry.path for entry in self._scan(folder, count=False) if entry.folder]

    def _images_beside(self, folder: str) -> bool:
        return any(named_as_image(entry) for entry in self._scan(folder, count=False))

    def _is_image(self, entry: Entry) -> bool:
        if named_as_image(entry):
            return True
        self.ignored[OTHER] += 1
        self.not_images.append(entry.path)
        return False

    def _where(self, folder: str) -> str:
        return f"{self.tree}/{folder}" if folder else str(self.tree)

    def _refuse_train(self) -> None:
        train = self.classes["train"]
        if not any(train.values()):
            outside = self.ignored[OUTSIDE]
            what = (
                f"{counted(outside, 'image lies', 'images lie')} directly in it, outside any class folder"
                if outside
                else "it holds no image"
            )
            raise DataError(
                f"{self.tree}: no class folder with images found; {what}",
                "give a folder that has one folder per class (DIR/cat/1.png), or DIR/train/cat/1.png",
            )
        empty = sorted(name for name, files in train.items() if not files)
        if empty:
            raise DataError(
                f"these class folders of {self.tree} hold no image for training:\n{listing(map(repr, empty))}",
                f"add images ({', '.join(sorted(e[1:] for e in EXTENSIONS))}) or remove these folders",
            )
        if len(train) == 1 and len(self.classes) == 1:
            (name, files), *_ = train.items()
            deeper = {file.split("/")[1] for file in files if file.count("/") > 1}
            if len(deeper) > 1:
                raise DataError(
                    f"{self.tree} has only one class folder, {name!r}, and that has {len(deeper)} folders inside",
                    f"the classes may be one level deeper: give {self.tree.inner(files[0].split('/')[0])}",
                )

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
            notes.append(f"ignored beside train/: the folders {', '.join(self.stray_folders[:20])}")
        return tuple(notes)


def is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def named_as_image(entry: Entry) -> bool:
    # Regular files only, no pipe and no broken link: opening a pipe would wait for ever.
    return entry.regular and splitext(entry.name)[1].lower() in EXTENSIONS


def class_order(names: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    """By name, or by value where every name is an integer: 2 before 10."""
    numeric = all(name.isascii() and name.isdigit() for name in names)
    return lambda name: (int(name) if numeric else 0, name)


def class_records(names: Sequence[str], classes: Mapping[str, Sequence[str]]) -> Records:
    """The files of all classes, class by class in the order of `names`, each sorted by name."""
    files = [path for name in names for path in sorted(classes.get(name, ()))]
    counts = [len(classes.get(name, ())) for name in names]
    return Records(files, np.repeat(np.arange(len(names), dtype=np.int64), counts))


def split_records(listed: Listing, where: str) -> tuple[list[str], dict[str, Records]]:
    """Class names in order, and the images of every split.

    Raises:
        DataError: a class in val or test that train lacks, fewer than two classes.
    """
    names = sorted(listed.classes["train"], key=class_order(listed.classes["train"]))
    records = {}
    for split, classes in listed.classes.items():
        strange = sorted(set(classes) - set(names))
        if strange:
            raise DataError(
                f"these classes are in {split} but not in train:\n{listing(map(repr, strange))}",
                "add training images of them, or remove these folders",
            )
        records[split] = class_records(names, classes)
        if split == "train":
            check_classes(np.bincount(records[split].labels, minlength=len(names)), names, where)
    return names, records
