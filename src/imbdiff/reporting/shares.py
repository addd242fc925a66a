"""What each term of the loss had to do with the gradient, from the training log: a section's table and its notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.reporting.plots import finite
from imbdiff.runtime.log import COSINE, SHARE

IDLE = 0.01
"""Share of the gradient's norm below which, for a whole training, a term is said to have done next to nothing."""


@dataclass(frozen=True)
class TermShare:
    """One row of the table.

    Attributes:
        term: objective/term.
        mean, least, most: share of the gradient's norm over the training.
        cosine: its mean cosine with the base loss's gradient; None for a term of that loss.
        times: how often it was measured.
    """

    term: str
    mean: float
    least: float
    most: float
    cosine: float | None
    times: int

    @property
    def idle(self) -> bool:
        """Whether it did next to nothing all the time."""
        return self.most < IDLE


def term_shares(log: Sequence[Mapping[str, Any]]) -> list[TermShare]:
    """A row for each term that the log speaks of, the largest share first; empty where one term trained alone."""
    values: dict[str, list[float]] = {}
    for row in log:
        for key, value in row.items():
            if key.startswith((SHARE, COSINE)) and finite(value):
                values.setdefault(key, []).append(float(value))
    rows = []
    for key, shares in values.items():
        if key.startswith(SHARE):
            term = key.removeprefix(SHARE)
            cosines = values.get(COSINE + term)
            mean = float(np.mean(cosines)) if cosines else None
            rows.append(TermShare(term, float(np.mean(shares)), min(shares), max(shares), mean, len(shares)))
    return sorted(rows, key=lambda row: -row.mean)


def idle_notes(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each term that never had as much as a hundredth of the gradient."""
    return [
        f"the loss term {row.term} never had more than {row.most:.2%} of the gradient's norm ({row.times} "
        "measurements): it did next to nothing. Its weight can be set: `imbdiff methods NAME` lists the constants"
        for row in term_shares(log)
        if row.idle
    ]
