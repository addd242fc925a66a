"""How many synthetic images of each class: `sampling_strategy` as imbalanced-learn defines it, and more.

Importing this module costs no more than numpy: `imbdiff inspect` answers without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from imbdiff.data.names import named
from imbdiff.data.stats import ClassStats
from imbdiff.runtime.errors import ConfigError, nearest

STRATEGIES = {
    "minority": "the smallest class is filled to the largest",
    "not minority": "all classes but the smallest are filled to the largest",
    "not majority": "all classes but the largest are filled to it",
    "all": "all classes are filled to the largest, which needs none",
    "auto": "the same as 'not majority'",
    "equal": "of every class, of the largest too, as many synthetic images as the largest has real ones",
}
BETA = 0.99
"""Of the strategy "effective", where none is named."""

Strategy = str | float | Mapping[str, int] | Callable[[ClassStats], Mapping[str, int]]


def images_to_draw(strategy: Strategy, stats: ClassStats) -> tuple[int, ...]:
    """Synthetic images per class.

    Args:
        strategy: one of `STRATEGIES`; a number r in (0, 1], every class is filled to r times the largest (for two
            classes that is imbalanced-learn's meaning; for more, which it refuses, the natural extension);
            "effective=BETA", or "effective" for 0.99: to n_max E(n) / E(n_max) images, of the effective number
            E(n) = (1 - beta^n) / (1 - beta) of n images (Cui et al. 2019, class-balanced loss);
            "equal=R": R n_max images of every class, R in (0, 100], "equal" for 1; {class name: target *total*}, or
            "name=total,name=total"; or a callable that gives such a mapping.
        stats: counts of the training set.

    Returns:
        (C,) numbers of images to *add*.

    Raises:
        ConfigError: unknown word or class, a number out of range, a total below what the class has.
    """
    if callable(strategy):
        strategy = strategy(stats)
    if isinstance(strategy, Mapping):
        return _to_totals(strategy, stats)
    kind, value = parse_strategy(str(strategy))
    counts, top, low = stats.counts, max(stats.counts), min(stats.counts)
    if kind == "totals":
        return _to_totals(value, stats)
    if kind == "share":
        return tuple(max(0, round(value * top) - n) for n in counts)
    if kind == "effective":  # 1 - beta^n, never fewer than there are, as it is concave in n
        number = [-math.expm1(n * math.log(value)) for n in counts]
        return tuple(max(0, round(top * e / max(number)) - n) for e, n in zip(number, counts, strict=True))
    if kind == "equal":
        return (max(1, round(value * top)),) * len(counts)
    chosen = {"minority": lambda n: n == low, "not minority": lambda n: n != low}.get(kind, lambda n: n != top)
    return tuple(top - n if chosen(n) else 0 for n in counts)


def parse_strategy(text: str) -> tuple[str, Any]:
    """A strategy's kind and value: one of `STRATEGIES`, ("equal", times), ("share", r), ("effective", beta) or
    ("totals", {name: n}).

    Raises:
        ConfigError: it is not understood, or out of range, whatever the classes.
    """
    text = text.strip()
    if text == "equal":
        return text, 1.0
    if text in STRATEGIES:
        return text, None
    if (share := _number(text)) is not None:
        if not 0 < share <= 1:
            raise ConfigError(f"sampling strategy {text} must be in (0, 1]", "1.0 fills every class to the largest")
        return "share", share
    word, sign, number = (part.strip() for part in text.partition("="))
    beta = BETA if not sign else _number(number)
    if word == "effective" and beta is not None:
        if not 0 < beta < 1:
            raise ConfigError(
                f"sampling strategy {text} must be in (0, 1)",
                "near 0 fills every class to the largest, near 1 adds nothing",
            )
        return "effective", beta
    if word == "equal" and (times := _number(number)) is not None:
        if not 0 < times <= 100:
            raise ConfigError(f"sampling strategy {text} must be in (0, 100]", "1 is as many as the largest class has")
        return "equal", times
    totals: dict[str, int] = {}
    for item in text.split(","):
        name, sign, total = (part.strip() for part in item.rpartition("="))
        if not sign or not total.isdigit():
            raise ConfigError(
                f"sampling strategy {text!r} is not understood",
                f"use one of {', '.join(STRATEGIES)}, equal=R, effective, effective=BETA, a number in (0, 1], or "
                "NAME=TOTAL,NAME=TOTAL",
            )
        totals[name] = int(total)
    return "totals", totals


def check_names(strategy: str, names: Sequence[str]) -> None:
    """Refuses a strategy that names an unknown class: before any image is read.

    Raises:
        ConfigError: with the nearest names.
    """
    kind, totals = parse_strategy(strategy)
    for name in totals if kind == "totals" else ():
        if name not in names:
            raise unknown_class(name, names)


def parse_numbers(words: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """{class: images} of NAME=50, or of 50 for all classes.

    Raises:
        ConfigError: a word that is neither, an unknown class (with the nearest names), no image at all.
    """
    found: dict[str, int] = {}
    for word in words:
        name, sign, text = word.rpartition("=")
        number = _number(text)
        if number is None or number < 1 or not number.is_integer():
            example = f"{name or names[0]}=50"
            raise ConfigError(
                f"--number {word}: {text!r} is no number of images", f"give it as {example!r}, or as 50 for all"
            )
        if sign and name not in names:
            raise unknown_class(name, names)
        found |= dict.fromkeys([name] if sign else names, int(number))
    return found


def unknown_class(name: str, names: Sequence[str]) -> ConfigError:
    """The error that there is no class of that name."""
    remedy = nearest(name, names, f"the classes are {named(names, 20)}", most=3)
    return ConfigError(f"unknown class {name!r}", remedy)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _to_totals(totals: Mapping[str, int], stats: ClassStats) -> tuple[int, ...]:
    add = dict.fromkeys(stats.names, 0)
    for name, total in totals.items():
        if name not in add:
            raise unknown_class(name, stats.names)
        have = stats.counts[stats.names.index(name)]
        if total < have:
            raise ConfigError(
                f"sampling strategy: {total} images of class {name!r} are fewer than the {have} real ones",
                "totals include the real images; over-sampling removes none",
            )
        add[name] = total - have
    return tuple(add.values())
