"""Rows of the page's tables, from the dicts that measuring and classifying give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imbdiff.data.stats import Groups
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.text import NOTHING, clean, flatten, number, seconds, signed

MAX_NUMBERS = 120
OUTCOMES = {"helped": "good", "hurt": "bad", "no difference": "same"}


@dataclass(frozen=True)
class Cell:
    """A value with what stands beside it in small print."""

    value: str
    aside: str = ""
    title: str = ""
    refused: bool = False


@dataclass(frozen=True)
class MetricTable:
    """All numbers of one metric: a row per scope, columns as far as anything differs."""

    metric: str
    direction: str
    extractor: str
    fingerprint: str
    reference: str
    rows: tuple[tuple[str, Cell, str, str], ...]  # scope, number, n synthetic, n reference


def metric_tables(metrics: Mapping[str, Any]) -> tuple[list[MetricTable], int]:
    """Numbers by metric, extractor and reference, in the order given; and how many were left out by the cap."""
    numbers = list(metrics.get("numbers", ()))
    tables: dict[tuple[str, ...], list[tuple[str, Cell, str, str]]] = {}
    for entry in numbers[:MAX_NUMBERS]:
        head = tuple(
            clean(entry.get(key) or "") for key in ("metric", "direction", "extractor", "fingerprint", "reference")
        )
        row = (
            clean(entry.get("scope", "all")),
            metric_cell(entry),
            number(entry.get("n_synthetic")),
            number(entry.get("n_reference")),
        )
        tables.setdefault(head, []).append(row)
    return [MetricTable(*head, rows=tuple(rows)) for head, rows in tables.items()], max(0, len(numbers) - MAX_NUMBERS)


def metric_cell(entry: Mapping[str, Any]) -> Cell:
    """One number with its interval, or the reason why there is none."""
    if entry.get("refused"):
        return Cell("refused", clean(entry["refused"]), refused=True)
    low, high = entry.get("low"), entry.get("high")
    between = f"{number(low)} to {number(high)}" if low is not None and high is not None else ""
    return Cell(number(entry.get("value")), between)


@dataclass(frozen=True)
class ArmRow:
    """One way of training the classifier; `cells` follow the scopes ("all", then the groups)."""

    name: str
    loss: str
    prior: str
    synthetic: bool
    control: bool
    seeds: int
    cells: tuple[Cell, ...]


def scopes(classifier: Mapping[str, Any], groups: Groups) -> list[str]:
    """"all" and the groups that any arm has an accuracy for, in the order of `groups`."""
    found = {g for arm in classifier.get("arms", ()) for g in _groups(arm.get("mean"))}
    return ["all", *(name for name in groups.names if name in found)]


def of_scope(block: Mapping[str, Any] | None, scope: str) -> float | None:
    """The accuracy of `scope` in a run, mean or sd block: "accuracy" for all, else below "groups"."""
    if not block:
        return None
    value = block.get("accuracy") if scope == "all" else _groups(block).get(scope)
    return None if value is None else float(value)


def _groups(block: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (block or {}).get("groups") or {}


def control_of(classifier: Mapping[str, Any]) -> str:
    """Name of the best arm without synthetic images, "" where none was named."""
    return str((classifier.get("control") or {}).get("arm") or "")


def arm_rows(classifier: Mapping[str, Any], shown: list[str]) -> list[ArmRow]:
    """The arms table: mean ± standard deviation over seeds, per scope."""
    control = control_of(classifier)
    rows = []
    for arm in classifier.get("arms", ()):
        runs = arm.get("runs") or ()
        cells = []
        for scope in shown:
            sd = of_scope(arm.get("sd"), scope) if len(runs) != 1 else None
            singles = ", ".join(number(of_scope(run, scope)) for run in runs)
            aside = "" if sd is None else f"± {number(sd)}"
            cells.append(Cell(number(of_scope(arm.get("mean"), scope)), aside, f"seeds: {singles}" if runs else ""))
        rows.append(
            ArmRow(
                name=clean(arm.get("name", "")),
                loss=clean(arm.get("loss") or NOTHING),
                prior=clean(arm.get("prior") or NOTHING),
                synthetic=bool(arm.get("needs_synthetic")),
                control=bool(control) and arm.get("name") == control,
                seeds=len(runs),
                cells=tuple(cells),
            )
        )
    return rows


def arm_points(classifier: Mapping[str, Any], shown: list[str]) -> list[dict[str, Any]]:
    """The same numbers for the plot of accuracy per group."""
    control = control_of(classifier)
    return [
        {
            "name": str(arm.get("name", "")),
            "synthetic": bool(arm.get("needs_synthetic")),
            "control": bool(control) and arm.get("name") == control,
            "mean": {s: of_scope(arm.get("mean"), s) for s in shown},
            "sd": {s: of_scope(arm.get("sd"), s) for s in shown},
            "seeds": {s: [of_scope(run, s) for run in arm.get("runs") or ()] for s in shown},
        }
        for arm in classifier.get("arms", ())
    ]


@dataclass(frozen=True)
class Verdict:
    """The sentence on top, and one chip per group. `tone` is good, bad, same or none."""

    sentence: str
    tone: str
    chips: tuple[tuple[str, str, str, str], ...] = ()  # scope, outcome, tone, "+0.021 (0.010 to 0.032)"
    against: str = ""
    rule: str = ""


def verdict(classifier: Mapping[str, Any] | None) -> Verdict | None:
    """What the synthetic images were worth, as the comparison found it; None where it was not made."""
    found = (classifier or {}).get("verdict") or {}
    if not found.get("sentence"):
        return None
    chips = []
    for scope, entry in (found.get("per_group") or {}).items():
        outcome = str(entry.get("outcome") or "not compared")
        text = signed(entry.get("difference"))
        if entry.get("low") is not None and entry.get("high") is not None:
            text += f" ({signed(entry['low'])} to {signed(entry['high'])})"
        chips.append((clean(scope), clean(outcome), OUTCOMES.get(outcome, "none"), text))
    tones = {chip[2] for chip in chips}
    tone = next(iter(tones)) if len(tones) == 1 else "mixed" if {"good", "bad"} <= tones else ""
    tone = tone or ("good" if "good" in tones else "bad" if "bad" in tones else "none")
    return Verdict(
        clean(found["sentence"]), tone, tuple(chips), clean(found.get("against") or ""), clean(found.get("rule") or "")
    )


def timing_rows(timings: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(stage, duration, share of the longest in percent); a value may be seconds or {"seconds": ...}."""
    flat = {}
    for stage, value in timings.items():
        spent = value.get("seconds") if isinstance(value, Mapping) else value
        if isinstance(spent, int | float):
            flat[clean(stage)] = float(spent)
    longest = max(flat.values(), default=0.0) or 1.0
    rows = [(stage, seconds(spent), 100 * spent / longest) for stage, spent in flat.items()]
    return [*rows, ("total", seconds(sum(flat.values())), 0.0)] if len(flat) > 1 and "total" not in flat else rows


