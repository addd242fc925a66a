"""Names of classes and files are data: how they are counted, shown on one line, and made folder names."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

LONGEST = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9._ +-]+")
_LOOKS_MARKED = re.compile(r"-[0-9a-f]{8}$")
# Device names on Windows, and names that would be taken for a split when the folder is read again.
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", "train", "val", "valid", "validation", "test"}
    | {f"{port}{i}" for port in ("com", "lpt") for i in range(10)},
)


def counted(n: int, one: str, several: str = "") -> str:
    """`n` and its noun, with a verb if there is one; `several` is `one` with an s unless given."""
    return f"{n} {one if n == 1 else several or one + 's'}"


def named(names: Sequence[str], limit: int = 10) -> str:
    """At most `limit` names, quoted, on one line, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more


def shown(names: Sequence[str], limit: int = 3, longest: int = 120) -> str:
    """At most `limit` names on one line, each cut at `longest` characters, and "..." where there are more."""
    return ", ".join(display_name(name, longest) for name in names[:limit]) + (", ..." if len(names) > limit else "")


def is_text(name: str) -> bool:
    """Whether `name` can be written as UTF-8: file names in other encodings, and JSON's ``\\ud800``, cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def display_name(name: str, longest: int = 60) -> str:
    """`name` on one line for a terminal or plot: control characters as "?", cut at `longest` with an ellipsis."""
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def safe_class_dir(name: str) -> str:
    """A folder name for a class that is safe on every file system: ASCII, one path component, at most 73 characters.

    Ordinary names stay as they are. In others unsafe characters are replaced and 8 digits of the name's hash are
    added, so that different names give different folders up to upper and lower case; :func:`safe_class_dirs` tells
    these apart too.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = _UNSAFE.sub("_", plain)[:LONGEST].strip("._ -")
    base = plain.lower().split(".")[0]
    if plain == name and name and base not in _RESERVED and not _LOOKS_MARKED.search(name):
        return name
    return _marked(plain, name)


def safe_class_dirs(names: Sequence[str]) -> tuple[str, ...]:
    """A folder name for every class, all different also where upper and lower case are the same."""
    first = [safe_class_dir(name) for name in names]
    often = Counter(folder.casefold() for folder in first)
    return tuple(
        folder if often[folder.casefold()] == 1 or folder != name else _marked(folder, name)
        for name, folder in zip(names, first, strict=True)
    )


def _marked(plain: str, name: str) -> str:
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain or 'class'}-{mark}"
