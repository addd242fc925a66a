"""Policies: which candidates are kept, as a readable table. Several joined by + must all be met.

Filters come first; then, of those that are left, the first ones in drawing order are kept, or the most diverse.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from imbdiff.recognition.curation.scores import Scores
from imbdiff.recognition.curation.space import APPROXIMATE, IN, OUT
from imbdiff.runtime.errors import ConfigError

REASONS = {
    "kept": "kept",
    "exact copy": "equals a training image",
    "near copy": "nearly equals a training image",
    "other class": "looks like another class",
    "low probability": "the class asked for is not probable enough",
    "out": "too far from the real images of its class",
    "approximate": "not near enough to the real images of its class",
    "in-distribution": "as near to the real images of its class as these are to each other",
    "surplus": "enough others were kept",
}
"""Why a candidate was kept or dropped, in words; of several reasons the first of this table counts."""

Filter = Callable[[Scores, float], dict[str, np.ndarray]]
"""(scores, least probability) -> {reason: (N,) bool of the candidates that are dropped for it}."""


@dataclass(frozen=True)
class Policy:
    """What a policy demands.

    Attributes:
        idea: which images are kept, in words.
        drops: who is dropped, and why; None where nobody is.
        zones: it asks for the zone of a candidate, which needs a class of two different training images.
        diverse: chooses among those that are left by distance, not in drawing order.
    """

    idea: str
    drops: Filter | None = None
    zones: bool = False
    diverse: bool = False


POLICIES = {
    "none": Policy("that were drawn first, whatever they look like"),
    "agreement": Policy(
        "that the working classifier puts into the class asked for",
        lambda s, _: {"other class": ~s.agrees},
    ),
    "confident": Policy(
        "whose probability of the class asked for is at least --curate.confidence",
        lambda s, least: {"low probability": ~(s.probability >= least)},
    ),
    "in-distribution": Policy(
        "that are as near to the real ones of their class as these are to each other",
        lambda s, _: {"out": s.zone == OUT, "approximate": s.zone == APPROXIMATE},
        zones=True,
    ),
    "approximate": Policy(
        "that are somewhat farther from the real ones of their class than these are from each other, but not far off",
        lambda s, _: {"out": s.zone == OUT, "in-distribution": s.zone == IN},
        zones=True,
    ),
    "not-out": Policy(
        "that are not far off the real ones of their class",
        lambda s, _: {"out": s.zone == OUT},
        zones=True,
    ),
    "no-copies": Policy(
        "that are no near copies of training images",
        lambda s, _: {"near copy": s.near_copy},
    ),
    "diverse": Policy(
        "that lie farthest from the real ones of their class and from each other",
        diverse=True,
    ),
}  # fmt: skip
"""Every policy but "none" also drops exact copies of training images."""
_EXCLUDE = {"in-distribution", "approximate"}


def parse_policy(text: str) -> tuple[str, ...]:
    """The names in `text`, such as "agreement+no-copies+diverse", in the order of `POLICIES`.

    Raises:
        ConfigError: an unknown name, "none" beside another, a name given twice, or two that no image can meet.
    """
    names = [name.strip() for name in text.split("+")]
    for name in names:
        if name not in POLICIES:
            near = difflib.get_close_matches(name, POLICIES, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"choose of {', '.join(POLICIES)}, or several joined by +"
            raise ConfigError(f"unknown policy of curation {name!r}", remedy)
    if len(set(names)) < len(names) or ("none" in names and len(names) > 1):
        raise ConfigError(f"policy of curation {text!r}", "name each policy once, and none alone")
    if set(names) >= _EXCLUDE:
        raise ConfigError(
            f"policy of curation {text!r}: no image is both in-distribution and approximate",
            "choose one of the two, or not-out for both",
        )
    return tuple(name for name in POLICIES if name in names)


def in_words(text: str, confidence: float) -> str:
    """What a policy keeps, as one sentence."""
    names = parse_policy(text)
    if names == ("none",):
        return "Kept are the images that were drawn first, as many as are wanted; nothing is asked of them."
    asked = [POLICIES[n].idea for n in names if not POLICIES[n].diverse]
    asked = [
        *(idea.replace("--curate.confidence", f"{confidence:g}") for idea in asked),
        "that equal no training image",
    ]
    listed = ", ".join(asked[:-1]) + " and " * (len(asked) > 1) + asked[-1]
    choice = POLICIES["diverse" if "diverse" in names else "none"].idea.partition(",")[0]
    return f"Kept are images {listed}; of these, as many as are wanted, those {choice}."


def reasons(names: tuple[str, ...], scores: Scores, confidence: float) -> np.ndarray:
    """(N,) object: the reason why each candidate is dropped by the filters of `names`; "" where it is not."""
    dropped: dict[str, np.ndarray] = {}
    if names != ("none",):
        dropped["exact copy"] = scores.exact_copy
    for name in names:
        drops = POLICIES[name].drops
        for reason, rows in (drops(scores, confidence) if drops else {}).items():
            dropped[reason] = dropped.get(reason, np.zeros(len(rows), dtype=bool)) | rows
    found = np.full(len(scores.agrees), "", dtype=object)
    for reason in reversed(REASONS):
        if reason in dropped:
            found[dropped[reason]] = reason
    return found
