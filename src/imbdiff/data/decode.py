"""Image files to uint8 arrays: every file type and mode that a user's folder may hold, and nothing guessed.

Grey stays grey, palettes and CMYK become RGB, transparency is put on white, 16-bit values are divided by 257 (the
whole range, the same for every image), the EXIF orientation is applied (not one that a PNG file has behind its pixels,
which its specification says to ignore), and of an animation or of several pages the first counts.

* ``crop``: scaled until it covers the target, then the centre is kept (the default; nothing is distorted).
* ``pad``: scaled until it fits inside the target, then filled up with the median colour of its border.
* ``stretch``: both sides scaled to the target, whatever that does to the proportions.

Scaling is Pillow's bicubic filter with antialiasing, on 8-bit pixels after transparency has been put on white. An
image that has the target size already is not touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from imbdiff.data.names import counted
from imbdiff.runtime.convert import sides_of
from imbdiff.runtime.errors import ConfigError, DataError

POLICIES = ("crop", "pad", "stretch")
MUCH = 0.25
"""Share of an image's area that is much to cut off."""
OFTEN = 0.05
"""Share of images that lose much from which padding is chosen."""
LARGEST_UNASKED = 64
SUGGESTED = 32
SMALLEST = 4

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""The only parsers that are tried, whatever a file is called: others can start outside programs."""
MOST_PIXELS = 89_478_485
"""Pillow's own warning limit: 256 MiB of RGB."""
LARGEST = 256 * 2**20
"""Bytes that an encoded image in an archive or table may have."""
_DEEP_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "P", "PA"})
_GREY_MODES = _DEEP_MODES | {"1", "L", "LA", "La"}
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange height and width
_EXIF_ORIENTATION = 0x0112
_PHOTOMETRIC = 262  # TIFF: 0 = the lowest value is white
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"heim": "HEIC",
           b"mif1": "HEIC", b"msf1": "HEIC", b"crx ": "Canon raw"}  # fmt: skip
_KINDS = (
    (b"\0\0\0\x0cjP  ", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"), (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"), (b"8BPS", "Photoshop"), (b"\x76\x2f\x31\x01", "OpenEXR"), (b"SIMPLE  =", "FITS"),
    (b"<svg", "SVG"), (b"%pdf", "PDF"),
)  # fmt: skip

Size = int | str | tuple[int, int]
File = Path | BinaryIO | Image.Image
"""What is decoded: a file by its path, bytes that can be read and sought, or an image that Pillow opened."""


class UnusableImageError(ValueError):
    """One file that cannot be used, and why; collected and reported together with all others."""


@dataclass(frozen=True)
class Header:
    """What a file says before it is decoded: (height, width) after EXIF rotation, Pillow's mode, whether it is grey.

    Attributes:
        several: it has more than one page or frame, of which the first counts.
    """

    size: tuple[int, int]
    mode: str
    grey: bool
    several: bool = False

    @property
    def deep(self) -> bool:
        """It has more than 8 bits a pixel, as scientific cameras write them."""
        return self.mode in _DEEP_MODES


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
    """(height, width) of an int, "24x32" or a pair; ConfigError if a side is not an integer of at least 4 pixels."""
    sides = sides_of(size) if isinstance(size, str) else tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or any(not isinstance(s, int | np.integer) or s < SMALLEST for s in sides):
        raise ConfigError(
            f"image size {size!r} is not a number of pixels or a (height, width) pair, each at least {SMALLEST}",
            "give for example --data.size 32 or --data.size 24x32",
        )
    return int(sides[0]), int(sides[1])


