"""Paths that others wrote: into lists of files and into archives. None of them may lead out of its root."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.folder import is_inside
from imbdiff.data.listed.tables import is_image_name
from imbdiff.data.names import counted, display_name
from imbdiff.runtime.errors import DataError, listing

LONGEST_NAME = 4096
_DRIVE = re.compile(r"[A-Za-z]:")
_OUT = "leads out of the root"
_USUAL = tuple(e for ending in sorted(EXTENSIONS) for e in (ending, ending.upper()))


def why_unsafe(name: str) -> str:
    """Why a path must not be used below a root, "" if it may; forward slashes separate its parts."""
    if not name:
        return "no name"
    if len(name) > LONGEST_NAME:
        return f"a name of {len(name):,} characters"
    if any(char < " " or "\x7f" <= char < "\xa0" for char in name):
        return "control characters in its name"
    if "\\" in name:
        return "backslashes in its name"
    if name.startswith("/") or _DRIVE.match(name):
        return "an absolute path"
    return _OUT if ".." in name.split("/") else ""


def plain_parts(name: str) -> str:
    """A path without empty parts and single dots; a slash at its end stays."""
    parts = "/".join(part for part in name.split("/") if part not in ("", "."))
    return parts + "/" if parts and name.endswith(("/", "/.")) else parts


@dataclass(frozen=True)
class Found:
    """Files that were found.

    Attributes:
        ids: (N,) paths below the root as they were written, with forward slashes.
        places: (N,) paths below the root of the files; they differ where an ending was added.
        notes: which endings were added.
    """

    ids: list[str]
    places: list[str]
    notes: tuple[str, ...]


def find_files(
    written: Sequence[str], root: Path, extension: str | None, where: str, line: Callable[[int], str]
) -> Found:
    """The files that a list names.

    A path may be absolute if it is below the root. One without the ending of an image that is no file gets `extension`,
    or the only usual ending with which it is one.

    Args:
        written: (N,) paths.
        root: where they begin.
        extension: ".jpg" or "jpg", added to paths without the ending of an image.
        where: what messages call the list.
        line: how messages call a row of it.

    Raises:
        DataError: paths that lead out of the root, also through links; files that do not exist; all listed.
    """
    finder = _Finder(root, extension)
    ids, places = [], []
    out, missing, wrong = [], [], []
    for row, path in enumerate(written):
        name = finder.below_root(path)
        if name is None:
            out.append(f"{line(row)}: {display_name(path, 200)}")
            continue
        place, why = finder.file(name)
        ids.append(name)
        places.append(place)
        if why == _OUT:
            out.append(f"{line(row)}: {display_name(path, 200)} (by a link)")
        elif why == _MISSING:
            missing.append(row)
        elif why:
            wrong.append(f"{line(row)}: {display_name(path, 200)}: {why}")
    if out:
        raise DataError(
            f"{where}: {counted(len(out), 'path leads', 'paths lead')} out of the root {root}:\n{listing(out)}",
            "give a root that holds all images: root=DIR behind the question mark of SOURCE?root=DIR",
        )
    if missing:
        rows = [f"{line(row)}: {display_name(written[row], 200)}" for row in missing]
        raise DataError(
            f"of the {counted(len(written), 'file')} that {where} lists, {len(missing)} cannot be found below {root}:\n"
            f"{listing(rows)}",
            _remedy([finder.below_root(written[row]) or "" for row in missing[:3]], root, extension)
            or (_SOME_MISSING if 2 * len(missing) < len(written) else _ALL_MISSING),
        )
    if wrong:
        raise DataError(
            f"{counted(len(wrong), 'file')} of {where} cannot be used:\n{listing(wrong)}", "replace them, or leave "
            "their lines out",
        )  # fmt: skip
    some = ", ".join(f"{ending} ({n})" for ending, n in sorted(finder.added.items()))
    notes = (f"an ending was added to names in {where}: {some}",) if some else ()
    return Found(ids, places, notes)


_MISSING = "does not exist"
_SOME_MISSING = "add these files, or leave their lines out"
_ALL_MISSING = "say where the images lie: root=DIR behind the question mark of SOURCE?root=DIR"


class _Finder:
    """Looks for files below a root."""

    def __init__(self, root: Path, extension: str | None) -> None:
        self.root = os.path.abspath(root)
        self.real = os.path.realpath(root)
        given = None if extension is None else "." + extension.lstrip(".")
        self.endings = list(_USUAL) if given is None else [given]
        self.added: Counter[str] = Counter()
        self._parent_inside = cache(
            lambda folder: is_inside(os.path.realpath(os.path.join(self.root, folder)), self.real)
        )

    def below_root(self, path: str) -> str | None:
        """A path below the root with forward slashes; None if it leaves the root."""
        path = posixpath.normpath(self._written(path))
        if os.path.isabs(path):
            for root in (self.root, self.real):
                if is_inside(path, root):
                    return os.path.relpath(path, root).replace(os.sep, "/")
            return None
        leaves = path == ".." or path.startswith("../") or (os.name == "nt" and _DRIVE.match(path))
        return None if leaves else path

    def _written(self, path: str) -> str:
        """A path as it is if there is something, otherwise without spaces at its ends, and with forward slashes."""
        if "\\" not in path and path == path.strip():
            return path
        if "\0" not in path and os.path.lexists(os.path.join(self.root, path)):
            return path
        return path.strip().replace("\\", "/")

    def file(self, name: str) -> tuple[str, str]:
        """(path below the root of the file that a name means, why it cannot be used)."""
        why = self._look(name)
        if why != _MISSING or is_image_name(name):
            return name, why
        found = [ending for ending in self.endings if self._look(name + ending) == ""]
        if len(found) > 1:
            # "a.jpg" and "a.JPG" are one file where upper and lower case are the same
            first = os.path.join(self.root, name + found[0])
            found = found[:1] + [e for e in found[1:] if not os.path.samefile(first, os.path.join(self.root, name + e))]
        if len(found) != 1:
            return name, f"exists with the endings {', '.join(found)}" if found else _MISSING
        self.added[found[0]] += 1
        return name + found[0], ""

    def _look(self, name: str) -> str:
        """Why a path below the root is no file that can be used; "" if it can."""
        path = os.path.join(self.root, name)
        try:
            if not self._parent_inside(posixpath.dirname(name)):
                return _OUT
            found = os.lstat(path)
            if stat.S_ISLNK(found.st_mode):
                if not is_inside(os.path.realpath(path), self.real):
                    return _OUT
                found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return _MISSING
        except (OSError, ValueError) as error:  # too long, no permission; a NUL byte
            return getattr(error, "strerror", None) or str(error)
        return "" if stat.S_ISREG(found.st_mode) else "no ordinary file"


def _remedy(missing: Sequence[str], root: Path, extension: str | None) -> str:
    """What to do to have the first few files found, "" if nothing that is near helps."""

    def all_in(folder: Path, ending: str | None) -> bool:
        finder = _Finder(folder, ending)
        return all(finder.file(name)[1] == "" for name in missing)

    if extension is not None and all_in(root, None):
        return "they are found with another ending: leave extension= out"
    near = [Path.cwd(), root.parent]
    try:
        with os.scandir(root) as entries:
            near += [Path(entry.path) for entry in entries if entry.is_dir()][:50]
    except OSError:
        pass
    for folder in near:
        if all_in(folder, extension):
            return f"they are found below {folder}: give root={folder} behind the question mark of SOURCE?root=DIR"
    return ""
