"""Two arms beside each other, the best without synthetic images and the judged one: classes, confidence, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.names import counted
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.plots import Plot
from imbdiff.reporting.recognised_plots import Calibration, Recalls, recall_plot, reliability_plot
from imbdiff.reporting.tables import CLASS_MEAN, HEADS, Cell, controls_of, of_scope, scopes
from imbdiff.reporting.text import NOTHING, clean, number, signed

MAX_ROWS = 200
"""Rows of the table of classes: the smallest classes."""
MAX_SINGLE = 200
"""Classes up to which each is drawn; above, the middle and the spread of stretches of the size order."""


@dataclass(frozen=True, eq=False)
class Recognised:
    """What stands below the table of arms; each part may be missing.

    Attributes:
        arms: (name, with synthetic images) of the arms whose recalls are shown, that without them first.
        chosen: how the first was chosen.
        recall, reliability: the plots.
        classes: (class, group, training images, recall per arm, difference in points) from the smallest class.
        hidden: classes that have no row.
        steps: (arm, which weights, cells) with `step_columns`, where the best step was looked for.
    """

    arms: list[tuple[str, bool]]
    chosen: str
    recall: Plot | None
    reliability: Plot | None
    classes: list[tuple[str, str, str, list[Cell], str]]
    hidden: int
    steps: list[tuple[str, str, list[Cell]]]
    step_columns: list[str]

    @property
    def binned(self) -> bool:
        return len(self.classes) + self.hidden > MAX_SINGLE


def recognised(data: ReportData) -> Recognised | None:
    """None where no classifier was trained."""
    classifier = data.classifier or {}
    if not classifier.get("arms"):
        return None
    shown, chosen = pair(classifier)
    known = [arm for arm in shown if _per_class(arm, "mean", data.stats.num_classes).size]
    curves = [_recalls(arm, data) for arm in known]
    columns, steps = _steps(data)
    return Recognised(
        arms=[(clean(one.name), one.synthetic) for one in curves],
        chosen=chosen,
        recall=_recall_plot(curves, data) if curves else None,
        reliability=_reliability(shown),
        classes=_class_rows(curves, data) if curves else [],
        hidden=max(0, data.stats.num_classes - MAX_ROWS) if curves else 0,
        steps=steps,
        step_columns=columns,
    )


def pair(classifier: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str]:
    """The arm without synthetic images and the judged one, as far as they are there, and how the first was chosen.

    The first is the control; where several are, that of the highest mean over classes on the test images, which decides
    nothing but what is shown.
    """
    arms = {str(arm.get("name")): arm for arm in classifier.get("arms") or ()}
    controls = [arms[name] for name in controls_of(classifier) if name in arms]
    found = []
    if controls:
        found.append(max(controls, key=lambda arm: of_scope(arm.get("mean"), CLASS_MEAN) or 0.0))
    judged = arms.get(str((classifier.get("verdict") or {}).get("primary")))
    if judged is not None and judged not in found:
        found.append(judged)
    several = "of the controls, that with the highest mean over classes on the test images: for these pictures only"
    return found, several if len(controls) > 1 else ""


def _per_class(arm: Mapping[str, Any], what: str, c: int) -> np.ndarray:
    """(C,) recall of each class, NaN where there is none; empty where none is known."""
    values = np.array((arm.get(what) or {}).get("per_class") or (), dtype=float)
    return values if values.shape == (c,) and np.isfinite(values).any() else np.zeros(0)


def _recalls(arm: Mapping[str, Any], data: ReportData) -> Recalls:
    c = data.stats.num_classes
    value, sd = _per_class(arm, "mean", c), _per_class(arm, "sd", c)
    return Recalls(str(arm.get("name", "")), bool(arm.get("needs_synthetic")), value, sd if sd.size else np.zeros(c))


def _recall_plot(curves: Sequence[Recalls], data: ReportData) -> Plot:
    order = data.by_size
    group = [data.groups.names[data.groups.of_class[k]] for k in order]
    counts = np.array(data.stats.counts)[order]
    moved = [Recalls(one.name, one.synthetic, one.value[order], one.sd[order]) for one in curves]
    return recall_plot(moved, counts, group, binned=len(order) > MAX_SINGLE)


def _class_rows(curves: Sequence[Recalls], data: ReportData) -> list[tuple[str, str, str, list[Cell], str]]:
    """From the smallest class: those that synthetic images are made for."""
    rows = []
    several = _seeds(data) > 1
    for k in data.by_size[::-1][:MAX_ROWS]:
        cells = [Cell(_share(one.value[k]), f"± {_share(one.sd[k])}" if several else "") for one in curves]
        cells = [Cell(cell.value) if NOTHING in cell.value else cell for cell in cells]
        gap = 100 * (curves[-1].value[k] - curves[0].value[k]) if len(curves) > 1 else float("nan")
        group = data.groups.names[data.groups.of_class[k]]
        name = clean(data.stats.names[k])
        rows.append((name, clean(group), number(data.stats.counts[k]), cells, signed(float(gap), 1)))
    return rows


def _share(value: float) -> str:
    return number(float(value))


def _seeds(data: ReportData) -> int:
    return max((len(arm.get("runs") or ()) for arm in (data.classifier or {}).get("arms") or ()), default=0)


def _reliability(shown: Sequence[Mapping[str, Any]]) -> Plot | None:
    panels = []
    for arm in shown:
        mean = arm.get("mean") or {}
        if mean.get("reliability") and mean.get("ece") is not None:
            name, synthetic = str(arm.get("name", "")), bool(arm.get("needs_synthetic"))
            panels.append(Calibration(name, synthetic, mean["reliability"], mean["ece"], mean.get("ece_chance")))
    return reliability_plot(panels) if panels else None


def _steps(data: ReportData) -> tuple[list[str], list[tuple[str, str, list[Cell]]]]:
    """Per arm the last step and the best by validation images, mean and standard deviation over seeds."""
    classifier = data.classifier or {}
    present = scopes(classifier, data.groups)
    columns = ["all", CLASS_MEAN, *present[-1:]] if len(present) > 1 else ["all", CLASS_MEAN]
    rows: list[tuple[str, str, list[Cell]]] = []
    for arm in classifier.get("arms") or ():
        runs = arm.get("runs") or ()
        best = [run.get("best") for run in runs]
        if not best or not all(best):
            continue
        steps = sorted({int(one["step"]) for one in best})
        which = f"{number(steps[0])} to {number(steps[-1])}" if len(steps) > 1 else number(steps[0])
        last = (classifier.get("protocol") or {}).get("steps")
        rows.append((clean(arm.get("name", "")), f"last: step {number(last)}", _cells(runs, columns)))
        rows.append(
            ("", f"best by validation: {'step' if len(steps) == 1 else 'steps'} {which}", _cells(best, columns))
        )
    return [HEADS.get(scope, clean(scope)) for scope in columns], rows


def _cells(blocks: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[Cell]:
    cells = []
    for scope in columns:
        values = [of_scope(block, scope) for block in blocks]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            cells.append(Cell(NOTHING))
            continue
        sd = f"± {number(float(np.std(known, ddof=1)))}" if len(known) > 1 else ""
        cells.append(Cell(number(float(np.mean(known))), sd, f"{counted(len(known), 'seed')}"))
    return cells
