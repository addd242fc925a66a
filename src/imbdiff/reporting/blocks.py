"""What a page is made of: a few kinds of blocks, and their rendering as one self-contained HTML file.

A page is a header and a list of sections; a section is a list of blocks. Text is data: the template engine escapes it,
and characters that are no text are replaced. Where markup is meant, it is a :class:`markupsafe.Markup`, made by the
small functions below, which escape what they are given.

Nothing is loaded from anywhere, and a content security policy in the page makes the browser refuse if something tried:
pictures are data, styles are inline, and the only script allowed is the copy button's, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Union

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from imbdiff.reporting.pictures import Sprite, pack
from imbdiff.reporting.plots import Plot
from imbdiff.reporting.text import clean, number
from imbdiff.version import __version__


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        kind: "" for a plain one, or "note" (small print), "alert", "missing" (in a dashed frame), "legend",
            "verdict good", "verdict bad" and so on.
        command: a command line to be copied, below the text.
    """

    text: str
    kind: str = ""
    command: str = ""


@dataclass(frozen=True)
class Cell:
    """An entry of a table or list: a text, and what stands next to it in small print; `title` appears on hovering."""

    text: str
    small: str = ""
    title: str = ""
    style: str = ""


Cells = list[Cell | str]
Block = Union["Heading", "Text", "Items", "Definitions", "Table", "Figures", "Images", "Fold"]


@dataclass(frozen=True)
class Items:
    """A list. `kind`: "warnings" (bullets), "reasons" (numbered), "facts" or "chips"."""

    items: Sequence[Cell | str]
    kind: str = "warnings"


@dataclass(frozen=True)
class Definitions:
    """Pairs of a term and its text."""

    rows: Sequence[tuple[str, str]]
    kind: str = ""


@dataclass(frozen=True)
class Column(Cell):
    """Head of a column of numbers, which are aligned to the right. A plain string heads a column of text."""


@dataclass(frozen=True)
class Row:
    """A table's row; the first cell is its head."""

    cells: Sequence[Cell | str]
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table. `kind`: "dense" for many columns, "compare" for a column per run, "short" for a narrow one."""

    columns: Sequence[Cell | str]
    rows: Sequence[Row | Sequence[Cell | str]]
    kind: str = ""


@dataclass(frozen=True)
class Figures:
    """Plots: one; several of one kind in a grid; or, with a name for each, one at a time to be switched."""

    plots: Sequence[Plot]
    switch: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Picture:
    """An image (H, W, 1 or 3) uint8 with what is said about it; `frame`: "", "near", "near other" or "copied"."""

    image: np.ndarray
    title: str
    frame: str = ""


@dataclass(frozen=True, eq=False)
class Group:
    """Pictures that belong together, with lines of text below; `frame` as of a picture."""

    pictures: Sequence[Picture]
    caption: Sequence[str] = ()
    frame: str = ""


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Groups of pictures under a small heading. `kind`: "real" (in two lines), "synthetic" (pictures of a group above
    each other), or "" (next to each other)."""

    groups: Sequence[Group]
    heading: str = ""
    small: str = ""
    kind: str = ""
    empty: str = "none"


@dataclass(frozen=True, eq=False)
class Shelf:
    """Sets of pictures, with a name and a note on the left where there is one."""

    sets: Sequence[PictureSet]
    name: str = ""
    note: str = ""

    @property
    def images(self) -> list[np.ndarray]:
        return [p.image for one in self.sets for group in one.groups for p in group.pictures]


@dataclass(frozen=True, eq=False)
class Images:
    """A grid of pictures, shelf by shelf."""

    shelves: Sequence[Shelf]


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


@dataclass(frozen=True)
class Page:
    """A page: what it is, its title, what stands on top, and its sections."""

    kind: str
    title: str
    top: Sequence[Block]
    sections: Sequence[Section]


def code(text: object) -> Markup:
    return Markup("<code>{}</code>").format(clean(text))


def name(text: object) -> Markup:
    """A class name, of whatever length and direction."""
    return Markup('<bdi class="name">{}</bdi>').format(clean(text))


def link(anchor: str, text: object) -> Markup:
    """A link to a section of the page."""
    return Markup('<a href="#{}">{}</a>').format(anchor, clean(text))


def span(text: object, style: str, title: str = "") -> Markup:
    """Text with a style; `title` appears on hovering."""
    shown = text if isinstance(text, Markup) else clean(text)
    if title:
        return Markup('<span class="{}" title="{}">{}</span>').format(style, clean(title), shown)
    return Markup('<span class="{}">{}</span>').format(style, shown)


def joined(parts: Iterable[object], by: str = " ") -> Markup:
    """Parts, markup among them, in one text; empty ones are left out."""
    return Markup(by).join(part if isinstance(part, Markup) else clean(part) for part in parts if part)


def fact(value: object, what: str, small: str = "") -> Cell:
    """A key figure."""
    return Cell(joined([Markup("<b>{}</b>").format(clean(value)), what]), small)


def legend(**names: str) -> Text:
    """A legend of colours: ``legend(real="real images", synthetic="synthetic images")``."""
    return Text(joined(span(text, kind) for kind, text in names.items() if text), "legend")


def note(text: str) -> Text:
    """A paragraph in small print."""
    return Text(text, "note")


def missing(what: str, command: str) -> Text:
    """Says what was not computed, and how it is."""
    return Text(f"{what} To compute it:", "missing", command)


def of_all(shown: int, total: int, what: str = "") -> str:
    """ " (30 of 1,000 classes)" where some are left out."""
    return f" ({number(shown)} of {number(total)}{what and ' ' + what})" if shown < total else ""


@dataclass(frozen=True)
class Sheet:
    """A shelf's pictures in one sprite: size of a tile in CSS pixels, and CSS pixels per image pixel."""

    sprite: Sprite
    width: int
    height: int
    scale: int


def sheet(shelf: Shelf) -> Sheet | None:
    """None where the shelf has no picture."""
    images = shelf.images
    if not images:
        return None
    sprite = pack(images, 12)
    scale = max(1, round(48 / max(sprite.height, sprite.width)))
    return Sheet(sprite, sprite.width * scale, sprite.height * scale, scale)


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) else clean(value)


@cache
def _environment() -> Environment:
    """The template engine: everything escaped and cleaned, an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("imbdiff.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    made.filters.update(sheet=sheet, kind=lambda block: type(block).__name__)
    made.tests.update(column=lambda head: isinstance(head, Column), row=lambda row: isinstance(row, Row))
    return made


def render(page: Page) -> str:
    """The page as HTML text, which can be written as UTF-8."""
    folder = resources.files("imbdiff.reporting") / "templates"
    style, script = ((folder / file).read_text(encoding="utf-8") for file in ("style.css", "copy.js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = _environment().get_template("page.html.j2").render(
        page=page, style=Markup(style), script=Markup(script), script_hash=allowed, version=__version__
    )  # fmt: skip
    return html.encode("utf-8", "replace").decode("utf-8")
