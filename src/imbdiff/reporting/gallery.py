"""Pictures of an inspected set for its page: asked for by name, decoded together, packed into sprites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imbdiff.data.decode import Target
from imbdiff.data.findings.look import pictures
from imbdiff.data.inspect import Inspection
from imbdiff.reporting.sprites import Sprite, pack
from imbdiff.reporting.strips import Tile
from imbdiff.reporting.text import clean

LARGEST = 48
COLUMNS = 16

Place = tuple[str, int]
"""A split and the number of an image in its look."""


@dataclass(frozen=True)
class Sheet:
    """A sprite with the size of its tiles on the page in CSS pixels, and CSS pixels per image pixel."""

    sprite: Sprite | None
    width: int
    height: int
    scale: int


class Gallery:
    """Pictures of one inspected set."""

    def __init__(self, seen: Inspection) -> None:
        self.seen = seen
        self.grey = seen.report["channels"] == 1
        self.target = tile_target([(h, w) for h, w, _ in seen.report["sizes"]])
        self._place: dict[str, Place] = {}
        for split, look in reversed(seen.looks.items()):
            self._place.update((name, (split, i)) for i, name in enumerate(look.ids))

    def place(self, name: str, split: str | None = None) -> Place:
        """Where the image of that id is; of one that several splits have, in `split`."""
        found = self._place[name]
        if split is not None and found[0] != split:
            return split, self.seen.looks[split].ids.index(name)
        return found

    def class_name(self, place: Place) -> str:
        return self.seen.source.class_names[int(self.seen.looks[place[0]].labels[place[1]])]

    def sheet(self, places: Sequence[Place], titles: Sequence[str]) -> tuple[Sheet, list[Tile]]:
        """The pictures at `places` in one sprite, and a tile of each in this order."""
        height, width = self.target.shape
        scale = max(1, round(LARGEST / max(height, width)))
        if not places:
            return Sheet(None, width * scale, height * scale, scale), []
        unique = list(dict.fromkeys(places))
        images: dict[Place, np.ndarray] = {}
        for split in {split for split, _ in unique}:
            numbers = [i for s, i in unique if s == split]
            rows = self.seen.looks[split].rows[np.array(numbers)]
            x = pictures(self.seen.source, split, rows, self.target, self.grey)
            images |= {(split, i): image for i, image in zip(numbers, x, strict=True)}
        sprite = pack([images[place] for place in unique], COLUMNS)
        number = {place: i for i, place in enumerate(unique)}
        tiles = [
            Tile(number[place] % sprite.columns, number[place] // sprite.columns, clean(title))
            for place, title in zip(places, titles, strict=True)
        ]
        return Sheet(sprite, width * scale, height * scale, scale), tiles


def tile_target(sizes: Sequence[tuple[int, int]]) -> Target:
    """What every picture becomes: its own size where all have one of at most 48 pixels; otherwise it is scaled down."""
    if len(sizes) != 1:
        return Target(LARGEST, LARGEST, "pad")
    h, w = sizes[0]
    scale = min(1.0, LARGEST / max(h, w))
    return Target(max(1, round(h * scale)), max(1, round(w * scale)), "stretch")
