"""Pictures side by side on the page of an inspection: duplicates, labels that disagree, images among another class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imbdiff.data.findings.text import one_of_each
from imbdiff.reporting.gallery import Gallery, Place, Sheet
from imbdiff.reporting.strips import Tile
from imbdiff.reporting.text import clean, shorten

MAX_PAIRS = 24
MAX_SUSPICIOUS = 24


@dataclass(frozen=True)
class Shown:
    """Pictures side by side: a tile and a caption for each, what is said of all, and whether to mark them."""

    tiles: tuple[Tile, ...]
    captions: tuple[str, ...]
    said: str
    marked: bool = False


@dataclass(frozen=True)
class Board:
    """Groups of pictures with the sprite they come from; `total`: how many there are in all."""

    sheet: Sheet
    rows: tuple[Shown, ...]
    total: int


def exact(report: Mapping[str, Any], gallery: Gallery) -> Board:
    """Groups of equal images: across splits first. Captions are names, as the pictures are equal."""
    found = [(ids, True) for ids in report["duplicates"]["across"]]
    found += [(ids, False) for ids in report["duplicates"]["within"]]
    groups = []
    for ids, across in found[:MAX_PAIRS]:
        places = [gallery.place(name) for name in ids[:2]]
        more = f"and {len(ids) - 2} more" if len(ids) > 2 else ""
        groups.append((places, [shorten(name, 60) for name in ids[:2]], more, across))
    return _board(gallery, groups, len(found))


def near(row: Mapping[str, Any], gallery: Gallery) -> Board:
    groups = []
    for first, second, ratio in row["pairs"][:MAX_PAIRS]:
        places = [gallery.place(first, row["first"]), gallery.place(second, row["second"])]
        names = [shorten(name, 60) for name in (first, second)]
        other = gallery.class_name(places[0]) != gallery.class_name(places[1])
        groups.append((places, names, f"ratio {ratio:.2f}" + (", different classes" if other else ""), other))
    return _board(gallery, groups, row["near"])


def conflicts(report: Mapping[str, Any], gallery: Gallery) -> Board:
    """Exact, then near duplicates that carry different labels."""
    labels, groups = report["labels"], []
    for kind, what in (("duplicates", "equal"), ("near_duplicates", "nearly equal")):
        for row in labels[kind]:
            groups.append((one_of_each(row)[:3], what))
    shown = [
        ([gallery.place(image) for image, _ in row], [shorten(name, 40) for _, name in row], what, what == "equal")
        for row, what in groups[:MAX_PAIRS]
    ]
    return _board(gallery, shown, len(groups))


def suspicious(report: Mapping[str, Any], gallery: Gallery) -> Board:
    """The image with its label, and the nearest of the other class."""
    found = report["labels"]["suspicious"]
    groups = []
    for row in found["images"][:MAX_SUSPICIOUS]:
        places = [gallery.place(name, "train") for name in (row["image"], *row["neighbours"])]
        captions = [f"label: {shorten(row['label'], 40)}", f"near: {shorten(row['other'], 40)}"]
        groups.append((places, captions, f"{shorten(row['image'], 60)}: {row['votes']} of {found['k']}", True))
    return _board(gallery, groups, found["found"])


def _board(gallery: Gallery, groups: Sequence[tuple[Sequence[Place], Sequence[str], str, bool]], total: int) -> Board:
    places = [place for group, *_ in groups for place in group]
    titles = [f"{gallery.seen.looks[split].ids[i]}, {gallery.class_name((split, i))}" for split, i in places]
    sheet, tiles = gallery.sheet(places, titles)
    rows, at = [], 0
    for group, captions, said, marked in groups:
        rows.append(Shown(tuple(tiles[at : at + len(group)]), tuple(clean(c) for c in captions), clean(said), marked))
        at += len(group)
    return Board(sheet, tuple(rows), total)