def suggest(sizes: Mapping[tuple[int, int], int]) -> tuple[int, int]:
    """(height, width) for images whose (height, width) occur as often as `sizes` says; at least one.

    One common size up to 64 pixels stays. Otherwise 32, because time grows with the pixels; where the shorter side of
    every image is below 32, the smallest of these sides but for 5 % of the images, rounded down to a multiple of 4, at
    least 8.
    """
    if len(sizes) == 1 and max(only := next(iter(sizes))) <= LARGEST_UNASKED and min(only) >= SMALLEST:
        return only
    low = common_side(sizes)
    side = SUGGESTED if max(min(size) for size in sizes) >= SUGGESTED else max(8, low // 4 * 4)
    return side, side


def common_side(sizes: Mapping[tuple[int, int], int]) -> int:
    """The smallest of the shorter sides of images, but for 5 % of the images."""
    short = np.repeat([min(size) for size in sizes], list(sizes.values()))
    return int(np.sort(short)[int(OFTEN * len(short))])


def lose_much(sizes: Mapping[tuple[int, int], int], shape: tuple[int, int]) -> int:
    """Images that lose more than a quarter of their area where they are scaled to cover `shape` and cut."""
    areas = {(h, w): (h * shape[1], w * shape[0]) for h, w in sizes}
    return sum(n for size, n in sizes.items() if 1 - min(areas[size]) / max(areas[size]) > MUCH)


def resolve(
    sizes: Mapping[tuple[int, int], int], size: Size | None, policy: str, where: str
) -> tuple[Target, tuple[str, ...]]:
    """The target for images whose (height, width) occur as often as `sizes` says, and notes on what was decided.

    Without a `size`, one common size stays up to 64 pixels; larger images are scaled until the longer side is 64;
    mixed sizes become what :func:`suggest` gives. The policy "auto" is pad where cropping would cut off more than a
    quarter of at least 5 % of the images, otherwise crop.

    Raises:
        ConfigError: an unknown policy or an impossible size.
        DataError: images of fewer than 4 pixels along a side.
    """
    if policy not in (*POLICIES, "auto"):
        raise ConfigError(f"unknown resize policy {policy!r}", f"choose one of {', '.join(POLICIES)}")
    if size is not None or len(sizes) > 1:
        shape = suggest(sizes) if size is None else parse_size(size)
        notes: tuple[str, ...] = ()
        if size is None:
            notes = (
                f"{len(sizes):,} different sizes: images are brought to {shape[0]} x {shape[1]} (height x width); "
                "another size: --data.size N or HxW",
            )
        much = lose_much(sizes, shape)
        padded = policy == "auto" and much > 0 and much >= OFTEN * sum(sizes.values())
        if padded:
            what = f"cropping would cut off more than a quarter of {counted(much, 'image')} of {sum(sizes.values()):,}"
            notes += (f"images are padded to {shape[0]} x {shape[1]}: {what}; otherwise: --data.resize crop|stretch",)
        elif policy == "auto" and size is None:
            notes = (f"{notes[0]}; cropped where proportions differ: --data.resize pad|stretch",)
        return Target(*shape, "pad" if padded else "crop" if policy == "auto" else policy), notes
    policy = "crop" if policy == "auto" else policy
    height, width = next(iter(sizes))
    if min(height, width) < SMALLEST:
        raise DataError(
            f"the images of {where} are {height} x {width} pixels; each side must have at least {SMALLEST}",
            "give a larger --data.size, or check the order of the axes",
        )
    longer = max(height, width)
    if longer <= LARGEST_UNASKED:
        return Target(height, width, policy), ()
    # The shorter side is rounded to a multiple of 8, so that backbones that halve the image three times take it.
    tall, wide = (max(8, round(side * LARGEST_UNASKED / longer / 8) * 8) for side in (height, width))
    target = Target(tall, wide, policy)
    note = (
        f"the images are {height} x {width} pixels (height x width) and were scaled to {target.height} x "
        f"{target.width} ({policy}); another size: --data.size N or HxW"
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
    x = np.asarray(image)
    border = np.median(np.concatenate([x[0], x[-1], x[1:-1, 0], x[1:-1, -1]]), axis=0)
    canvas = Image.new(image.mode, (width, height), int(border) if x.ndim == 2 else tuple(int(v) for v in border))
    canvas.paste(inner, ((width - inner_w) // 2, (height - inner_h) // 2))
    return canvas


def read_header(file: File) -> Header:
    """Height, width and mode of an image file, without decoding its pixels.

    Raises:
        UnusableImageError: empty, unreadable, no image, or too large to be decoded safely.
    """
    with opened(file) as image:
        return header(image)


def decode(
    file: File, target: Target | None, grey: bool, own: tuple[int, int] | None = None, *, no_colour: bool = False
) -> np.ndarray:
    """The pixels of an image file.

    Args:
        target: the size to bring it to; None keeps its own.
        grey: one channel instead of three.
        own: the (height, width) that it must have; None = any.
        no_colour: refuse pixels that are not grey.

    Returns:
        (H, W, 1 or 3) uint8.

    Raises:
        UnusableImageError: empty, truncated, no image, too large, or of a kind whose values have no set range.
    """
    with opened(file) as image:
        return pixels(image, target, grey, own, no_colour=no_colour)


def eight_bit(image: Image.Image) -> Image.Image:
    """`image` of any mode as an opaque 8-bit image of mode L (grey) or RGB."""
    if image.mode in _DEEP_MODES:
        x = np.asarray(image).astype(np.int64)
        if x.min() < 0 or x.max() > 65535:
            raise UnusableImageError(f"32-bit values from {x.min()} to {x.max()}: save it with 8 or 16 bits")
        if image.mode == "I" and image.format == "TIFF" and 0 < x.max() <= 255:
            raise UnusableImageError(f"32-bit values from {x.min()} to {x.max()}, which is black: save it with 8 bits")
        if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
            x = 65535 - x  # Pillow does so with 8 bits
        return Image.fromarray(((x + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise UnusableImageError("floating-point pixels have no set range: save it with 8 or 16 bits")
    mode = "L" if _is_grey(image) else "RGB"
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


@contextlib.contextmanager
def opened(file: File) -> Iterator[Image.Image]:
    """The image in a file; whatever third-party decoders raise on damaged ones becomes an UnusableImageError."""
    try:
        if isinstance(file, Image.Image):  # stays open
            image: Any = contextlib.nullcontext(file)
        elif (file.stat().st_size if isinstance(file, Path) else file.seek(0, 2)) == 0:
            raise UnusableImageError("empty file (0 bytes)")
        else:
            image = Image.open(file, formats=FORMATS)
        with image as found:
            w, h = found.size
            if w * h > MOST_PIXELS:
                raise UnusableImageError(f"{w} x {h} pixels, more than {MOST_PIXELS:,}: may be a decompression bomb")
            yield found
    except UnusableImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnusableImageError(_foreign(file)) from error
    except Exception as error:
        raise UnusableImageError(_reason(error)) from error


def header(image: Image.Image) -> Header:
    """What an opened image says before it is decoded."""
    w, h = image.size
    size = (w, h) if _orientation(image) in _TURNED else (h, w)
    return Header(size, image.mode, _is_grey(image), _several(image))


def pixels(
    image: Image.Image,
    target: Target | None,
    grey: bool,
    own: tuple[int, int] | None = None,
    *,
    no_colour: bool = False,
) -> np.ndarray:
    """The pixels of an opened image, as of :func:`decode`."""
    upright = _orientation(image) == 1  # before loading: PNG may have another orientation behind its pixels
    image.load()
    # each step that has nothing to do is left out: with small images they cost as much as decoding
    flat = eight_bit(image if upright else ImageOps.exif_transpose(image))
    mode = "L" if grey else "RGB"
    if no_colour and not is_colourless(np.asarray(flat)):
        raise UnusableImageError("in colour")
    flat = flat if flat.mode == mode else flat.convert(mode)
    if own is not None and (flat.height, flat.width) != own:
        raise UnusableImageError(f"{flat.height} x {flat.width} pixels in place of {own[0]} x {own[1]}")
    if target is not None:
        flat = fit(flat, target)
    x = np.array(flat, dtype=np.uint8)
    return x[:, :, None] if x.ndim == 2 else x


def is_colourless(x: np.ndarray) -> bool:
    """Whether all pixels (H, W) or (H, W, C) are grey: R = G = B."""
    return x.ndim == 2 or bool((x == x[..., :1]).all())


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    # PNG's getexif decodes the whole file to look for a chunk at its end; `info` holds the usual ones from the start.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
        return 1
    return int(image.getexif().get(_EXIF_ORIENTATION, 1))


def _several(image: Image.Image) -> bool:
    try:  # MPO: a camera's JPEG with its own previews behind it
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first page is damaged
        return False


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB") or [], dtype=np.int64).reshape(-1, 3)
        return len(palette) > 0 and bool((palette == palette[:, :1]).all())
    return image.mode in _GREY_MODES


def _foreign(file: File) -> str:
    """What a file is that no parser knows, by its first bytes, and what to do."""
    if isinstance(file, Path):
        with open(file, "rb") as handle:
            head = handle.read(256)
    else:
        file.seek(0)
        head = file.read(256)  # type: ignore[union-attr]
    kind = next((name for start, name in _KINDS if head.lower().startswith(start.lower())), "")
    if head[4:8] == b"ftyp":
        kind = _BRANDS.get(head[8:12], "video")
    elif head[128:132] == b"DICM":
        kind = "DICOM"
    if kind:
        return f"{kind} data, whatever its name says: convert it to PNG or JPEG"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the image: git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page in place of the image: download it again"
    return "not an image, or damaged at its start"


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MOST_PIXELS:,} pixels: refused, may be a decompression bomb"
    if isinstance(error, PermissionError):
        return "permission denied"
    return f"damaged: {error or type(error).__name__}"
