"""A folder of class folders: ``DIR/cat/1.png``, or ``DIR/train/cat/1.png`` beside ``DIR/test/...``."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.encoded import EncodedSource, PathReader, Records
from imbdiff.data.source import check_classes
from imbdiff.data.words import counted
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
        self.folder = Path(folder)
        listed = Listing(self.folder)
        names = sorted(listed.classes["train"], key=class_order(listed.classes["train"]))
        super().__init__(name or str(folder), names, flippable, listed.warnings())
        self.reader = PathReader(self.folder)
        self.records = {}
        for split, classes in listed.classes.items():
            strange = sorted(set(classes) - set(names))
            if strange:
                raise DataError(
                    f"these classes are in {split} but not in train:\n{listing(map(repr, strange))}",
                    "add training images of them, or remove these folders",
                )
            counts = [len(classes.get(name, ())) for name in names]
            self.records[split] = class_records(names, classes)
            if split == "train":
                check_classes(np.asarray(counts), names, self.name)


def class_records(names: Sequence[str], classes: Mapping[str, Sequence[str]]) -> Records:
    """The files of all classes, class by class in the order of `names`, each sorted by name."""
    files = [path for name in names for path in sorted(classes.get(name, ()))]
    counts = [len(classes.get(name, ())) for name in names]
    return Records(files, np.repeat(np.arange(len(names), dtype=np.int64), counts))


class Listing:
    """The image files of a folder by split and class, and what was left aside.

    Not `strict`: every folder inside is a class, also "train" or "test", and there need not be any.
    """

    def __init__(self, root: Path, strict: bool = True) -> None:
        self.root = root
        self.real_root = root.resolve()
        self.ignored: Counter[tuple[str, str]] = Counter()
        self.not_images: list[str] = []
        self.escaping: list[str] = []
        self.garbled: list[str] = []
        self.stray_folders: list[str] = []
        self.empty_splits: list[str] = []
        self.classes: dict[str, dict[str, list[str]]] = {}
        for split, folder in (self._split_folders() if strict else {"train": root}).items():
            classes = self._classes_of(folder)
            if split == "train" or any(classes.values()):
                self.classes[split] = classes
            else:
                self.empty_splits.append(split)
        self._refuse_names()
        if strict:
            self._refuse_train()

    def beside(self, folder: Path) -> list[str]:
        """Image files that lie directly in `folder`."""
        entries = [e for e in self._scan(folder, count=False) if not e.is_dir() and _named_as_image(e)]
        return [Path(e.path).relative_to(self.root).as_posix() for e in entries]

    def _split_folders(self) -> dict[str, Path]:
        found: dict[str, list[Path]] = {}
        folders = self._folders(self.root)
        for split, names in SPLIT_FOLDERS.items():
            found[split] = [folder for folder in folders if folder.name.lower() in names]
        if not found["train"]:
            orphans = [f.name for f in found["val"] + found["test"] if self._folders(f) and not self._images_beside(f)]
            if orphans:
                raise DataError(
                    f"{self.root} has {', '.join(orphans)}/ with class folders inside, but no train/",
                    "put the training images into train/CLASS/, or give the folder that holds the class folders",
                )
            return {"train": self.root}
        for split, same in found.items():
            if len(same) > 1:
                raise DataError(
                    f"{self.root} has more than one {split} folder: {', '.join(f.name for f in same)}",
                    "keep one of them",
                )
        used = [folder for same in found.values() for folder in same]
        self.stray_folders = sorted(folder.name for folder in folders if folder not in used)
        return {split: same[0] for split, same in found.items() if same}

    def _classes_of(self, folder: Path) -> dict[str, list[str]]:
        classes: dict[str, list[str]] = {}
        for entry in self._scan(folder):
            if not entry.is_dir() and self._is_image(entry):
                self.ignored[OUTSIDE] += 1
        for inner in self._folders(folder):
            name = unicodedata.normalize("NFC", inner.name)  # macOS writes accents as separate characters
            if name in classes:
                raise DataError(
                    f"two class folders in {folder} have the same name {name!r} in different Unicode spellings",
                    "merge them",
                )
            classes[name] = sorted(self._walk(inner))
        return classes

    def _walk(self, folder: Path) -> list[str]:
        """Image files at any depth; ids are relative to the root, with forward slashes."""
        files: list[str] = []
        for entry in self._scan(folder):
            path = Path(entry.path)
            if entry.is_dir():
                if entry.is_symlink():
                    self.ignored[LINKED] += 1  # followed, they may lead in circles
                else:
                    files += self._walk(path)
            elif self._is_image(entry):
                files.append(path.relative_to(self.root).as_posix())
        return files

    def _scan(self, folder: Path, count: bool = True) -> list[os.DirEntry[str]]:
        """Entries of a folder by name, without hidden ones, names that are not text and links that lead outside."""
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot list {folder}: {error.strerror}", "check its permissions") from error
        kept = []
        for entry in ordered:
            if entry.name.startswith((".", "__")):
                self.ignored[HIDDEN] += count
            elif not _is_text(entry.name):
                self.garbled.append(ascii(entry.path))
            elif entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.real_root):
                self.escaping.append(entry.path)
            else:
                kept.append(entry)
        return kept

    def _folders(self, folder: Path) -> list[Path]:
        return [Path(entry.path) for entry in self._scan(folder, count=False) if entry.is_dir()]

    def _images_beside(self, folder: Path) -> bool:
        return any(_named_as_image(entry) for entry in self._scan(folder, count=False))

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        # Not a regular file: a pipe or a broken link. Opening a pipe would wait for ever.
        if _named_as_image(entry):
            return True
        self.ignored[OTHER] += 1
        self.not_images.append(Path(entry.path).relative_to(self.root).as_posix())
        return False

    def _refuse_names(self) -> None:
        escaping, garbled = sorted(set(self.escaping)), sorted(set(self.garbled))
        if escaping:
            lead = counted(len(escaping), "symbolic link leads", "symbolic links lead")
            raise DataError(
                f"{lead} out of {self.root}:\n{listing(escaping)}",
                "copy these images into the folder, or remove the links",
            )
        if garbled:
            raise DataError(
                f"{counted(len(garbled), 'name is', 'names are')} not valid UTF-8:\n{listing(garbled)}",
                "rename these files or folders",
            )

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
                f"{self.root}: no class folder with images found; {what}",
                "give a folder that has one folder per class (DIR/cat/1.png), or DIR/train/cat/1.png",
            )
        empty = sorted(name for name, files in train.items() if not files)
        if empty:
            raise DataError(
                f"these class folders of {self.root} hold no image for training:\n{listing(map(repr, empty))}",
                f"add images ({', '.join(sorted(e[1:] for e in EXTENSIONS))}) or remove these folders",
            )
        if len(train) == 1 and len(self.classes) == 1:
            (name, files), *_ = train.items()
            deeper = {Path(file).parts[1] for file in files if len(Path(file).parts) > 2}
            if len(deeper) > 1:
                raise DataError(
                    f"{self.root} has only one class folder, {name!r}, and that has {len(deeper)} folders inside",
                    f"the classes may be one level deeper: give {self.root / name}",
                )

    def warnings(self) -> tuple[str, ...]:
        named = ": " + ", ".join(sorted(self.not_images)[:NAMED]) + (", ..." if len(self.not_images) > NAMED else "")
        notes = [
            f"ignored in {self.root}: {counted(n, *what)}{named if what == OTHER else ''}"
            for what, n in sorted(self.ignored.items())
            if n
        ]
        notes += [f"{split}/ in {self.root} holds no image and counts as not given" for split in self.empty_splits]
        if self.stray_folders:
            notes.append(f"ignored beside train/: the folders {', '.join(self.stray_folders[:20])}")
        return tuple(notes)


def _named_as_image(entry: os.DirEntry[str]) -> bool:
    return Path(entry.name).suffix.lower() in EXTENSIONS and entry.is_file()


@cache
def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def class_order(names: dict[str, list[str]]) -> Callable[[str], tuple[int, str]]:
    """By name, or by value where every name is an integer: 2 before 10."""
    numeric = all(name.isascii() and name.isdigit() for name in names)
    return lambda name: (int(name) if numeric else 0, name)
