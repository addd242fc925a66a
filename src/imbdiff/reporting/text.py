"""Words and numbers as they are printed: names made harmless, numbers with as many digits as they support.

Class names are data. The template engine escapes them; handled here are unprintable characters, names too long for a
label, and glyphs that the plotting font does not have.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.ft2font import FT2Font

from imbdiff.runtime.progress import duration

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
_SPACES = {ord(c): " " for c in "\n\r\t"}
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(value: object) -> str:
    """`value` as text that any reader can show: control characters, direction overrides and lone surrogates replaced.

    Lone surrogates come from file names that are not valid in the file system's encoding, and cannot be written as
    UTF-8; a direction override would mirror the text that follows it. Line breaks and tabs become spaces, and the home
    folder ``~``: its path has a person's name.
    """
    text = _without_home(str(value).translate(_SPACES))
    if text.isascii() and text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in _OVERRIDES else c for c in text)


def _without_home(text: str) -> str:
    """A quote of the shell in front of the path moves behind the tilde, which is not read inside quotes."""
    for place in _homes(os.path.expanduser("~")):
        if place in text:
            text = re.sub(rf"(?<![\w/.-])('?){re.escape(place)}/", r"~/\1", text)
            text = re.sub(rf"(?<![\w/.-]){re.escape(place)}(?![\w/.-])", "~", text)
    return text


@cache
def _homes(home: str) -> set[str]:
    return {home, os.path.realpath(home)} - {"/", "~"}


def shorten(value: object, limit: int) -> str:
    """`value` cleaned and cut to `limit` characters, the last an ellipsis where something was left out."""
    text = clean(value)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def font_path() -> Path:
    """The plotting font: DejaVu Sans, which comes with matplotlib, so that plots are alike everywhere."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(str(font_path())).get_charmap())


def label(value: object, fallback: str, limit: int = 16) -> str:
    """`value` for use inside a plot; `fallback` (such as "#7") where the plotting font lacks one of its characters."""
    text = shorten(value, limit)
    return fallback if not text.strip() or any(ord(c) not in _glyphs() for c in text) else text


def labels(values: Sequence[object], numbers: Sequence[int], limit: int = 16) -> list[str]:
    """:func:`label` of several that can be told apart: where beginnings are equal, the ends are kept too."""
    made = [label(value, f"#{k}", limit) for value, k in zip(values, numbers, strict=True)]
    for cut in (limit // 2, limit // 4):
        seen = Counter(made)
        for i, text in enumerate(made):
            full = clean(values[i])
            if seen[text] > 1 and len(full) > limit:
                made[i] = label(f"{full[:cut].rstrip()}…{full[cut + 1 - limit :]}", text, limit)
    seen = Counter(made)
    return [f"#{k} {text}"[:limit] if seen[text] > 1 else text for text, k in zip(made, numbers, strict=True)]


def is_finite(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """A number with `digits` decimals, fewer for large ones; an en dash where there is none."""
    if not is_finite(value):
        return NOTHING
    size = abs(value)
    if isinstance(value, int):
        text = f"{value:,}"
    elif size >= 1000:
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


def with_sd(mean: float | None, sd: float | None) -> tuple[str, str]:
    """A mean, and "± 0.012" or nothing."""
    return number(mean), "" if mean is None or sd is None else f"± {number(sd)}"


def estimate(
    value: float | None, low: float | None, high: float | None, decimals: int | None = None
) -> tuple[str, str]:
    """A number and its interval ("0.05 to 0.20", or nothing), with equally many decimals.

    Args:
        decimals: None: three digits of the largest, two where all are below 0.1.
    """
    size = max((abs(x) for x in (value, low, high) if x is not None and math.isfinite(x)), default=0.0)
    if decimals is None:
        decimals = min(8, max(0, (2 if size >= 0.1 else 1) - math.floor(math.log10(size)))) if size else 2

    def text(x: float | None) -> str:
        return NOTHING if x is None or not math.isfinite(x) else f"{x:,.{decimals}f}".replace("-", MINUS)

    return text(value), "" if low is None or high is None else f"{text(low)} to {text(high)}"


def seconds(value: Any) -> str:
    """A duration: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if not is_finite(value):
        return NOTHING
    return f"{value:.1f} s" if value < 9.95 else duration(value)


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
