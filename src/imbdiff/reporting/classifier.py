"""The comparison of classifiers: the verdict, the arms by group, recall of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imbdiff.data.names import counted
from imbdiff.data.stats import Groups
from imbdiff.recognition.scores import Scores
from imbdiff.recognition.verdict import Comparison
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.class_plot import SINGLE, Classes, Panel, class_plot
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.plots import Plot, Theme, plot, style_axes
from imbdiff.reporting.text import flatten, label, number, shorten, signed, with_sd

CLASS_MEAN = "mean over classes"
WHOLE = {
    "all": "accuracy", CLASS_MEAN: "balanced_accuracy", "Std of groups": "group_sd", "macro-F1": "macro_f1",
    "ECE": "ece",
}  # fmt: skip
"""Columns besides the groups, and the scores behind them."""
HEADS = {"all": "all (top-1)", "Std of groups": "Std of groups ↓", "ECE": "ECE ↓"}
TONES = {"helped": "good", "hurt": "bad", "no difference": "same"}
MAX_ROWS = 200
SPAN = 0.04
"""The least width of an axis of accuracies."""

Found = Mapping[str, Any]
"""What `imbdiff.recognition.comparison.classify` gave, as JSON."""


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of training the classifier, and its scores on test images.

    Attributes:
        synthetic: trained with synthetic images.
        control: an arm to beat: the one chosen on validation images, or any without synthetic images.
        judged: the arm whose comparison leads the verdict.
        how: recipe, prior, and how synthetic images took part.
        mean, sd, runs: over seeds, and of each.
    """

    name: str
    synthetic: bool
    control: bool
    judged: bool
    how: str
    mean: Scores
    sd: Scores
    runs: tuple[Scores, ...]


def arms_of(classifier: Found | None) -> list[Arm]:
    if not classifier:
        return []
    arms = []
    for row in classifier["arms"]:
        prior = f", prior: {row['prior']}" if row["prior"] else ""
        use = f", {row['use']['schedule']}, weight {row['use']['weight']:g}" if row["use"] else ""
        arms.append(Arm(
            row["name"], row["needs_synthetic"], row["name"] in classifier["control"]["arms"],
            row["name"] == classifier["verdict"]["primary"], shorten(f"{row['recipe']}{prior}{use}", 48),
            Scores.from_json(row["mean"]), Scores.from_json(row["sd"]), tuple(map(Scores.from_json, row["runs"])),
        ))  # fmt: skip
    return arms


def value_of(found: Scores, column: str) -> float | None:
    """Accuracy of a group, or another number of a column."""
    if column in found.groups:
        return found.groups[column]
    return getattr(found, WHOLE[column]) if column in WHOLE else None


def columns(groups: Groups) -> list[str]:
    """Columns of the table of arms: accuracies, of the groups in the middle, and other numbers."""
    whole = [column for column in WHOLE if column not in groups.present]
    return [*whole[:2], *groups.present, *whole[2:]]


def arm_cells(arm: Arm, shown: Sequence[str]) -> list[ui.Cell]:
    """Mean ± standard deviation over seeds, by column."""
    cells = []
    for column in shown:
        title = "seeds: " + ", ".join(number(value_of(run, column)) for run in arm.runs)
        if column == "ECE" and arm.mean.ece_chance is not None:
            title += f"; by chance alone {number(arm.mean.ece_chance)}"
        cells.append(ui.Cell(*with_sd(value_of(arm.mean, column), value_of(arm.sd, column)), title))
    return cells


def points(value: float | None) -> str:
    """A difference of accuracies, 0..1, in percentage points with its sign."""
    return signed(None if value is None else 100 * value, 1)


def difference_text(row: Comparison) -> str:
    """Percentage points with their interval, or why there are none."""
    if row.difference is None:
        return row.reason or "not measured"
    return f"{points(row.difference)} ({points(row.low)} to {points(row.high)})"


def comparisons(rows: Mapping[str, Found]) -> dict[str, Comparison]:
    return {scope: Comparison(**row) for scope, row in rows.items()}


def outcome_chips(rows: Mapping[str, Found]) -> list[ui.Block]:
    """The outcome of each scope."""
    chips = [
        ui.chip(scope, f"{row.outcome}: {difference_text(row)}", TONES.get(row.outcome, "none"))
        for scope, row in comparisons(rows).items()
    ]
    return [ui.Items(chips, "chips")] if chips else []


def verdict_sentence(classifier: Found | None) -> tuple[str, str]:
    """The sentence on top and its tone: that of the outcomes together, mixed if they disagree; "" if there is none."""
    if not classifier:
        return "", "none"
    tones = {TONES.get(row["outcome"], "none") for row in classifier["verdict"]["per_group"].values()}
    tone = "mixed" if {"good", "bad"} <= tones else next((t for t in ("good", "bad", "same") if t in tones), "none")
    return classifier["verdict"]["sentence"], tone


