"""Zip files of class folders: ``photos.zip`` with ``cat/1.png``, or ``train/cat/1.png``, read without unpacking.

This is written here because the imagefolder builder of `datasets` 5.2.0 fails on a zip file ("Invalid string class
label"). Zip files come from anywhere, so nothing in them is believed: names that lead out of the archive, links,
encrypted members, names that occur twice and images that would unpack to more than any image needs are refused on
opening.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from os.path import splitext
from pathlib import Path
from typing import BinaryIO

from imbdiff.data.decode import EXTENSIONS, LARGEST, UnusableImageError
from imbdiff.data.folder import HIDDEN, OTHER, SPLIT_FOLDERS, Entry, Listing, Tree
from imbdiff.data.labels import check_file
from imbdiff.data.names import counted, display_name
from imbdiff.data.reading import Reader
from imbdiff.data.source import EncodedSource, Records
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import DataError, listing

LARGEST_RATIO, RATIO_FROM = 1000, 16 * 2**20
"""Bytes unpacked for each packed one that an image of more than 16 MiB may have; deflate reaches 1032 on zeros."""
LONGEST_NAME = 4096
# zipfile unpacks these in pieces of a stated size; others it unpacks without a limit
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UTF8 = 0x800
_ENCRYPTED = 0x2041  # by the old cipher, by a strong one, or the directory too


def open_source(spec: Spec, flippable: bool) -> EncodedSource:
    spec.finish(())
    return ZipSource(user_path(spec.rest), spec.text, flippable)


class ZipSource(EncodedSource):
    """Image files in class folders inside a ``.zip`` file; the rules are those of a folder.

    Where everything is in a single folder, as in photos.zip/photos/cat/1.png, that one is the root, and the names of
    the images are those below it.

    Raises:
        DataError: no such file, or no zip file; members that are refused, all listed; what a folder is refused for.
    """

    kind = "zip"

    def __init__(self, path: Path, name: str | None = None, flippable: bool = False) -> None:
        where = name or str(path)
        check_file(path)
        found = os.stat(path)
        reader = ZipReader(str(path), found.st_size, found.st_mtime_ns)
        members = _members(reader, where)
        root = _root(MemberTree(members, where))
        start = f"{root}/" if root else ""
        inside = {path[len(start) :]: place for path, place in members.items() if path.startswith(start)}
        listed = Listing(MemberTree(inside, where))
        beside = [path for path in members if not path.startswith(start) and not start.startswith(path)]
        listed.ignored[HIDDEN] += len({path.split("/")[0] for path in beside if _is_hidden(path)})
        listed.not_images += (others := [path for path in beside if not _is_hidden(path)])
        listed.ignored[OTHER] += len(others)
        names, records = listed.records(where)
        records = {
            split: Records(found.ids, found.labels, [inside[name] for name in found.ids])
            for split, found in records.items()
        }
        notes = [f"the classes are the folders inside {root}/, the only folder in {where}"] if root else []
        super().__init__(where, names, records, reader, flippable, (*notes, *listed.warnings()))


class MemberTree(Tree):
    """The folders that the names of an archive's members imply; names of folders end with a slash."""

    def __init__(self, members: Iterable[str], name: str) -> None:
        self.name = name
        self._found: dict[str, list[Entry]] = {"": []}
        for path in members:
            parent, _, own = path.rpartition("/")
            self._enter(parent)
            if own:
                self._found[parent].append(Entry(own, path, False, True))
        for entries in self._found.values():
            entries.sort()

    def __str__(self) -> str:
        return self.name

    def entries(self, folder: str) -> list[Entry]:
        return self._found[folder]

    def inner(self, folder: str) -> str:
        return f"an archive of what is in {folder}/"

    def _enter(self, folder: str) -> None:
        """Makes a folder and those above it."""
        made = []
        while folder not in self._found:
            self._found[folder] = []
            made.append(folder)
            folder = folder.rpartition("/")[0]
        for path in made:
            parent, _, own = path.rpartition("/")
            self._found[parent].append(Entry(own, path, True, False))


@dataclass(frozen=True)
class ZipReader(Reader):
    """Members of a zip file; places are their names as `zipfile` has them.

    Attributes:
        path: the archive.
        size, time: its size in bytes and time of change in nanoseconds when it was opened; another is another archive.
    """

    path: str
    size: int
    time: int

    def open(self, place: str) -> BinaryIO:
        try:
            lock, archive = self.archive()
            # `read(n)` unpacks no more than n bytes, whatever the packed data hold, and then compares the checksum
            with lock, archive.open(place) as member:
                return BytesIO(member.read(archive.getinfo(place).file_size))
        except Exception as error:  # zipfile raises anything on damaged archives
            raise UnusableImageError(f"cannot be read from the archive: {_reason(error)}") from error

    def stamp(self, place: str) -> str:
        try:
            info = self.archive()[1].getinfo(place)
        except Exception as error:  # it changed or vanished; opening says so
            return _reason(error)
        return f"{info.CRC:08x} {info.file_size}"

    def archive(self) -> tuple[threading.Lock, zipfile.ZipFile]:
        """The open archive, and its lock: ZipFile counts its open members without one. Raises anything on damage."""
        return _opened(self.path, self.size, self.time, os.getpid())


