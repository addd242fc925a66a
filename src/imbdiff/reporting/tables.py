"""Rows of the page's tables, from the dicts that measuring and classifying give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imbdiff.data.names import counted
from imbdiff.data.stats import Groups
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.text import NOTHING, clean, flatten, number, seconds, shorten, signed

CLASS_MEAN = "mean over classes"
BALANCE, F1, ECE = "Std of groups", "macro-F1", "ECE"
EXTRAS = {BALANCE: "group_sd", F1: "macro_f1", ECE: "ece"}
"""Numbers of an arm beside its accuracies, as the field names them; results of earlier versions lack them."""
HEADS = {"all": "all (top-1)", BALANCE: f"{BALANCE} ↓", ECE: f"{ECE} ↓"}
OUTCOMES = {"helped": "good", "hurt": "bad", "no difference": "same"}


@dataclass(frozen=True)
class Cell:
    """A value with what stands beside it in small print."""

    value: str
    aside: str = ""
    title: str = ""
    refused: bool = False


@dataclass(frozen=True)
class ArmRow:
    """One way of training the classifier; `cells` follow the columns ("all", then the groups).

    `how`: its recipe and prior; `use`: how synthetic images took part.
    """

    name: str
    how: str
    use: str
    synthetic: bool
    control: bool
    judged: bool
    seeds: int
    cells: tuple[Cell, ...]


def scopes(classifier: Mapping[str, Any], groups: Groups) -> list[str]:
    """ "all" and the groups that any arm has an accuracy for, in the order of `groups`."""
    found = {g for arm in classifier.get("arms", ()) for g in _groups(arm.get("mean"))}
    return ["all", *(name for name in groups.names if name in found)]


def columns(classifier: Mapping[str, Any], groups: Groups) -> list[str]:
    """Columns of the arms table: :func:`scopes` with the mean over classes, and those of `EXTRAS` that any arm has."""
    shown = scopes(classifier, groups)
    blocks = [arm.get("mean") for arm in classifier.get("arms", ())]
    extras = [x for x in EXTRAS if x not in shown and any(of_scope(block, x) is not None for block in blocks)]
    return ["all", CLASS_MEAN, *shown[1:], *extras]


def of_scope(block: Mapping[str, Any] | None, scope: str) -> float | None:
    """A number of a run, mean or sd block: accuracy over all images, mean over classes, of a group, or of `EXTRAS`."""
    if not block:
        return None
    whole = {"all": "accuracy", CLASS_MEAN: "balanced_accuracy"}
    if scope not in _groups(block):
        whole |= EXTRAS
    value = block.get(whole[scope]) if scope in whole else _groups(block).get(scope)
    return None if value is None else float(value)


def _groups(block: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (block or {}).get("groups") or {}


def controls_of(classifier: Mapping[str, Any]) -> list[str]:
    """Names of the arms to beat: the one chosen on validation images, or all without synthetic images."""
    control = classifier.get("control") or {}
    return [str(name) for name in control.get("arms") or [control.get("arm")] if name]


def arm_rows(classifier: Mapping[str, Any], shown: list[str]) -> list[ArmRow]:
    """The arms table: mean ± standard deviation over seeds, per scope."""
    controls, judged = controls_of(classifier), (classifier.get("verdict") or {}).get("primary")
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
                how=_how(arm),
                use=_use(arm),
                synthetic=bool(arm.get("needs_synthetic")),
                control=arm.get("name") in controls,
                judged=bool(judged) and arm.get("name") == judged,
                seeds=len(runs),
                cells=tuple(cells),
            )
        )
    return rows


def _how(arm: Mapping[str, Any]) -> str:
    """The arm's recipe, or its loss where results have no recipe, and its prior."""
    parts = (arm.get("recipe") or arm.get("loss"), arm.get("prior") and f"prior: {arm['prior']}")
    return shorten(", ".join(str(part) for part in parts if part), 48)


def _use(arm: Mapping[str, Any]) -> str:
    use = arm.get("use")
    parts = [f"{key} {text}" for key, text in flatten(dict(use)) if text != NOTHING] if isinstance(use, Mapping) else []
    return f"synthetic images: {', '.join(parts)}" if parts else ""


def arm_points(classifier: Mapping[str, Any], shown: list[str]) -> list[dict[str, Any]]:
    """The same numbers for the plot of accuracy per group."""
    controls = controls_of(classifier)
    return [
        {
            "name": str(arm.get("name", "")),
            "synthetic": bool(arm.get("needs_synthetic")),
            "control": arm.get("name") in controls,
            "mean": {s: of_scope(arm.get("mean"), s) for s in shown},
            "sd": {s: of_scope(arm.get("sd"), s) for s in shown},
            "seeds": {s: [of_scope(run, s) for run in arm.get("runs") or ()] for s in shown},
        }
        for arm in classifier.get("arms", ())
    ]


