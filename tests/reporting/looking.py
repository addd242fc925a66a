"""Looking at sections and pages: blocks of a kind, the text of all, axes of a plot."""

from __future__ import annotations

import html as escapes
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from typing import Any, TypeVar

import pytest
from matplotlib.figure import Figure

from imbdiff.reporting import plots
from imbdiff.reporting.blocks import Block, Cell, Fold, Group, Section, Shelf, Table, render

HOSTILE = (
    "<script>alert(1)</script>", "x" * 200, "../x", "a/b", "眼底病変", "$\\frac{1", "\u202eabc\x00\udcff", "two\nlines",
    '"><img src=x onerror=alert(1)>', "{{ 7*7 }}",
)  # fmt: skip
B = TypeVar("B", bound=Block)


def page_of(section: Section | None, *blocks: Block) -> str:
    return render("test", "title", blocks, [section])


def blocks_of(section: Section | None, kind: type[B]) -> list[B]:
    """Those behind folds too."""
    assert section is not None

    def flat(blocks: Sequence[Block]) -> list[Block]:
        return [b for one in blocks for b in ([one, *flat(one.blocks)] if isinstance(one, Fold) else [one])]

    return [block for block in flat(section.blocks) if isinstance(block, kind)]


def tables(section: Section | None) -> list[list[list[str]]]:
    """Rows of the tables, cells as text: value and small print."""
    return [[[plain(cell) for cell in row] for row in table.rows] for table in blocks_of(section, Table)]


def plain(cell: Cell | str) -> str:
    return words(cell if isinstance(cell, str) else f"{cell.text} {cell.small}").strip()


def groups_of(section: Section | None) -> list[Group]:
    return [group for shelf in blocks_of(section, Shelf) for one in shelf.sets for group in one.groups]


def words(html: str) -> str:
    """The text with a space for every tag."""
    body = re.sub(r"<(style|script).*?</\1>|<wbr>", "", html, flags=re.DOTALL)
    return escapes.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def text_of(section: Section | None) -> str:
    return words(page_of(section).split("<main>")[1])


class Tags(HTMLParser):
    """Collects tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def check_page(html: str) -> None:
    """One file that loads nothing and runs nothing but its own script; links lead to sections; text is harmless."""
    html.encode("utf-8")  # a lone surrogate could not be
    found = Tags(html).tags
    for tag, attributes in found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,", "#")), (
                tag,
                name,
                target,
            )
        assert not any(name.startswith("on") for name in attributes), tag
    assert not re.search(r"url\((?!data:image/png;base64,)|@import|https?://", html)
    assert html.count("<script>") == 1
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e]", html)
    known = [a["id"] for _, a in found if a.get("id")]
    assert len(set(known)) == len(known)
    assert {(a.get("href") or "#")[1:] for t, a in found if t == "a"} <= set(known)
    assert "{{" not in re.sub(r"\{\{ 7\*7 \}\}", "", html)


def axes_of(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]) -> list[Any]:
    """The axes that a plot paints, in light colours."""
    made: list[Figure] = []

    def keep(paint: Any, size: tuple[int, int]) -> str:
        figure = Figure(figsize=(size[0] / 96, size[1] / 96))
        paint(figure, plots.LIGHT)
        made.append(figure)
        return ""

    monkeypatch.setattr(plots, "render", keep)
    make()
    return list(made[0].axes)
