"""Rows of the page's section on distances: numbers by metric, extractor and reference, or why there are none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imbdiff.data.words import counted
from imbdiff.reporting.tables import Cell
from imbdiff.reporting.text import clean, number

MAX_NUMBERS = 120


@dataclass(frozen=True)
class MetricRow:
    """One scope of a metric; `yardstick` is the same number for the real training images, if there is one."""

    scope: str
    cell: Cell
    yardstick: Cell | None
    n_synthetic: str
    n_reference: str
    note: str = ""


@dataclass(frozen=True)
class MetricTable:
    """All numbers of one metric by one extractor against one reference."""

    metric: str
    direction: str
    extractor: str
    fingerprint: str
    reference: str
    rows: tuple[MetricRow, ...]
    notes: tuple[str, ...] = ()
    refused: str = ""


EXPLAINED = {
    "FD": "FD, the Fréchet distance, compares mean and spread of the features that an extractor sees in synthetic and "
    "in real images, 0 where they agree; it needs many images, counted as the effective n: the number of equally "
    "weighted images worth as much as these, which are weighted to the class mix of the reference.",
    "KD": "KD, the kernel distance, compares such features pair by pair; it is 0 on average where both sets come from "
    "the same distribution, may fall below 0, and serves also where images are few.",
    "agreement": "Agreement is the share of synthetic images that the judge, a classifier used for nothing else, puts "
    "into the class they were made for.",
}
# "; here 12 and 40", ", here 13": what differs between scopes in a reason
_HERE = re.compile(r"[,;] here [^;]*")


def explained(made: Sequence[MetricTable]) -> list[str]:
    """One sentence for each kind of number on the page."""
    kinds = {table.metric.split("[")[0] for table in made}
    return [text for kind, text in EXPLAINED.items() if kind in kinds]


def metric_tables(metrics: Mapping[str, Any]) -> tuple[list[MetricTable], int]:
    """Numbers by metric, extractor and reference, in the order given; and how many were left out by the cap."""
    numbers = list(metrics.get("numbers", ()))
    yardsticks = {_key(entry): entry for entry in metrics.get("yardsticks") or ()}
    tables: dict[tuple[str, str, str, str, str], list[Mapping[str, Any]]] = {}
    for entry in numbers[:MAX_NUMBERS]:
        metric, direction, extractor, fingerprint, reference = (
            clean(entry.get(key) or "") for key in ("metric", "direction", "extractor", "fingerprint", "reference")
        )
        tables.setdefault((metric, direction, extractor, fingerprint, reference), []).append(entry)
    made = []
    for head, entries in tables.items():
        rows = tuple(_metric_row(entry, yardsticks.get(_key(entry))) for entry in entries)
        made.append(MetricTable(*head, rows, (*_yardstick_notes(rows), *_notes(entries)), _refused_throughout(rows)))
    return made, max(0, len(numbers) - MAX_NUMBERS)


def _refused_throughout(rows: Sequence[MetricRow]) -> str:
    """One sentence where every number of a table is refused for the same reason; "" otherwise."""
    reasons = {_HERE.sub("", row.cell.aside) for row in rows}
    kept = [row for row in rows if not row.cell.refused or (row.yardstick and not row.yardstick.refused)]
    return (
        f"Not printed for any scope ({', '.join(row.scope for row in rows)}): {reasons.pop()}."
        if (len(reasons) == 1 and not kept)
        else ""
    )


def _yardstick_notes(rows: Sequence[MetricRow]) -> list[str]:
    """Why numbers of the real training images are refused, one line per reason."""
    scopes: dict[str, list[str]] = {}
    for row in rows:
        if row.yardstick and row.yardstick.refused:
            scopes.setdefault(row.yardstick.aside, []).append(row.scope)
    return [f"* Real training images, refused for {', '.join(names)}: {why}." for why, names in scopes.items()]


def _key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get(key)) for key in ("metric", "scope", "reference", "fingerprint"))


def _metric_row(entry: Mapping[str, Any], yardstick: Mapping[str, Any] | None) -> MetricRow:
    left_out = entry.get("classes_left_out") or 0
    return MetricRow(
        clean(entry.get("scope", "all")),
        metric_cell(entry),
        None if yardstick is None else metric_cell(yardstick),
        number(entry.get("n_synthetic")),
        number(entry.get("n_reference") or None),
        f"{counted(left_out, 'class', 'classes')} left out" if left_out else "",
    )


def _notes(rows: list[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the reader must know of all numbers of a table."""
    notes = []
    if any(entry.get("ranking_only") for entry in rows):
        notes.append("This extractor never saw such images: use its numbers for ranking only.")
    if any(entry.get("judge_saw_reference") for entry in rows):
        notes.append("The judge was trained on these reference images.")
    return tuple(notes)


def metric_cell(entry: Mapping[str, Any]) -> Cell:
    """One number with its interval, or the reason why there is none."""
    if entry.get("refused"):
        return Cell("refused", clean(entry["refused"]), refused=True)
    low, high = entry.get("low"), entry.get("high")
    between = f"{number(low)} to {number(high)}" if low is not None and high is not None else ""
    return Cell(number(entry.get("value")), between)
