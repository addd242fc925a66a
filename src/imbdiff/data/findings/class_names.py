"""Class names that look like slips: two spellings of one name, or the name of a split."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"})


def name_problems(names: Sequence[str]) -> list[tuple[list[str], str]]:
    """(names, why) of class names to look at.

    Names that differ in case, white space, hyphens, invisible characters or Unicode form only; a name beside the same
    one with a number behind it ("cat", "cat2", "cat (1)"); names of splits ("train2"). Names that are numbers, and
    numbered names whose plain form is no class ("class1", "class2"), are in order.
    """
    same: dict[str, list[str]] = defaultdict(list)
    for name in names:
        same[_plain(name)].append(name)
    found = [
        (group, "these names differ in case, spaces, punctuation or Unicode form only")
        for key, group in same.items()
        if key and len(group) > 1
    ]
    numbered: dict[str, list[str]] = defaultdict(list)
    for name in names:
        stem = _stem(name)
        if stem and stem in same:
            numbered[stem].append(name)
    for stem, group in numbered.items():
        found.append(([*same[stem], *group], "the same name, with and without a number behind it"))
    for name in names:
        if (_stem(name) or _plain(name)) in _SPLITS:
            found.append(([name], "this looks like the name of a split, not of a class"))
        elif name != name.strip():
            found.append(([name], "white space before or behind the name"))
    return found


def _plain(name: str) -> str:
    """`name` without what cannot be seen or is often mistyped."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in folded if not (c.isspace() or c in "-_" or unicodedata.category(c) in ("Cf", "Cc")))


def _stem(name: str) -> str:
    """The plain form of a name without the number behind it; "" where it has none."""
    whole = unicodedata.normalize("NFKC", name).strip().removesuffix(")")
    cut = whole.rstrip("0123456789")
    stem = _plain(cut.rstrip("( _.-")) if cut != whole else ""
    return "" if stem.isdecimal() else stem
