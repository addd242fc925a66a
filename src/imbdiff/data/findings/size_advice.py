"""Which size and resize policy to choose for images of given sizes, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imbdiff.data.decode import SMALLEST, Size, parse_size, resolve, suggest
from imbdiff.data.names import counted

MUCH = 0.25
"""Share of an image's area that is much to cut off."""
OFTEN = 0.05
"""Share of images that lose much from which padding is suggested."""


def suggest_size(
    sizes: Mapping[tuple[int, int], int], asked: Size | None
) -> tuple[tuple[int, int] | None, str, list[str]]:
    """(height, width) or None, why, and notes.

    Args:
        sizes: {(height, width): images}.
        asked: what the user has in mind.
    """
    if asked is not None:
        height, width = parse_size(asked)
        smaller = sum(n for (h, w), n in sizes.items() if h < height or w < width)
        are = counted(smaller, "image is", "images are")
        notes = [f"{are} smaller than {height} x {width} and would be enlarged"] if smaller else []
        return (height, width), "as asked for", notes
    if not sizes:
        return None, "no image could be read", []
    side = suggest(sizes)
    if side in sizes and len(sizes) == 1:
        return side, "all images have it", []
    choose = f"choose one with --data.size {side[0]} (--data.resize crop|pad|stretch)"
    if len(sizes) > 1:
        why = "few images need to be enlarged to it, and time grows with the pixels"
        return side, why, [f"{len(sizes)} different sizes: {choose}"]
    if min(only := next(iter(sizes))) < SMALLEST:
        note = f"images of {only[0]} x {only[1]} pixels are too small: {choose}"
        return side, f"each side needs at least {SMALLEST} pixels", [note]
    unasked, _ = resolve(sizes, None, "crop", "")
    note = f"images larger than 64 pixels: {choose}; unasked they become {unasked.height} x {unasked.width}"
    return side, "a first run at a small size takes hours less; time grows with the pixels", [note]


def suggest_resize(
    sizes: Mapping[tuple[int, int], int], target: tuple[int, int] | None
) -> tuple[dict[str, Any], list[str]]:
    """{"policy": crop or pad, "cut_much": images that crop would cut more than a quarter of, "images"}, and notes."""
    total = sum(sizes.values())
    much = 0 if target is None else sum(n for size, n in sizes.items() if cropped(size, target) > MUCH)
    policy = "pad" if much and much >= OFTEN * total else "crop"
    notes = []
    if target is not None and policy == "pad":
        lose = counted(much, "image", "images")
        notes.append(
            f"cropping to the proportions of {target[0]} x {target[1]} would cut off more than a quarter of {lose} of "
            f"{total}: look at --data.resize pad"
        )
    return {"policy": policy, "cut_much": much, "images": total}, notes


def cropped(size: tuple[int, int], target: tuple[int, int]) -> float:
    """Share of an image's area that is lost where it is scaled to cover `target` and cut; both (height, width)."""
    (h, w), (height, width) = size, target
    a, b = h * width, w * height
    return 1 - min(a, b) / max(a, b)