def protocol_rows(data: ReportData) -> list[tuple[str, str]]:
    """What one must know to repeat the numbers: split, groups, method, judge, classifier, environment."""
    m = data.manifest
    counts = ", ".join(
        f"{len(v) if isinstance(v, list | tuple) and k == 'ids' else _total(v)} {clean(k)}"
        for k, v in (m.get("counts") or {}).items()
    )
    rows = [(clean(k), clean(v)) for k, v in data.protocol.items()]
    rows += [
        ("Source", clean(data.source)),
        ("Training images", f"{data.stats.total:,} in {data.stats.num_classes} classes, imbalance factor "
                            f"{number(data.stats.imbalance_factor, 1)}"),
        ("Split sizes", counts),
        ("Split hash", clean(m.get("hash") or "")),
        ("Groups", clean(data.groups.rule)),
        ("Method", clean(data.method)),
    ]  # fmt: skip
    rows += [(f"Split: {k}", text) for k, text in flatten({k: v for k, v in m.items() if k in _SPLIT_KEYS})]
    return [(k, text) for k, text in rows if text]


_SPLIT_KEYS = ("profile", "protocol", "imbalance_factor", "seed", "val", "val_from", "duplicates", "resize", "size")


def _total(value: Any) -> str:
    """A split's size from a number, a list of counts per class, or {class: count}."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        value = sum(int(n) for n in value if isinstance(n, int | float))
    return number(value) if isinstance(value, int | float) else clean(value)