def verdict(classifier: Found | None, run: str) -> list[ui.Block]:
    """What the synthetic images were worth: the top of the page."""
    sentence, tone = verdict_sentence(classifier)
    if not classifier or not sentence:
        text = "What the synthetic images are worth has not been judged yet: no classifier was trained."
        return [ui.Text(text, "verdict none", f"imbdiff classify {run}")]
    found = classifier["verdict"]
    blocks: list[ui.Block] = [ui.Text(sentence, f"verdict {tone}")]
    if found["per_group"]:
        text = f"Difference of accuracy in percentage points, with its interval. {no_loss(found['no_loss'])}"
        blocks += [*outcome_chips(found["per_group"]), ui.note(text.strip())]
    return [*blocks, ui.Fold("How this is decided", [ui.note(found["rule"])])]


def no_loss(entry: Found | None) -> str:
    """Whether a loss over all classes is ruled out."""
    if not entry:
        return ""
    margin, low = f"{100 * entry['margin']:g} point", points(entry["low"])
    if entry["shown"]:
        return f"Nothing is lost overall: a loss of {margin} or more is ruled out (the interval starts at {low})."
    return f"A loss of {margin} or more overall is not ruled out (the interval starts at {low})."


def classifiers(data: ReportData, run: str) -> ui.Section:
    """The arms with and without synthetic images."""
    title = "Classifier: with and without synthetic images"
    arms, found = arms_of(data.classifier), data.classifier
    if not arms or not found:
        text = "Not computed: no classifier was trained."
        return ui.Section("classifier", title, [ui.missing(text, f"imbdiff classify {run}")], "Classifier")
    blocks = [*_arms(data, found, arms), *_recalls(data, arms)]
    blocks.append(
        ui.Fold("How the classifiers were trained and compared", [ui.Definitions(flatten(found["protocol"]))])
    )
    return ui.Section("classifier", title, blocks, "Classifier")


def _arms(data: ReportData, found: Found, arms: Sequence[Arm]) -> list[ui.Block]:
    shown, controls = columns(data.groups), [arm.name for arm in arms if arm.control]
    beat = f"The best arm without synthetic images, “{controls[0]}”, is" if len(controls) == 1 else "All controls are"
    rows = []
    for arm in arms:
        badges = [ui.span("best control" if len(controls) == 1 else "control", "badge")] if arm.control else []
        if arm.synthetic:
            badges.append(ui.span(f"synthetic{', judged' if arm.judged else ''}", "badge synthetic"))
        head = ui.joined([ui.span("", f"dot {'synthetic' if arm.synthetic else 'real'}"), arm.name, *badges])
        rows.append([ui.Cell(head, arm.how, style="control" if arm.control else ""), *arm_cells(arm, shown)])
    judged = found["verdict"]
    every = {judged["primary"]: judged["per_group"], **judged["other_arms"]}
    table: list[ui.Cells] = [
        [
            arm, scope, ui.Cell(row.outcome, style=TONES.get(row.outcome, "none")), difference_text(row),
            row.against or "", number(row.n), number(row.p_adjusted),
        ]
        for arm, rows_of in every.items() for scope, row in comparisons(rows_of).items()
    ]  # fmt: skip
    heads: ui.Cells = [
        "arm", "scope", "outcome", ui.Column("points (interval)"), "against", ui.Column("test images"), ui.Column("p"),
    ]  # fmt: skip
    corrected = (
        f"Declared beforehand: {judged['primary']} over all images. Intervals and p-values of all others are "
        "corrected for their number (Holm)."
    )
    blocks: list[ui.Block] = [
        ui.Text(
            f"Test accuracy, mean ± standard deviation over {counted(len(arms[0].runs), 'seed')}. All arms have the "
            f"same steps and augmentation. {beat} to be beaten ({found['control']['chosen_by']})."
        ),
        ui.legend(real="real images only", synthetic="with synthetic images", mark="◆ control (dashed)"),
        ui.Figures([accuracy_plot(arms, ["all", *data.groups.present])]),
        ui.Table(["arm", *(ui.Column(HEADS.get(column, column)) for column in shown)], rows, "dense"),
        ui.note(
            "The accuracy of a group counts every test image of its classes once; the mean over classes counts every "
            "class once. Std of groups: standard deviation of the accuracies of the groups. macro-F1: mean over "
            "classes, 0 for a class that is never predicted. ECE: expected calibration error, 15 bins."
        ),
    ]
    if table:
        blocks.append(ui.Fold("Every comparison, with its interval", [ui.Table(heads, table), ui.note(corrected)]))
    return blocks


