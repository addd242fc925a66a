"""The blocks that pages are made of, and their rendering as one self-contained HTML file.

A page is a header and a list of sections; a section is a list of blocks. Text is data: the template engine escapes it,
and unprintable characters are replaced. Where markup is meant, it is a :class:`markupsafe.Markup`, made by the small
functions below, which escape what they are given.

A page loads nothing: pictures are data, styles are inline, and the only script that its content security policy allows
is that of the copy button, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Union
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from imbdiff.reporting.pictures import Sprite, pack
from imbdiff.reporting.plots import Plot
from imbdiff.reporting.text import clean, number
from imbdiff.version import __version__


@dataclass(frozen=True)
class Text:
    """A paragraph, with a command line to be copied below it.

    Attributes:
        kind: "" for a plain one, or "heading", "note" (small print), "alert", "missing" (in a dashed frame), "legend",
            "verdict good", "verdict bad" and so on.
    """

    text: str
    kind: str = ""
    command: str = ""


@dataclass(frozen=True)
class Cell:
    """An entry of a table or list: a text and small print next to it; `title` appears on hovering."""

    text: str
    small: str = ""
    title: str = ""
    style: str = ""


@dataclass(frozen=True)
class Column(Cell):
    """Head of a column of numbers, which are aligned to the right. A plain string heads a column of text."""


Cells = list[Cell | str]
Block = Union["Text", "Items", "Definitions", "Table", "Figures", "Shelf", "Fold"]


@dataclass(frozen=True)
class Items:
    """A list. `kind`: "warnings" (bullets), "reasons" (numbered), "facts" or "chips"."""

    items: Sequence[Cell | str]
    kind: str = "warnings"


@dataclass(frozen=True)
class Definitions:
    """Pairs of a term and its text; pairs without text are left out."""

    rows: Sequence[tuple[str, str]]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its head, whose style is that of the whole row.

    Attributes:
        kind: "dense" for many columns, "compare" for a column per run, "short" for a narrow one.
    """

    columns: Sequence[Cell | str]
    rows: Sequence[Sequence[Cell | str]]
    kind: str = ""


@dataclass(frozen=True)
class Figures:
    """One plot, or several of one kind in a grid."""

    plots: Sequence[Plot]


@dataclass(frozen=True, eq=False)
class Picture:
    """An image (H, W, 1 or 3) uint8 and its description; `frame`: "", "near" or "near other"."""

    image: np.ndarray
    title: str
    frame: str = ""


@dataclass(frozen=True, eq=False)
class Group:
    """Pictures that belong together, with lines of text below; `frame`: "", "copied" or "other"."""

    pictures: Sequence[Picture]
    caption: Sequence[str] = ()
    frame: str = ""


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Groups of pictures under a small heading. `kind`: "real" (in two lines), "synthetic" (pictures of a group above
    each other), or "" (next to each other)."""

    groups: Sequence[Group]
    heading: str = ""
    kind: str = ""


@dataclass(frozen=True, eq=False)
class Shelf:
    """Sets of pictures in one row, with a name and a note on the left where there is one."""

    sets: Sequence[PictureSet]
    name: str = ""
    note: str = ""

    @property
    def sprite(self) -> Sprite | None:
        """All pictures of the row, in their order."""
        images = [picture.image for one in self.sets for group in one.groups for picture in group.pictures]
        return pack(images, 12) if images else None


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line that opens them. `kind`: "box" frames them."""

    summary: str
    blocks: Sequence[Block]
    open: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page. `nav`: its name in the list of sections; "" leaves it out of the list."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    nav: str = ""


def code(text: object) -> Markup:
    return Markup("<code>{}</code>").format(clean(text))


def name(text: object) -> Markup:
    """A class name, of any length and direction of writing."""
    return Markup('<bdi class="name">{}</bdi>').format(breakable(text))


def breakable(text: object) -> Markup:
    """A name that may be broken after _ - . / and nowhere inside a word."""
    return Markup("").join(
        Markup("{}<wbr>").format(part) if end else Markup("{}").format(part)
        for part, end in re.findall(r"([^_\-./]*([_\-./]+|$))", clean(text)) if part
    )  # fmt: skip


def link(anchor: str, text: object) -> Markup:
    """A link to a section of the page."""
    return Markup('<a href="#{}">{}</a>').format(anchor, clean(text))


def page_link(path: str, text: object) -> Markup:
    """A link to a page that lies below this one: `path` is relative, with "/" between folders."""
    return Markup('<a href="{}">{}</a>').format(quote(path), clean(text))


def span(text: object, style: str, title: str = "") -> Markup:
    """Text with a style; `title` appears on hovering."""
    shown = text if isinstance(text, Markup) else clean(text)
    hover = Markup(' title="{}"').format(clean(title)) if title else Markup("")
    return Markup('<span class="{}"{}>{}</span>').format(style, hover, shown)


def joined(parts: Iterable[object], by: str = " ") -> Markup:
    """Parts, markup among them, in one text; empty ones are left out."""
    return Markup(by).join(part if isinstance(part, Markup) else clean(part) for part in parts if part)


def fact(value: object, what: str, small: str = "") -> Cell:
    """A key figure."""
    return Cell(joined([Markup("<b>{}</b>").format(clean(value)), what]), small)


def chip(scope: str, text: str, tone: str) -> Cell:
    """An outcome of one scope."""
    return Cell(joined([Markup("<b>{}</b>").format(clean(scope)), span(text, "")]), style=tone)


def legend(**names: str) -> Text:
    """A legend of colours: ``legend(real="real images", synthetic="synthetic images")``."""
    return Text(joined(span(text, kind) for kind, text in names.items() if text), "legend")


def heading(text: str) -> Text:
    return Text(text, "heading")


def note(text: str) -> Text:
    """A paragraph in small print."""
    return Text(text, "note")


def missing(what: str, command: str) -> Text:
    """A result that is not there, and the command that computes it."""
    return Text(f"{what} To compute it:", "missing", command)


def of_all(shown: int, total: int, what: str = "") -> str:
    """ " (30 of 1,000 classes)" where some are left out."""
    return f" ({number(shown)} of {number(total)}{what and ' ' + what})" if shown < total else ""


@cache
def _environment() -> Environment:
    """The template engine: everything is escaped and cleaned, an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("imbdiff.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )  # fmt: skip
    made.filters["breakable"] = breakable
    made.filters["kind"] = lambda block: type(block).__name__
    made.tests["column"] = lambda head: isinstance(head, Column)
    return made


def render(kind: str, title: str, top: Sequence[Block], sections: Iterable[Section | None]) -> str:
    """A page as HTML text, which can be written as UTF-8: what it is, its title, blocks on top, sections."""
    folder = resources.files("imbdiff.reporting") / "templates"
    style, script = ((folder / file).read_text(encoding="utf-8") for file in ("style.css", "copy.js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = _environment().get_template("page.html.j2").render(
        kind=kind, title=title, top=top, sections=[section for section in sections if section is not None],
        style=Markup(style), script=Markup(script), script_hash=allowed, version=__version__,
    )  # fmt: skip
    return html.encode("utf-8", "replace").decode("utf-8")
