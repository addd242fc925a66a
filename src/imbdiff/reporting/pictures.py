"""Images for pages and previews: which are shown, and how they are packed into few files, pixels not smoothed."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imbdiff.data.imageset import ImageSet
from imbdiff.reporting.text import font_path, label
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.streams import rng

T = TypeVar("T")
LARGEST_TILE = 64
COLUMNS = 6
"""Images of one kind and class on a page, at most: a page of 30 classes is below 10 MB whatever they show."""


def spread(items: Sequence[int], limit: int) -> list[int]:
    """At most `limit` of `items`, evenly spaced, the first and the last always among them."""
    if len(items) <= limit:
        return list(items)
    places = np.linspace(0, len(items) - 1, limit).round().astype(int)
    return [items[i] for i in places]


def in_turn(items: Sequence[T], kind: Callable[[T], Hashable]) -> list[T]:
    """The first of every kind before the second of any."""
    seen: Counter[Hashable] = Counter()
    turns = []
    for item in items:
        turns.append(seen[kind(item)])
        seen[kind(item)] += 1
    return [items[i] for i in sorted(range(len(items)), key=turns.__getitem__)]


def some(indices: np.ndarray, limit: int, *stream: str | int) -> list[int]:
    """At most `limit` of `indices` at random, in ascending order, the same at each call."""
    if len(indices) > limit:
        indices = np.sort(rng(0, *stream).choice(indices, limit, replace=False))
    return indices.tolist()


def page_size(shape: tuple[int, int, int]) -> tuple[int, int]:
    """(height, width) at which an image goes into the page: its own, or scaled down to 64 on the longer side."""
    h, w, _ = shape
    scale = min(1.0, LARGEST_TILE / max(h, w))
    return max(1, round(h * scale)), max(1, round(w * scale))


def scaled_down(shape: tuple[int, int, int]) -> str:
    """A sentence where images of `shape` are not shown at their own size; otherwise empty."""
    shown = page_size(shape)
    if shown == shape[:2]:
        return ""
    return f"Images of {shape[0]} × {shape[1]} pixels (height × width) are scaled down to {shown[0]} × {shown[1]}."


@dataclass(frozen=True)
class Sprite:
    """Tiles of (height, width) pixels packed into one PNG, a grid of `columns` by `rows`.

    Every tile has a border of one pixel that repeats its own edge, so that a browser that scales the sheet by an odd
    factor cannot let the neighbouring tile bleed in.
    """

    uri: str
    columns: int
    rows: int
    height: int
    width: int

    @property
    def scale(self) -> int:
        """CSS pixels per image pixel."""
        return max(1, round(48 / max(self.height, self.width)))


def data_uri(image: Image.Image) -> str:
    """`image` as a data: address (PNG)."""
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def pack(images: Sequence[np.ndarray], columns: int = 8) -> Sprite:
    """Packs at least one image, all (H, W, C) uint8 of one size, grey or RGB, into a sprite, row by row."""
    h, w = page_size(images[0].shape)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    channels = max(image.shape[-1] for image in images)
    sheet = np.zeros((rows * (h + 2), columns * (w + 2), channels), np.uint8)
    for i, image in enumerate(images):
        if image.shape[:2] != (h, w):
            small = _to_pil(image).resize((w, h), Image.Resampling.LANCZOS)
            image = np.asarray(small).reshape(h, w, -1)
        y, x = (i // columns) * (h + 2), (i % columns) * (w + 2)
        sheet[y : y + h + 2, x : x + w + 2] = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return Sprite(data_uri(_to_pil(sheet)), columns, rows, h, w)


def sample_grid(images: ImageSet, per_class: int = 8, max_classes: int = 10) -> Image.Image:
    """A preview: one row per class, one column per sample, pixels enlarged by a whole factor.

    Args:
        images: any number per class; the first `per_class` of each class are shown, missing ones are left blank.
        per_class: columns.
        max_classes: rows at most; of more classes an even spread over the label order is shown.

    Returns:
        An RGB picture. Rows are headed by the class name, or by "#label" where the font lacks its characters.

    Raises:
        DataError: there are no images, or no room for any.
    """
    if not len(images) or per_class < 1 or max_classes < 1:
        raise DataError(f"nothing to preview: {len(images)} images, per_class={per_class}, max_classes={max_classes}")
    h, w, _ = images.shape
    scale = max(1, round(40 / max(h, w)))
    th, tw, gap = h * scale, w * scale, 3
    font = ImageFont.truetype(str(font_path()), 12)
    shown = spread(np.unique(images.labels).tolist(), max_classes)
    heads = [label(images.class_names[k], f"#{k}", limit=18) for k in shown]
    left = 12 + max(int(font.getlength(text)) for text in heads)
    step = max(th, 16) + gap
    sheet = Image.new("RGB", (left + per_class * (tw + gap), gap + len(shown) * step), (255, 255, 255))
    canvas = ImageDraw.Draw(sheet)
    for row, (k, text) in enumerate(zip(shown, heads, strict=True)):
        y = gap + row * step
        canvas.text((left - 8, y + th / 2), text, fill=(60, 66, 78), font=font, anchor="rm")
        for column, i in enumerate(np.flatnonzero(images.labels == k)[:per_class]):
            tile = _to_pil(images.images[i]).convert("RGB").resize((tw, th), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + column * (tw + gap), y))
    return sheet