def accuracy_plot(arms: Sequence[Arm], shown: Sequence[str]) -> Plot:
    """Accuracy of each arm, one panel per scope, arms as rows: mean, standard deviation over seeds, single seeds."""
    rows = list(range(len(arms)))[::-1]
    names = [label(arm.name, f"arm {i + 1}", 30) for i, arm in enumerate(arms)]

    def panel(axes: Any, scope: str, theme: Theme, named: bool) -> None:
        style_axes(axes, theme, grid="x", title=label(scope, "group", 24))
        for y, arm in zip(rows, arms, strict=True):
            colour = theme.synthetic if arm.synthetic else theme.real
            mean, sd = value_of(arm.mean, scope), value_of(arm.sd, scope) or 0.0
            if mean is None:
                continue
            seeds = [value for run in arm.runs if (value := value_of(run, scope)) is not None]
            axes.plot(seeds, [y] * len(seeds), "o", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
            axes.plot([mean - sd, mean + sd], [y, y], color=colour, linewidth=1.6, solid_capstyle="round")
            axes.plot([mean], [y], "D" if arm.control else "o", color=colour, markersize=6)
            if arm.control:
                axes.axvline(mean, color=theme.real, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.set_yticks(rows, names if named else [""] * len(names), parse_math=False)
        axes.margins(x=0.12)
        low, high = axes.get_xlim()
        if high - low < SPAN:  # arms that are alike: no axis of rounding errors
            axes.set_xlim((low + high - SPAN) / 2, (low + high + SPAN) / 2)
        axes.xaxis.set_major_locator(MaxNLocator(4))

    def paint(figure: Figure, theme: Theme) -> None:
        grid: Any = figure.subplots(1, len(shown), squeeze=False)
        for i, (axes, scope) in enumerate(zip(grid[0], shown, strict=True)):
            panel(axes, scope, theme, i == 0)

    alt = "Accuracy per group and arm: mean over seeds, bar one standard deviation, dashed line the best control"
    return plot(alt, paint, 26 * len(arms) + 60)


def pair(arms: Sequence[Arm]) -> list[Arm]:
    """The control and the judged arm, as far as they are there.

    Of several controls that with the highest mean over classes on test images, which decides nothing but what is shown.
    """
    controls = [arm for arm in arms if arm.control]
    best = sorted(controls, key=lambda arm: -(arm.mean.balanced_accuracy or 0.0))[:1]
    return best + [arm for arm in arms if arm.judged and not arm.control]


def recall_of(arm: Arm, order: Sequence[int]) -> np.ndarray | None:
    """(3, C) recall of each class, mean and a standard deviation over seeds on both sides; None if none is known."""
    value = np.array(arm.mean.per_class, dtype=float)[order]
    if np.isnan(value).all():
        return None
    sd = np.nan_to_num(np.array(arm.sd.per_class, dtype=float)[order])
    return np.array([value, np.clip(value - sd, 0, 1), np.clip(value + sd, 0, 1)])


def _recalls(data: ReportData, arms: Sequence[Arm]) -> list[ui.Block]:
    """The control and the judged arm, class by class; the table from the smallest class."""
    order, c = data.by_size, data.stats.num_classes
    known = {arm: one for arm in pair(arms) if (one := recall_of(arm, order)) is not None}
    if not known:
        return []
    kinds = {("synthetic" if arm.synthetic else "real"): arm for arm in known}
    real, synthetic = (known[kinds[kind]] if kind in kinds else None for kind in ("real", "synthetic"))
    panel = Panel("recall of the class", synthetic, real)
    names, counts = [data.stats.names[k] for k in order], [data.stats.counts[k] for k in order]
    groups = [data.group(k) for k in order]
    series = list(known.values())
    rows: list[ui.Cells] = []
    for i in range(c)[::-1][:MAX_ROWS]:
        gap = [points(float(series[-1][0, i] - series[0][0, i]))] if len(series) > 1 else []
        texts = [panel.text(one, i) for one in series]
        rows.append([ui.name(names[i]), groups[i], number(counts[i]), *texts, *gap])
    heads: ui.Cells = ["class", "group", *(ui.Column(text) for text in ("training images", *(a.name for a in known)))]
    heads += [ui.Column("points")] if len(series) > 1 else []
    left = f" (the {number(len(rows))} smallest of {number(c)})" if len(rows) < c else ""
    how = "Points: classes; lines: running means." if c > SINGLE else "Mean over seeds; bars: one standard deviation."
    return [
        ui.heading("Recall of each class against its training images"),
        ui.legend(**{kind: arm.name for kind, arm in kinds.items()}),
        ui.Figures([class_plot(Classes(order, names, groups, counts), [panel])]),
        ui.note(how),
        ui.Fold(f"Recall of each class as a table{left}", [ui.Table(heads, rows)]),
    ]
