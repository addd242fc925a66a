"""The section on training: losses, what each term did, and the time of the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from imbdiff.data.names import counted
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.plots import loss_curve
from imbdiff.reporting.text import NOTHING, is_finite, seconds
from imbdiff.runtime.log import COSINE, SHARE

MAX_TERMS = 12
NOT_TERMS = frozenset({"step", "images", "lr", "seconds", "batch", "compared", "grad_norm"})
"""Columns of the training log that are not losses."""
IDLE = 0.01
"""A term whose share of the gradient's norm never reaches this did next to nothing."""


def training(data: ReportData, run: str) -> ui.Section:
    """Loss curves, at most 12; the terms' shares of the gradient; seconds per stage."""
    curves = loss_columns(data.log)
    blocks: list[ui.Block] = [ui.missing("No training log.", f"imbdiff train {run}")]
    if curves:
        plots = [loss_curve("total loss" if term == "loss" else term, *curve) for term, curve in curves.items()]
        small = "Line: median of short stretches of the log; band: 10th to 90th percentile within them."
        blocks = [ui.Figures(plots), ui.note(small)]
    shares = term_shares(data.log)
    if shares:
        rows: list[ui.Cells] = [
            [
                ui.Cell(row.term, "next to nothing" if row.idle else ""),
                f"{100 * row.mean:.1f} %",
                f"{100 * row.least:.1f} to {100 * row.most:.1f} %",
                NOTHING if row.cosine is None else f"{row.cosine:+.2f}",
            ]
            for row in shares
        ]
        heads = [ui.Column(text) for text in ("share of the gradient", "range", "cosine with the base loss")]
        small = (
            "Norm of each weighted term's gradient over the sum of all norms, mean of "
            f"{counted(shares[0].times, 'measurement')} during training. A negative cosine: the term pulls against "
            "the denoising loss."
        )
        blocks += [ui.heading("What each loss term did"), ui.Table(["term", *heads], rows, "short"), ui.note(small)]
    if data.timings:
        times = {**data.timings, "total": sum(data.timings.values())}
        bar = Markup('<i class="bar" style="width:{:.0f}px"></i>')
        longest = max(data.timings.values()) or 1.0
        table: list[ui.Cells] = [
            [stage, seconds(spent), "" if stage == "total" else bar.format(320 * spent / longest)]
            for stage, spent in times.items()
        ]
        blocks += [ui.heading("Time per stage"), ui.Table(["stage", ui.Column("time"), ""], table, "short")]
    return ui.Section("training", "Training", blocks, "Training")


def loss_columns(log: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """(images seen, values) of the total loss, then of each named term, at most 12."""
    found: dict[str, tuple[list[float], list[float]]] = {"loss": ([], [])}
    for row in log:
        for key, value in row.items():
            if key not in NOT_TERMS and not key.startswith((SHARE, COSINE)) and is_finite(value):
                images, values = found.setdefault(key, ([], []))
                images.append(float(row["images"]))
                values.append(float(value))
    return {term: curve for term, curve in list(found.items())[:MAX_TERMS] if curve[0]}


@dataclass(frozen=True)
class TermShare:
    """What a term of the loss contributed to the gradient.

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
    """A row for each term whose share was logged, the largest first; empty where one term trained alone."""
    values: dict[str, list[float]] = {}
    for row in log:
        for key, value in row.items():
            if key.startswith((SHARE, COSINE)) and is_finite(value):
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