@lru_cache(maxsize=8)
def _opened(path: str, size: int, time: int, process: int) -> tuple[threading.Lock, zipfile.ZipFile]:
    # by process, because an open file that two processes share has one position
    found = os.stat(path)
    if (found.st_size, found.st_mtime_ns) != (size, time):
        raise UnusableImageError("the archive has changed since it was listed")
    return threading.Lock(), zipfile.ZipFile(path)


def _members(reader: ZipReader, where: str) -> dict[str, str]:
    """{path: name as zipfile has it} of an archive's members, without empty parts and dots.

    Raises:
        DataError: no zip file, or members that are refused, all of them listed.
    """
    try:
        infos = reader.archive()[1].infolist()
    except Exception as error:  # as above
        raise DataError(
            f"{where} is no readable zip file: {_reason(error)}", "download or pack it again; it may be cut off"
        ) from error
    members: dict[str, str] = {}
    refused = []
    for info in infos:
        name = _name(info)
        path = "/".join(part for part in name.split("/") if part not in ("", "."))
        path += "/" if path and name.endswith(("/", "/.")) else ""
        why = _why_refused(info, name) or ("more than one member of this name" if path in members else "")
        if why:
            refused.append(f"{display_name(name, 200)}: {why}")
        elif path:
            members[path] = info.filename
    if refused:
        raise DataError(
            f"{counted(len(refused), 'member')} of {where} cannot be used:\n{listing(refused)}",
            "unpack it with a program that you trust, look at these files, and give the folder",
        )
    return members


def _why_refused(info: zipfile.ZipInfo, name: str) -> str:
    if "\0" in info.orig_filename:
        return "control characters in its name"
    hidden = _is_hidden(name)
    unsafe = _why_unsafe(display_name(name, LONGEST_NAME + 1) if hidden else name)  # macOS has a hidden "Icon\r"
    if unsafe or hidden:
        return unsafe
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a symbolic link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "neither a file nor a folder"
    if info.flag_bits & _ENCRYPTED:
        return "encrypted"
    if splitext(name)[1].lower() not in EXTENSIONS:
        return ""  # never unpacked
    if info.compress_type not in _METHODS:
        return f"packed by method {info.compress_type}; only stored and deflated images are read"
    if info.file_size > LARGEST:
        return f"unpacks to {info.file_size:,} bytes, more than {LARGEST:,}"
    if info.file_size > max(RATIO_FROM, LARGEST_RATIO * info.compress_size):
        return f"unpacks from {info.compress_size:,} to {info.file_size:,} bytes: may be a decompression bomb"
    return ""


def _why_unsafe(name: str) -> str:
    """Why a path must not be used below a root, "" if it may; forward slashes separate its parts."""
    if not name:
        return "no name"
    if len(name) > LONGEST_NAME:
        return f"a name of {len(name):,} characters"
    if any(char < " " or "\x7f" <= char < "\xa0" for char in name):
        return "control characters in its name"
    if "\\" in name:
        return "backslashes in its name"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "an absolute path"
    return "leads out of the root" if ".." in name.split("/") else ""


def _name(info: zipfile.ZipInfo) -> str:
    """A member's name. Names that do not say that they are UTF-8 often are: macOS packs them so."""
    if info.flag_bits & _UTF8:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "__")) for part in path.split("/") if part != ".")


def _root(tree: MemberTree) -> str:
    """The folder that holds the class or split folders: inside folders that are alone, as archives often have one."""
    root = ""
    while True:
        folders, images = _inside(tree, root)
        if len(folders) != 1 or images:
            return root
        (inner,) = folders
        is_split = any(inner.rpartition("/")[2].lower() in names for names in SPLIT_FOLDERS.values())
        deeper, images = _inside(tree, inner)
        if is_split or images or not deeper:
            return root
        root = inner


def _inside(tree: MemberTree, folder: str) -> tuple[list[str], bool]:
    """The folders in a folder that are not hidden, and whether images are next to them."""
    shown = [entry for entry in tree.entries(folder) if not entry.hidden]
    return [entry.path for entry in shown if entry.folder], any(entry.image for entry in shown)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
