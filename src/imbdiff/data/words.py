"""Numbers with their nouns: "1 class", "3 classes"."""

from __future__ import annotations


def counted(n: int, one: str, several: str = "") -> str:
    """`n` and its noun, with a verb if there is one; `several` is `one` with an s unless given."""
    return f"{n} {one if n == 1 else several or one + 's'}"
