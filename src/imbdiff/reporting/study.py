"""The page of a study: the recommendation and the commands that apply it, the grid, and one look at the test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imbdiff.data.names import counted
from imbdiff.reporting.curated import HEADS, Section
from imbdiff.reporting.plots import Plot
from imbdiff.reporting.report import render
from imbdiff.reporting.study_plot import MAX_LEVELS, MAX_LINES, MAX_PANELS, Level, Line, sweep_plot
from imbdiff.reporting.tables import CLASS_MEAN, Cell, points
from imbdiff.reporting.text import NOTHING, clean, flatten, number, seconds, shorten

MAX_ROWS = 200
MAX_GROUPS = 8
MAX_MISSING = 50
MAX_BOARDS = 6
BOARD_RAREST = 3
BOARD_OTHERS = 1


@dataclass(frozen=True)
class GridRow:
    """One arm or cell; `cells` follow the mean over classes and the groups."""

    name: str
    number: str
    curation: str
    recipe: str
    use: str
    images: Cell
    cells: tuple[Cell, ...]
    badge: str
    synthetic: bool


@dataclass(frozen=True)
class ScopeRow:
    """The difference of the two finalists in one scope."""

    scope: str
    difference: str
    tone: str
    n: str


@dataclass(frozen=True)
class Board:
    """What one policy keeps and drops for one number of images; `file` holds the scores of all."""

    policy: str
    number: str
    file: str
    section: Section


def build_study(found: Mapping[str, Any], boards: Sequence[Board] = ()) -> str:
    """The page as HTML text with no reference to anything outside it, from what ``study.json`` holds.

    Caps, all stated on the page: 200 rows, 8 groups in tables, 8 lines, 3 arms and 6 panels in the plot, 50 classes
    without validation images, 200 choices of images, boards of 6 policies with 3 rare classes and one other each.
    """
    picked, test = found.get("recommendation"), found.get("test")
    groups = [str(g) for g in found["groups"]]
    rows = sorted(found["rows"], key=lambda row: -_score(row))
    shown = rows[:MAX_ROWS]
    missing = [clean(name) for name in found["missing"]]
    exploratory = found.get("exploratory")
    protocol = found["protocol"]
    choices = list(found.get("curated") or ())
    trained = sum(row["validation"] is not None or not row["reason"] for row in rows)
    return render(
        "study.html.j2",
        title=f"Study of {shorten(found['run'], 120)}",
        sentence=_sentence(found),
        tone=_tone(test),
        tested=_tested(picked, test, exploratory is not None),
        looks=_looks(found.get("looks") or ()),
        apply=[clean(line) for line in found["apply"]],
        facts=[
            (number(trained), "compared", "cells and arms without synthetic images"),
            (number(trained * len(protocol["seeds"])), "classifiers", f"{protocol['steps']:,} steps each"),
            (number(protocol["n_val"]), "validation images", "they choose"),
            (
                number(protocol["n_test"]),
                "test images",
                "looked at after the choice" if test else "looked at" if exploratory else "not looked at",
            ),
        ],
        plot=_plot(rows, groups, picked),
        plot_notes=_plot_notes(rows, groups),
        scopes=[CLASS_MEAN, *groups[:MAX_GROUPS]],
        rows=[_grid_row(row, groups[:MAX_GROUPS], picked) for row in shown],
        rows_left=len(rows) - len(shown),
        groups_left=max(0, len(groups) - MAX_GROUPS),
        missing=missing[:MAX_MISSING],
        missing_left=max(0, len(missing) - MAX_MISSING),
        rule=clean(picked["rule"]) if picked else "",
        equal=[clean(name) for name in picked["equal"][:20]] if picked else [],
        finalists=[(clean(n), _accuracies(block, groups[:MAX_GROUPS])) for n, block in test["numbers"].items()]
        if test
        else [],
        differences=_differences(test),
        exploratory=[
            (clean(row["name"]), _accuracies(row["numbers"], groups[:MAX_GROUPS]))
            for row in (exploratory or {"rows": []})["rows"][:MAX_ROWS]
        ],
        chosen=[_chosen(row) for row in choices[:MAX_ROWS]],
        chosen_left=max(0, len(choices) - MAX_ROWS),
        boards=[Board(clean(b.policy), shorten(b.number, 60), clean(b.file), b.section) for b in boards[:MAX_BOARDS]],
        boards_left=max(0, len({row["policy"] for row in choices}) - MAX_BOARDS),
        explored=0 if exploratory is None else exploratory["compared"],
        protocol=[*flatten(protocol), *flatten(found["grid"], "grid"), ("time", seconds(found["seconds"]))],
        command=clean(found["command"]),
    )


def _score(row: Mapping[str, Any]) -> float:
    value = None if row["validation"] is None else row["validation"]["mean"]["balanced"]
    return -1.0 if value is None else float(value)


def _row_of(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(row for row in found["rows"] if row["name"] == name)


def _sentence(found: Mapping[str, Any]) -> str:
    picked = found.get("recommendation")
    if not picked:
        why = found.get("why_not") or {"reason": "validation images of some classes are missing.", "remedy": ""}
        return clean(f"No recommendation: {why['reason']} {why['remedy']}").strip()
    row = _row_of(found, picked["name"])
    end = f"of {picked['compared']} compared on validation images."
    if row["images"]:
        text = (
            f"Recommended: {picked['name']} ({row['images']:,} synthetic images). Balanced accuracy "
            f"{number(picked['score'])}, against {number(picked['control_score'])} of {picked['control']}, the best "
            f"without synthetic images: the highest {end}"
        )
        return clean(text)
    best = max((r for r in found["rows"] if r["images"]), key=_score, default=None)
    text = f"Recommended: no synthetic images. {picked['name']} has a balanced accuracy of {number(picked['score'])}"
    if best is not None and _score(best) >= 0:
        text += f", against {number(_score(best))} of the best with synthetic images, {best['name']}"
    return clean(f"{text}: the highest {end}")


def _tone(test: Mapping[str, Any] | None) -> str:
    whole = ((test or {}).get("scopes") or {}).get("all") or {}
    if whole.get("low") is None:
        return "none"
    return "good" if whole["low"] > 0 else "bad" if whole["high"] < 0 else "same"


def _looks(looks: Sequence[Mapping[str, Any]]) -> str:
    if not looks:
        return ""
    times = "once" if len(looks) == 1 else f"{len(looks)} times"
    text = f"The test images were looked at {times} in this folder"
    if len(looks) == 1:
        return f"{text}."
    return (
        f"{text}: whoever saw an earlier look may have asked for this grid because of it. Its difference on the test "
        "images is then flattered, as any that was chosen by."
    )


def _chosen(row: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    """policy, number, wanted, candidates, kept, and why the others were not, of one choice."""
    why = ", ".join(f"{HEADS.get(reason, reason)} {n:,}" for reason, n in row["reasons"].items() if reason != "kept")
    counts = (number(row["wanted"]), number(row["candidates"]), number(row["kept"]))
    return (clean(row["policy"]), shorten(row["number"], 60), *counts, clean(why or NOTHING))


def _tested(picked: Mapping[str, Any] | None, test: Mapping[str, Any] | None, revealed: bool) -> str:
    if not picked or not test:
        return ""
    if test["scopes"] is None:
        return "It is the best arm without synthetic images itself: there is nothing to compare on the test images."
    whole = test["scopes"]["all"]
    if whole["difference"] is None:
        return f"On the test images: not compared, {clean(whole['reason'])}."
    only = "looked at after this choice" if revealed else "looked at after this choice and for these two only"
    return clean(
        f"On {counted(whole['n'], 'test image')}, {only}: "
        f"{_between(whole)} points of accuracy against {picked['control']}."
    )


def _between(row: Mapping[str, Any]) -> str:
    return f"{points(row['difference'])} ({points(row['low'])} to {points(row['high'])})"


def _differences(test: Mapping[str, Any] | None) -> list[ScopeRow]:
    rows = []
    for scope, row in ((test or {}).get("scopes") or {}).items():
        if row["difference"] is None:
            rows.append(ScopeRow(clean(scope), clean(row["reason"]), "none", number(row["n"])))
            continue
        tone = "good" if row["low"] > 0 else "bad" if row["high"] < 0 else "same"
        rows.append(ScopeRow(clean(scope), _between(row), tone, number(row["n"])))
    return rows[: MAX_GROUPS + 1]


def _accuracies(block: Mapping[str, Any] | None, groups: Sequence[str]) -> tuple[Cell, ...]:
    """Mean ± standard deviation over seeds, of the mean over classes and of each group."""
    if block is None:
        return tuple(Cell(NOTHING) for _ in range(1 + len(groups)))
    singles = "seeds: " + ", ".join(number(v) for v in block["seeds"])
    cells = [_cell(block["mean"]["balanced"], block["sd"]["balanced"], singles)]
    return (*cells, *(_cell(block["mean"]["groups"].get(g), block["sd"]["groups"].get(g)) for g in groups))


def _cell(mean: float | None, sd: float | None, title: str = "") -> Cell:
    return Cell(number(mean), "" if mean is None or sd is None else f"± {number(sd)}", title)


def _grid_row(row: Mapping[str, Any], groups: Sequence[str], picked: Mapping[str, Any] | None) -> GridRow:
    badge = ""
    if picked and row["name"] == picked["name"]:
        badge = "recommended"
    elif picked and row["name"] == picked["control"]:
        badge = "best without"
    fewer = row["images"] < row["wanted"]
    few = f"of {row['wanted']:,}; {counted(row['short'], 'class', 'classes')} short" if fewer else ""
    synthetic = row["number"] is not None
    return GridRow(
        name=clean(row["name"]),
        number=shorten(row["number"], 60) if synthetic else NOTHING,
        curation=clean(row["curation"] or NOTHING),
        recipe=clean(row["label"]),
        use=clean(row["use"]["words"]) if row["use"] else NOTHING,
        images=Cell(number(row["images"]), few, clean(row["reason"] or "")),
        cells=_accuracies(row["validation"], groups),
        badge=badge,
        synthetic=synthetic,
    )


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """One line per recipe, curation and use; the line of the highest score first."""
    uses = {row["use"]["words"] for row in rows if row["use"]}
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:  # by score
        if row["validation"] is not None and row["number"] is not None:
            found.setdefault((row["label"], row["curation"], row["use"]["words"]), []).append(row)
    lines = []
    for (recipe, curation, use), own in found.items():
        parts = [recipe, "" if curation == "none" else curation, use if len(uses) > 1 else ""]
        made = [(row["images"], _by_scope(row, "mean"), _by_scope(row, "sd")) for row in own]
        lines.append(Line(", ".join(p for p in parts if p), tuple(sorted(made, key=lambda p: p[0]))))
    return lines


def _by_scope(row: Mapping[str, Any], block: str) -> dict[str, float | None]:
    found = row["validation"][block]
    return {CLASS_MEAN: found["balanced"], **found["groups"]}


def _plot(rows: Sequence[Mapping[str, Any]], groups: Sequence[str], picked: Mapping[str, Any] | None) -> Plot | None:
    lines = _lines(rows)
    if not lines:
        return None
    without = [row for row in rows if row["number"] is None and row["validation"] is not None][:MAX_LEVELS]
    best = picked["control"] if picked else None
    levels = [Level(row["name"], _by_scope(row, "mean"), row["name"] == best) for row in without]
    return sweep_plot(lines[:MAX_LINES], levels, [CLASS_MEAN, *groups][:MAX_PANELS])


def _plot_notes(rows: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> list[str]:
    notes = []
    lines = len(_lines(rows))
    without = sum(row["number"] is None and row["validation"] is not None for row in rows)
    if lines > MAX_LINES:
        notes.append(f"Drawn are the {MAX_LINES} of {lines} lines with the highest points; all are in the table.")
    if without > MAX_LEVELS:
        notes.append(f"Drawn are the best {MAX_LEVELS} of {without} arms without synthetic images.")
    if len(groups) + 1 > MAX_PANELS:
        notes.append(f"Drawn are {MAX_PANELS - 1} of {len(groups)} groups.")
    return notes
