"""Reasons why numbers are not printed: each said once, however many scopes and metrics it holds for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

LONG = 30
"""Characters from the first to the last number that differs, above which only the first of several is written."""
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def template(reason: str) -> str:
    """The reason with its numbers taken out: what reasons must share to be said as one."""
    return _NUMBER.sub("#", reason)


def merged(reasons: Sequence[tuple[str, str]]) -> str:
    """One sentence for (scope, reason) pairs of one template.

    Numbers in which they differ are listed with the scopes they belong to: "50 images are needed; here 12 (few),
    40 (medium)".
    """
    first = reasons[0][1]
    spans = [[m.span() for m in _NUMBER.finditer(reason)] for _, reason in reasons]
    texts = [[reason[a:b] for a, b in own] for (_, reason), own in zip(reasons, spans, strict=True)]
    differ = [i for i in range(len(spans[0])) if len({own[i] for own in texts}) > 1]
    if not differ:
        return first
    i, j = differ[0], differ[-1]
    parts: dict[str, list[str]] = {}
    for (scope, reason), own in zip(reasons, spans, strict=True):
        parts.setdefault(reason[own[i][0] : own[j][1]], []).append(scope)
    if len(parts) > 2 and max(map(len, parts)) > LONG:
        text, names = next(iter(parts.items()))
        others = dict.fromkeys(scope for own in list(parts.values())[1:] for scope in own)
        listed = f"{text} ({', '.join(names)}; and likewise {', '.join(others)})"
    else:
        listed = ", ".join(f"{text} ({', '.join(dict.fromkeys(names))})" for text, names in parts.items())
    return first[: spans[0][i][0]] + listed + first[spans[0][j][1] :]


@dataclass
class Refusals:
    """Gathers reasons and gives each its mark: 1, 2, ... in the order in which they were met."""

    _found: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, metric: str, scope: str, reason: str) -> None:
        self._found.setdefault((metric, template(reason)), []).append((scope, reason))

    def notes(self) -> tuple[list[str], dict[tuple[str, str], int]]:
        """The sentences, and the number (from 1) of the one that belongs to (metric, template)."""
        by_text: dict[str, list[str]] = {}
        for (metric, _), reasons in self._found.items():
            by_text.setdefault(merged(reasons), []).append(metric)
        places = {key: list(by_text).index(merged(reasons)) + 1 for key, reasons in self._found.items()}
        return [f"{', '.join(names)}: {text}." for text, names in by_text.items()], places
