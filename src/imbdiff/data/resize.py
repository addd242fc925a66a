"""The one resize policy: which size all images get, and how an image of another size becomes it.

* ``crop``: scaled until it covers the target, then the centre is kept (the default; nothing is distorted).
* ``pad``: scaled until it fits inside the target, then filled up with the median colour of its border.
* ``stretch``: both sides scaled to the target, whatever that does to the proportions.

Scaling is Pillow's bicubic filter with antialiasing, on 8-bit pixels after transparency has been put on white. An
image that has the target size already is not touched. Without a size, images that all have one size keep it up to
64 pixels; larger ones are scaled until the longer side is 64; mixed sizes are an error, never a guess. The size that
the error and ``imbdiff inspect`` suggest is that of :func:`suggest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from imbdiff.data.words import counted
from imbdiff.runtime.errors import ConfigError, DataError, listing

POLICIES = ("crop", "pad", "stretch")
LARGEST_UNASKED = 64
SUGGESTED = 32
SMALLEST = 4

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Target:
    """What every image becomes: (height, width) pixels, by `policy`."""

    height: int
    width: int
    policy: str

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width


def parse_size(size: Size) -> tuple[int, int]:
    """(height, width) of an int or a pair; ConfigError if a side is not an integer of at least 4 pixels."""
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or any(
        isinstance(s, bool) or not isinstance(s, int | np.integer) or s < SMALLEST for s in sides
    ):
        raise ConfigError(
            f"image size {size!r} is not a number of pixels or a (height, width) pair, each at least {SMALLEST}",
            "give for example --data.size 32",
        )
    return int(sides[0]), int(sides[1])


def suggest(sizes: Mapping[tuple[int, int], int]) -> tuple[int, int]:
    """(height, width) for images whose (height, width) occur as often as `sizes` says; at least one.

    One common size up to 64 pixels stays. Otherwise 32, because time grows with the pixels; where the shorter side of
    every image is below 32, the smallest of these sides, rounded down to a multiple of 4, at least 8.
    """
    if len(sizes) == 1 and max(only := next(iter(sizes))) <= LARGEST_UNASKED and min(only) >= SMALLEST:
        return only
    short = [min(size) for size in sizes]
    side = SUGGESTED if max(short) >= SUGGESTED else max(8, min(short) // 4 * 4)
    return side, side


def resolve(
    sizes: Mapping[tuple[int, int], int], size: Size | None, policy: str, where: str
) -> tuple[Target, tuple[str, ...]]:
    """The target for images whose (height, width) occur as often as `sizes` says, and notes on what was decided.

    Args:
        sizes: {(height, width): number of images}, over all splits.
        size: what the user asked for; None = keep one common size.
        policy: crop, pad or stretch.
        where: name of the source, for the message.

    Raises:
        ConfigError: an unknown policy or an impossible size.
        DataError: mixed sizes and no size asked for.
    """
    if policy not in POLICIES:
        raise ConfigError(f"unknown resize policy {policy!r}", f"choose one of {', '.join(POLICIES)}")
    if size is not None:
        return Target(*parse_size(size), policy), ()
    if len(sizes) > 1:
        seen = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
        rows = [f"{h} x {w} (height x width): {counted(n, 'image')}" for (h, w), n in seen]
        raise DataError(
            f"the images of {where} have {len(sizes)} different sizes:\n{listing(rows, 10)}",
            f"say which size they all get: --data.size {suggest(sizes)[0]} (--data.resize crop|pad|stretch)",
        )
    height, width = next(iter(sizes))
    if min(height, width) < SMALLEST:
        raise DataError(
            f"the images of {where} are {height} x {width} pixels; each side must have at least {SMALLEST}",
            "give a larger --data.size, or check the order of the axes",
        )
    if max(height, width) <= LARGEST_UNASKED:
        return Target(height, width, policy), ()
    # The shorter side is rounded to a multiple of 8, so that backbones that halve the image three times take it.
    scale = LARGEST_UNASKED / max(height, width)
    short = max(8, round(min(height, width) * scale / 8) * 8)
    target = Target(
        LARGEST_UNASKED if height >= width else short, LARGEST_UNASKED if width >= height else short, policy
    )
    note = (
        f"the images are {height} x {width} pixels (height x width) and were scaled to {target.height} x "
        f"{target.width} ({policy}); another size: --data.size N"
    )
    return target, (note,)


def fit(image: Image.Image, target: Target) -> Image.Image:
    """`image` (mode L or RGB) in the target's size; the same object where it has that size already."""
    w, h = image.size
    height, width = target.shape
    if (h, w) == (height, width):
        return image
    if target.policy == "stretch":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    if target.policy == "crop":
        # The part of the original that survives the centre crop, scaled in one go.
        scale = max(width / w, height / h)
        cut_w, cut_h = min(w, width / scale), min(h, height / scale)
        left, top = (w - cut_w) / 2, (h - cut_h) / 2
        return image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + cut_w, top + cut_h))
    scale = min(width / w, height / h)
    inner_w, inner_h = min(width, max(1, round(w * scale))), min(height, max(1, round(h * scale)))
    inner = image.resize((inner_w, inner_h), Image.Resampling.BICUBIC)
    canvas = Image.new(image.mode, (width, height), border_colour(image))
    canvas.paste(inner, ((width - inner_w) // 2, (height - inner_h) // 2))
    return canvas


def border_colour(image: Image.Image) -> int | tuple[int, ...]:
    """The per-channel median of the outermost pixels of an L or RGB image."""
    x = np.asarray(image)
    border = np.concatenate([x[0], x[-1], x[1:-1, 0], x[1:-1, -1]])
    middle = np.median(border, axis=0)
    return int(middle) if x.ndim == 2 else tuple(int(v) for v in middle)
