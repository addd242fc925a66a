"""How many synthetic images of each class: `sampling_strategy` as imbalanced-learn defines it, and more.

Importing this module costs no more than numpy: `imbdiff inspect` answers without torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from imbdiff.data.stats import ClassStats
from imbdiff.runtime.errors import ConfigError

STRATEGIES = {
    "minority": "the smallest class is filled to the largest",
    "not minority": "all classes but the smallest are filled to the largest",
    "not majority": "all classes but the largest are filled to it",
    "all": "all classes are filled to the largest, which needs none",
    "auto": "the same as 'not majority'",
}
BETA = 0.99
"""Of the strategy "effective", where none is named."""


@dataclass(frozen=True)
class Effective:
    """The strategy "effective=BETA"."""

    beta: float = BETA

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ConfigError(
                f"sampling strategy effective={self.beta:g} must be in (0, 1)",
                "near 0 fills every class to the largest, near 1 adds nothing",
            )

    def number(self, n: int) -> float:
        """E(n) = (1 - beta^n) / (1 - beta), the effective number of n images (Cui et al. 2019, class-balanced loss)."""
        return math.expm1(n * math.log(self.beta)) / math.expm1(math.log(self.beta))

    def add(self, stats: ClassStats) -> tuple[int, ...]:
        """(C,) images that bring class k to n_max E(n_k) / E(n_max): never fewer than it has, as E is concave."""
        top = max(stats.counts)
        return tuple(max(0, round(top * self.number(n) / self.number(top)) - n) for n in stats.counts)


Strategy = str | float | Effective | Mapping[str, int] | Callable[[ClassStats], Mapping[str, int]]


def images_to_draw(strategy: Strategy, stats: ClassStats) -> tuple[int, ...]:
    """Synthetic images per class.

    Args:
        strategy: one of `STRATEGIES`; a number r in (0, 1], every class is filled to r times the largest (for two
            classes that is imbalanced-learn's meaning; for more, which it refuses, the natural extension); "effective"
            or "effective=BETA", see `Effective`; {class name: target *total*}, or "name=total,name=total"; or a
            callable that gives such a mapping.
        stats: counts of the training set.

    Returns:
        (C,) numbers of images to *add*.

    Raises:
        ConfigError: unknown word or class, a number out of range, a total below what the class has.
    """
    if callable(strategy) and not isinstance(strategy, str):
        strategy = strategy(stats)
    if isinstance(strategy, str):
        strategy = _parse(strategy)
    top = max(stats.counts)
    if isinstance(strategy, Mapping):
        return _totals(strategy, stats)
    if isinstance(strategy, Effective):
        return strategy.add(stats)
    if isinstance(strategy, float):
        _check_share(strategy)
        return tuple(max(0, round(strategy * top) - n) for n in stats.counts)
    low = min(stats.counts)
    chosen = {
        "minority": [n == low for n in stats.counts],
        "not minority": [n != low for n in stats.counts],
        "not majority": [n != top for n in stats.counts],
        "all": [True] * stats.num_classes,
        "auto": [n != top for n in stats.counts],
    }[strategy]
    return tuple(top - n if pick else 0 for n, pick in zip(stats.counts, chosen, strict=True))


def check_strategy(strategy: str) -> None:
    """Refuses a strategy that no classes could make right.

    Raises:
        ConfigError: it is not understood, or out of range.
    """
    if isinstance(parsed := _parse(strategy), float):
        _check_share(parsed)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"sampling strategy {share} must be in (0, 1]", "1.0 fills every class to the largest")


def _parse(text: str) -> str | float | Mapping[str, int] | Effective:
    text = text.strip()
    if text in STRATEGIES:
        return text
    if text == "effective":
        return Effective()
    # whole numbers from 2 on are the total of a class of that name
    if (found := re.fullmatch(r"effective\s*=\s*([-+.0-9eE]+)", text)) and not re.fullmatch(r"[2-9]|\d\d+", found[1]):
        try:
            return Effective(float(found[1]))
        except ValueError:
            pass
    try:
        return float(text)
    except ValueError:
        pass
    pairs: dict[str, int] = {}
    for item in text.split(","):
        name, sign, total = item.rpartition("=")
        if not sign or not total.strip().isdigit():
            raise ConfigError(
                f"sampling strategy {text!r} is not understood",
                f"use one of {', '.join(STRATEGIES)}, effective, effective=BETA, a number in (0, 1], or "
                "NAME=TOTAL,NAME=TOTAL",
            )
        pairs[name.strip()] = int(total)
    return pairs


def _totals(totals: Mapping[str, int], stats: ClassStats) -> tuple[int, ...]:
    index = {name: k for k, name in enumerate(stats.names)}
    add = [0] * stats.num_classes
    for name, total in totals.items():
        if name not in index:
            raise ConfigError(f"sampling strategy names an unknown class {name!r}", "check its spelling")
        have = stats.counts[index[name]]
        if total < have:
            raise ConfigError(
                f"sampling strategy: {total} images of class {name!r} are fewer than the {have} real ones",
                "totals include the real images; over-sampling removes none",
            )
        add[index[name]] = total - have
    return tuple(add)
