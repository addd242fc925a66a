"""Words and numbers as they are printed: names made harmless, numbers with the digits they deserve.

Class names are data. In HTML the template engine escapes them; what is handled here is the rest: characters that are
not text at all, names too long for a label, and glyphs that the plotting font does not have.
"""

from __future__ import annotations

import math
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.ft2font import FT2Font

from imbdiff.runtime.progress import duration

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"


def clean(value: object) -> str:
    """`value` as text that any reader can show: control characters, direction overrides and lone surrogates replaced.

    Line breaks and tabs become spaces: messages have several lines, and the page breaks them itself.
    Lone surrogates come from file names that are not valid in the file system's encoding, and cannot be written as
    UTF-8; a direction override would mirror the text that follows it.
    """
    text = str(value).translate(_SPACES)
    if text.isascii() and text.isprintable():
        return text
    return "".join(REPLACEMENT if unicodedata.category(c) in ("Cc", "Cs") or c in _OVERRIDES else c for c in text)


_SPACES = {ord(c): " " for c in "\n\r\t"}
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shorten(value: object, limit: int) -> str:
    """`value` cleaned and cut to `limit` characters, the last an ellipsis where something was left out."""
    text = clean(value)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def font_path() -> Path:
    """The plotting font: DejaVu Sans, which comes with matplotlib, so that plots look alike everywhere."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(str(font_path())).get_charmap())


def label(value: object, fallback: str, limit: int = 16) -> str:
    """`value` for use inside a plot; `fallback` (such as "#7") where the plotting font lacks one of its characters."""
    text = shorten(value, limit)
    if not text.strip() or any(ord(c) not in _glyphs() for c in text):
        return fallback
    return text


def number(value: Any, digits: int = 3) -> str:
    """A number with `digits` decimals, fewer for large ones; an en dash where there is none."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return NOTHING
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    size = abs(value)
    if size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 10:
        text = f"{value:.{min(digits, 1 if size >= 100 else 2)}f}"
    elif size and size < 10**-digits:
        text = f"{value:.2g}"
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def signed(value: Any, digits: int = 3) -> str:
    """A difference, with its sign also where it is positive."""
    text = number(value, digits)
    return text if text == NOTHING or text.startswith(MINUS) else f"+{text}"


def seconds(value: Any) -> str:
    """A duration: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NOTHING
    if value < 9.95:
        return f"{value:.1f} s"
    return duration(value)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested dicts as ("a.b", "text") rows, in their order; lists are written on one line."""
    if isinstance(value, dict):
        return [
            row for key, inner in value.items() for row in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list | tuple):
        text = ", ".join(str(item) for item in value)
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = NOTHING if value is None else str(value)
    return [(clean(prefix), shorten(text, 400))]