@dataclass(frozen=True)
class Outcome:
    """A comparison in one scope. `tone` is good, bad, same or none; `difference` is in percentage points.

    `kind`: declared beforehand, corrected for the number of comparisons (then `p` is too), or exploratory.
    """

    arm: str
    scope: str
    outcome: str
    tone: str
    difference: str
    against: str
    n: str
    p: str
    kind: str


@dataclass(frozen=True)
class Verdict:
    """The sentence on top and what it rests on; `tone` is that of the outcomes together: mixed if they disagree."""

    sentence: str
    tone: str
    outcomes: tuple[Outcome, ...] = ()
    others: tuple[Outcome, ...] = ()
    rule: str = ""
    no_loss: str = ""


def verdict(classifier: Mapping[str, Any] | None) -> Verdict | None:
    """What the synthetic images were worth, as the comparison found it; None where it was not made."""
    found = (classifier or {}).get("verdict") or {}
    if not found.get("sentence"):
        return None
    own = _outcomes(str(found.get("primary") or ""), found.get("per_group") or {}, judged=True)
    others = [row for name, block in (found.get("other_arms") or {}).items() for row in _outcomes(str(name), block)]
    tones = {row.tone for row in own}
    tone = "mixed" if {"good", "bad"} <= tones else next((t for t in ("good", "bad", "same") if t in tones), "none")
    return Verdict(
        clean(found["sentence"]), tone, tuple(own), tuple(others), clean(found.get("rule") or ""), _no_loss(found)
    )


def _no_loss(found: Mapping[str, Any]) -> str:
    entry = found.get("no_loss")
    if not entry:
        return ""
    margin, low = f"{100 * float(entry['margin']):g} point", points(entry["low"])
    if entry["shown"]:
        return f"Nothing is lost overall: a loss of {margin} or more is ruled out (the interval starts at {low})."
    return f"A loss of {margin} or more overall is not ruled out (the interval starts at {low})."


def _outcomes(arm: str, per_group: Mapping[str, Any], judged: bool = False) -> list[Outcome]:
    rows = []
    for scope, entry in per_group.items():
        outcome = str(entry.get("outcome") or "not measured")
        text = points(entry.get("difference"))
        if entry.get("low") is not None and entry.get("high") is not None:
            text += f" ({points(entry['low'])} to {points(entry['high'])})"
        if outcome == "not measured" and entry.get("reason"):
            text = clean(entry["reason"])
        against, tone = clean(entry.get("against") or ""), OUTCOMES.get(outcome, "none")
        declared = judged and scope == "all"
        kind = "declared beforehand" if declared else "corrected" if entry.get("corrected") else "exploratory"
        kind = NOTHING if outcome == "not measured" and not declared else kind
        p, n = number(entry.get("p_adjusted")), number(entry.get("n"))
        rows.append(Outcome(clean(arm), clean(scope), clean(outcome), tone, text, against, n, p, kind))
    return rows


def points(value: Any) -> str:
    """A difference of accuracies, 0..1, in percentage points with its sign."""
    return signed(None if value is None else 100 * float(value), 1)


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
    counts = ", ".join(f"{_total(n)} {clean(split)}" for split, n in (m.get("counts") or {}).items() if n)
    rows = [(clean(k), clean(v)) for k, v in data.protocol.items()]
    rows += [
        ("Source", clean(data.source)),
        ("Training images", f"{data.stats.total:,} in {counted(data.stats.num_classes, 'class', 'classes')}, "
                            f"imbalance factor {number(data.stats.imbalance_factor, 1)}"),
        ("Split sizes", counts),
        ("Split hash", clean(m.get("hash") or "")),
        ("Groups", clean(data.groups.rule)),
        ("Method", clean(data.method)),
    ]  # fmt: skip
    rows += [("Long tail", ", ".join(f"{k} {text}" for k, text in flatten(m.get("long_tail") or {})))]
    rows += [
        (name, clean(m.get(key) or "")) for name, key in (("Test images", "test_from"), ("Validation", "val_from"))
    ]
    rows += [("Split seed", clean(m.get("seed", "")))]
    machine = [f"{k.rsplit('.', 1)[-1]} {text}" for k, text in flatten(data.environment) if text not in ("", NOTHING)]
    rows.append(("Environment", shorten(", ".join(machine), 240)))
    return [(k, text) for k, text in rows if text]


def _total(value: Any) -> str:
    """A split's size from a number, a list of counts per class, or {class: count}."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        value = sum(int(n) for n in value if isinstance(n, int | float))
    return number(value) if isinstance(value, int | float) else clean(value)
