"""Words: numbers with their nouns ("1 class", "3 classes"), lists of names, and whether a name is text at all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache


def counted(n: int, one: str, several: str = "") -> str:
    """`n` and its noun, with a verb if there is one; `several` is `one` with an s unless given."""
    return f"{n} {one if n == 1 else several or one + 's'}"


def named(names: Sequence[str], limit: int = 10) -> str:
    """At most `limit` names, quoted, on one line, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more


@cache
def is_text(name: str) -> bool:
    """Whether UTF-8 can stand for `name`: file names that are not UTF-8, and JSON's ``\\ud800``, cannot be written."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
