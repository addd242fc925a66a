"""The strips of images: for each shown class real ones, synthetic ones, and below each its nearest training image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.reporting.content import ReportData, spread
from imbdiff.reporting.sprites import Sprite, pack, page_size
from imbdiff.reporting.text import clean, number
from imbdiff.runtime.streams import rng

MAX_CLASSES = 30
MAX_COLUMNS = 8
BYTES_PER_CLASS = 150_000  # of raw pixels: keeps a page of 10 classes below 3 MB and one of 30 below 10 MB


@dataclass(frozen=True)
class Tile:
    """A place in the class's sprite, with what is said about the image."""

    column: int
    row: int
    title: str


@dataclass(frozen=True)
class Pair:
    """A synthetic image and, where it is known, the training image nearest to it.

    `copy` marks a distance of exactly 0; `other` names the class of the nearest image where it is another one.
    """

    synthetic: Tile
    nearest: Tile | None
    copy: bool = False
    other: str = ""


@dataclass(frozen=True)
class Strip:
    """One class of the page."""

    name: str
    group: str
    real_count: int
    drawn: int
    sprite: Sprite | None
    width: int  # of a tile on the page, in CSS pixels
    height: int
    scale: int  # CSS pixels per image pixel
    real: tuple[Tile, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Neighbour:
    """The training image nearest to a synthetic one; the distance is None where it was not recorded."""

    index: int
    distance: float | None


def neighbours(nearest: Mapping[str, Any] | None) -> dict[int, Neighbour]:
    """Reads `evaluate(...)["nearest"]` as {synthetic index: neighbour among all training images, of any class}."""
    if not nearest or "index" not in nearest:
        return {}
    rows = zip(nearest["index"], nearest["any_train_index"], nearest["any_distance"], strict=True)
    return {int(i): Neighbour(int(t), None if d is None else float(d)) for i, t, d in rows}


def columns(shape: tuple[int, int, int]) -> int:
    """How many images of one size fit into a class's share of the page, three rows of them: 3 to 8."""
    h, w = page_size(shape)
    return int(np.clip(BYTES_PER_CLASS // (3 * h * w * shape[-1]), 3, MAX_COLUMNS))


def strips(data: ReportData) -> list[Strip]:
    """Strips of at most `MAX_CLASSES` classes, spread over the size ranking, largest class first.

    Images are drawn at random with a fixed seed, so that nobody picked them; synthetic ones whose nearest neighbour
    is known come before the others.
    """
    if data.train is None:
        return []
    near = neighbours(data.nearest)
    return [_strip(data, data.train, k, near) for k in spread(data.by_size, MAX_CLASSES)]


def _strip(data: ReportData, train: ImageSet, k: int, near: dict[int, Neighbour]) -> Strip:
    limit = columns(train.shape)
    images: list[np.ndarray] = []

    def tile(image: np.ndarray, title: str) -> Tile:
        images.append(image)
        return Tile((len(images) - 1) % MAX_COLUMNS, (len(images) - 1) // MAX_COLUMNS, clean(title))

    real = _draw(np.flatnonzero(train.labels == k), limit, "real", k)
    real_tiles = tuple(tile(train.images[i], f"real: {train.ids[i]}") for i in real)
    pairs = []
    synthetic = data.synthetic
    if synthetic is not None and synthetic.shape == train.shape:
        own = np.flatnonzero(synthetic.labels == k)
        known = np.array([i for i in own if int(i) in near], dtype=np.int64)
        for i in _draw(known if len(known) else own, limit, "synthetic", k):
            head = tile(synthetic.images[i], f"synthetic: {synthetic.ids[i]}")
            pairs.append(_pair(head, near.get(i), train, k, tile))
    h, w = page_size(train.shape)
    scale = max(1, round(48 / max(h, w)))
    return Strip(
        name=clean(data.stats.names[k]),
        group=clean(data.groups.names[data.groups.of_class[k]]),
        real_count=data.stats.counts[k],
        drawn=data.filled[k],
        sprite=pack(images, MAX_COLUMNS) if images else None,
        width=w * scale,
        height=h * scale,
        scale=scale,
        real=real_tiles,
        pairs=tuple(pairs),
    )


def _pair(head: Tile, found: Neighbour | None, train: ImageSet, k: int, tile: Any) -> Pair:
    if found is None or not 0 <= found.index < len(train):
        return Pair(head, None)
    away = "" if found.distance is None else f", distance {number(found.distance)}"
    label = int(train.labels[found.index])
    other = "" if label == k else clean(train.class_names[label])
    below = tile(
        train.images[found.index],
        f"nearest training image: {train.ids[found.index]}{away}" + (f", of class {other}" if other else ""),
    )
    return Pair(head, below, copy=found.distance == 0, other=other)


def _draw(indices: np.ndarray, limit: int, what: str, k: int) -> list[int]:
    """At most `limit` of `indices` at random, in ascending order, the same at each call."""
    if len(indices) > limit:
        indices = np.sort(rng(0, "report", what, k).choice(indices, limit, replace=False))
    return indices.tolist()
