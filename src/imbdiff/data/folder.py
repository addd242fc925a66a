"""A folder of class folders: ``DIR/cat/1.png``, or ``DIR/train/cat/1.png`` beside ``DIR/test/...``."""

from __future__ import annotations

import os
from pathlib import Path

from imbdiff.data.encoded import EncodedSource, PathReader
from imbdiff.data.layout import Entry, Listing, Tree, below, split_records
from imbdiff.data.names import counted, is_text
from imbdiff.runtime.errors import DataError, listing


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
        listed = Listing(FolderTree(self.folder))
        names, self.records = split_records(listed, name or str(folder))
        super().__init__(name or str(folder), names, flippable, listed.warnings())
        self.reader = PathReader(self.folder)


class FolderTree(Tree):
    """A folder on disk. Links that lead out of it and names that are not text are not accepted."""

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
                made = [self._entry(entry, below(folder, entry.name)) for entry in found]
        except OSError as error:
            raise DataError(f"cannot list {path}: {error.strerror}", "check its permissions") from error
        return sorted(made, key=lambda entry: entry.name)

    def accept(self, entry: Entry) -> bool:
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


def is_inside(path: str, root: str) -> bool:
    """Whether a path is `root` or below it; both without links and dots."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
