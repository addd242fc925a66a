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
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from imbdiff.data.byproducts import is_hidden
from imbdiff.data.decode import LARGEST, UnusableImageError
from imbdiff.data.folder import OPTIONS, Tree, as_called, by_class, common_root, is_image
from imbdiff.data.labels import check_file
from imbdiff.data.names import counted, display_name
from imbdiff.data.reading import Reader
from imbdiff.data.source import Source
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import DataError, listing

__all__ = ["OPTIONS", "open_source"]

LARGEST_RATIO, RATIO_FROM = 1000, 16 * 2**20
"""Bytes unpacked for each packed one that an image of more than 16 MiB may have; deflate reaches 1032 on zeros."""
LONGEST_NAME = 4096
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What zipfile unpacks in pieces of a stated size; others it unpacks without a limit."""
_UTF8 = 0x800
_ENCRYPTED = 0x2041  # by the old cipher, by a strong one, or the directory too


def open_source(spec: Spec) -> Source:
    """Image files in class folders inside a ``.zip`` file; the rules are those of a folder.

    Where everything is in a single folder, as in photos.zip/photos/cat/1.png, that one is the root, and the names of
    the images are those below it.

    Raises:
        DataError: no such file, or no zip file; members that are refused, all listed; what a folder is refused for.
    """
    path, where = user_path(spec.rest), spec.text
    check_file(path)
    reader = ZipReader(path)
    members = _members(reader, where)
    shown = [name for name in members if not any(is_hidden(part) for part in name.split("/"))]
    folders = {name[:i] for name in shown for i, char in enumerate(name) if char == "/"}
    root = common_root([name for name in shown if is_image(name)], folders)
    start = f"{root}/" if root else ""
    tree = Tree(hidden=len({_hidden_part(name) for name in members} - {""}))
    for name in shown:
        if not name.endswith("/"):
            (tree.images if is_image(name) else tree.others).append(name.removeprefix(start))
    tree.folders = sorted(folder.removeprefix(start) for folder in folders if folder.startswith(start))
    splits, names, notes = by_class(tree, spec)
    if root:
        notes.insert(0, f"the classes are the folders inside {root}/, the only folder in {where}")
    if f"{start}manifest.json" in members:
        splits, names = as_called(splits, names, reader.open(members[f"{start}manifest.json"]).read())
    records = {s: replace(r, places=[members[start + name] for name in r.ids]) for s, r in splits.items()}
    return Source(where, "zip", records, reader, names, notes, strict=spec.strict, spare=False)


class ZipReader(Reader):
    """Members of a zip file; places are their names as `zipfile` has them. A file that changes is not read any more."""

    def __init__(self, path: Path) -> None:
        found = os.stat(path)
        self.path, self.identity = str(path), os.path.abspath(path)
        self.size, self.time = found.st_size, found.st_mtime_ns

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
    """{path: name as zipfile has it} of an archive's members, without empty parts and dots; folders end with a slash.

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
    """Why a member must not be used, "" if it may."""
    hidden = _hidden_part(name) != ""
    kind = stat.S_IFMT(info.external_attr >> 16)
    # macOS packs a hidden "Icon\r"
    control = not hidden and any(char < " " or "\x7f" <= char < "\xa0" for char in name)
    for why, holds in (
        ("control characters in its name", control or "\0" in info.orig_filename),
        ("no name", not name),
        (f"a name of {len(name):,} characters", len(name) > LONGEST_NAME),
        ("backslashes in its name", "\\" in name),
        ("an absolute path", name.startswith("/") or re.match("[A-Za-z]:", name)),
        ("leads out of the root", ".." in name.split("/")),
        ("a symbolic link", kind == stat.S_IFLNK and not hidden),
        ("neither a file nor a folder", kind not in (0, stat.S_IFREG, stat.S_IFDIR) and not hidden),
        ("encrypted", info.flag_bits & _ENCRYPTED and not hidden),
    ):
        if holds:
            return why
    if hidden or not is_image(name):
        return ""  # never unpacked
    if info.compress_type not in _METHODS:
        return f"packed by method {info.compress_type}; only stored and deflated images are read"
    if info.file_size > LARGEST:
        return f"unpacks to {info.file_size:,} bytes, more than {LARGEST:,}"
    if info.file_size > max(RATIO_FROM, LARGEST_RATIO * info.compress_size):
        return f"unpacks from {info.compress_size:,} to {info.file_size:,} bytes: may be a decompression bomb"
    return ""


def _name(info: zipfile.ZipInfo) -> str:
    """A member's name. Names that do not say that they are UTF-8 often are: macOS packs them so."""
    if info.flag_bits & _UTF8:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _hidden_part(path: str) -> str:
    """A path up to its first hidden part; "" where no part is hidden."""
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if is_hidden(part) and part not in (".", "..")), -1)
    return "/".join(parts[: first + 1])


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
