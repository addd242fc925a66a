"""The comparison of classifiers: the verdict, the arms by group, recall of each class.

Arms come in kinds: single networks, ensembles of them, and networks that are distilled from an ensemble. Some arms are
there to show what else than synthetic images may explain a gain; the page says which, and what they are for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imbdiff.data.names import counted
from imbdiff.data.stats import Groups
from imbdiff.recognition.decision import Decision
from imbdiff.recognition.scores import Scores
from imbdiff.recognition.use import Use
from imbdiff.recognition.verdict import LEAST_TEST_IMAGES, Comparison
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.answer import Found, answer, arm_text, comparisons
from imbdiff.reporting.class_plot import SINGLE, Classes, Panel, class_plot
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.plots import Plot, Theme, plot, style_axes
from imbdiff.reporting.text import NOTHING, flatten, label, number, shorten, signed, with_sd

CLASS_MEAN = "balanced accuracy"
ADJUSTMENT = "adjustment τ"
WHOLE = {
    CLASS_MEAN: "balanced_accuracy", "all": "accuracy", "ECE": "ece", "Std of groups": "group_sd",
    "macro-F1": "macro_f1",
}  # fmt: skip
"""Columns besides the groups and the adjustment, and the scores behind them."""
FIRST, LAST, FURTHER = (CLASS_MEAN, "all"), (ADJUSTMENT, "ECE"), ("Std of groups", "macro-F1")
"""Columns before and after those of the groups, and those that are behind a fold."""
HEADS = {"all": "all (top-1)", "Std of groups": "Std of groups ↓", "ECE": "ECE ↓"}
TONES = {"helped": "good", "hurt": "bad", "no difference": "same"}
MAX_ROWS = 200
SPAN = 0.04
"""The least width of an axis of accuracies."""
KINDS = {
    "single": ("Single networks", ""),
    "ensemble": (
        "Ensembles",
        "the mean of the probabilities of {n} networks: {n} times the time of one, to predict too",
    ),
    "distilled": ("Distilled network", "trained on the probabilities of an ensemble: takes the time of one to predict"),
}
"""What stands above the arms of each kind."""
LINE = 44
"""Characters of a line of an arm's name in the plot."""


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of training the classifier, and its scores on test images.

    Attributes:
        kind: a key of :data:`KINDS`.
        networks: of one classifier.
        synthetic: trained with synthetic images.
        control: an arm to beat: the one chosen on validation images, or any without synthetic images.
        judged: the arm whose comparison leads the verdict.
        how: what its networks were shown, in words; empty where nothing is to be said.
        decisions: of each seed's classifier.
        mean, sd, runs: over seeds, and of each.
    """

    name: str
    kind: str
    networks: int
    synthetic: bool
    control: bool
    judged: bool
    how: str
    decisions: tuple[Decision, ...]
    mean: Scores
    sd: Scores
    runs: tuple[Scores, ...]


def arms_of(classifier: Found | None) -> list[Arm]:
    """The arms, those of one kind together."""
    if not classifier:
        return []
    arms = []
    for row in (row for row in classifier["arms"] if "mean" in row):
        kind, name = "ensemble" if row["members"] else "distilled" if row["teacher"] else "single", row["name"]
        arms.append(Arm(
            arm_text(name), kind, len(row["members"]) or 1, row["needs_synthetic"],
            name in classifier["control"]["arms"], name == classifier["verdict"]["primary"], shown_of(row),
            decisions_of(row), Scores.from_json(row["mean"]), Scores.from_json(row["sd"]),
            tuple(map(Scores.from_json, row["runs"])),
        ))  # fmt: skip
    return sorted(arms, key=lambda arm: list(KINDS).index(arm.kind))


def shown_of(row: Found) -> str:
    """What the networks of an arm were shown; of an ensemble its name says it."""
    parts = ["placebo: real images again" * row["placebo"], "geometric changes" * bool(row["changes"])]
    parts += [Use(**row["use"]).describe()] if row["use"] else []
    return "" if row["members"] else shorten(", ".join(filter(None, parts)), 120)


def decisions_of(row: Found) -> tuple[Decision, ...]:
    return tuple(Decision(**one) for one in row["decisions"])


def adjustment_cell(decisions: Sequence[Decision]) -> ui.Cell:
    """The mean strength of the adjustment over seeds."""
    if not decisions:
        return ui.Cell(NOTHING)
    title = "seeds: " + ", ".join(f"{number(d.tau, 1)} (temperature {number(d.temperature, 2)})" for d in decisions)
    return ui.Cell(number(sum(d.tau for d in decisions) / len(decisions), 2), title=title)


def adjustment_note(rows: Sequence[Found]) -> str:
    """How probabilities decide, and how that was chosen or why it was not; the same in all arms."""
    chosen = dict.fromkeys(
        d.chosen_by or "not adjusted (--classify.adjust False)" for r in rows for d in decisions_of(r)
    )
    if not chosen:
        return ""
    return (
        "Adjustment τ: the class with the largest p / π^τ is decided for, p the probability and π the class's share of "
        "the training images: 0 leaves decisions as they are, more favours rare classes. Mean over seeds; every arm "
        f"alike: {'; '.join(chosen)}."
    )


def value_of(found: Scores, column: str) -> float | None:
    """Accuracy of a group, or another number of a column."""
    if column in found.groups:
        return found.groups[column]
    return getattr(found, WHOLE[column]) if column in WHOLE else None


def columns(groups: Groups) -> list[str]:
    """Columns of arms, the accuracies of the groups in the middle."""
    known = groups.present
    return [*(c for c in FIRST if c not in known), *known, *(c for c in LAST if c not in known)]


def few_images(classifier: Found | None) -> dict[str, int]:
    """Groups with too few test images for an accuracy, and how many they have."""
    counts = ((classifier or {}).get("protocol") or {}).get("n_test_groups") or {}
    return {group: n for group, n in counts.items() if n < LEAST_TEST_IMAGES}


def arm_cells(arm: Arm, shown: Sequence[str], few: Mapping[str, int]) -> list[ui.Cell]:
    """By column: mean ± standard deviation over seeds; the strength of the adjustment.

    Args:
        few: of :func:`few_images`.
    """
    cells = []
    for column in shown:
        if column in few:
            n = counted(few[column], "test image")
            cells.append(ui.Cell(NOTHING, n, f"{n}: no accuracy, at least {LEAST_TEST_IMAGES} are needed", "refused"))
            continue
        if column == ADJUSTMENT and column not in arm.mean.groups:
            cells.append(adjustment_cell(arm.decisions))
            continue
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
    told = answer(classifier, run)
    if told is None:
        return [ui.Text(sentence, f"verdict {tone}")]
    text = ui.joined([ui.span(f"{told.word}.", "word"), told.text])
    blocks: list[ui.Block] = [ui.Text(text, f"verdict {tone}"), *(ui.Text(text, "alert") for text in told.warnings)]
    if told.accuracies:
        heads: ui.Cells = [
            "accuracy of", ui.Column("with synthetic images"), ui.Column("without"), "what the difference says"
        ]  # fmt: skip
        blocks.append(ui.Table(heads, [list(row) for row in told.accuracies], "short"))
    blocks.append(ui.Text(f"Next: {told.next}{':' * bool(told.command)}", "next", told.command))
    text = f"Difference of accuracy in percentage points, with its interval. {no_loss(found['no_loss'])}"
    more = [ui.note(told.measured), ui.note(sentence), *outcome_chips(found["per_group"]), ui.note(text.strip())]
    return [*blocks, ui.Fold("Statistics, and how this is decided", [*more, ui.note(found["rule"])])]


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
    blocks = [*_judged(found), *_arms(data, found, arms), *_comparisons(found), *_recalls(data, arms)]
    blocks.append(
        ui.Fold("How the classifiers were trained and compared", [ui.Definitions(flatten(found["protocol"]))])
    )
    return ui.Section("classifier", title, blocks, "Classifier")


def _judged(found: Found) -> list[ui.Block]:
    """What was judged and what came out, in one sentence."""
    judged = comparisons(found["verdict"]["per_group"])
    if "all" not in judged:
        return [ui.Text(found["verdict"]["sentence"])]
    row = judged["all"]
    against = f"“{arm_text(row.against)}”" if row.against else "every arm without synthetic images"
    said = {"no difference": "no difference shown", "not measured": "not measured"}.get(row.outcome, row.outcome)
    counted_in = " points of accuracy over all test images" if row.difference is not None else ""
    text = f"{difference_text(row)}{counted_in}: “{arm_text(found['verdict']['primary'])}” against {against}."
    tone = TONES.get(row.outcome, "none")
    return [ui.Text(ui.joined([ui.span(f"{said[0].upper()}{said[1:]}:", tone), text]), "outcome")]


def _arms(data: ReportData, found: Found, arms: Sequence[Arm]) -> list[ui.Block]:
    shown, controls = columns(data.groups), [arm.name for arm in arms if arm.control]
    beat = f"The best arm without synthetic images, “{controls[0]}”, is" if len(controls) == 1 else "All controls are"
    few = few_images(found)
    further = [column for column in FURTHER if column not in data.groups.present]
    return [
        ui.Text(
            f"Test accuracy, mean ± standard deviation over {counted(len(arms[0].runs), 'seed')}. All networks were "
            f"trained for the same number of steps. {beat} to be beaten ({found['control']['chosen_by']})."
        ),
        ui.legend(real="real images only", synthetic="with synthetic images", mark="◆ control (dashed)"),
        ui.Figures([accuracy_plot(arms, ["all", *(group for group in data.groups.present if group not in few)])]),
        _table(arms, shown, few),
        *(ui.note(f"“{row['name']}” is left out: {row['reason']}.") for row in found["arms"] if row.get("reason")),
        *(ui.note(text) for text in (_alternatives(found["arms"]), adjustment_note(found["arms"])) if text),
        ui.note(
            "Balanced accuracy counts every class once; the accuracy of a group, and of all, counts every test image "
            "once. ECE: expected calibration error, 15 bins: how far confidences are from the share that is right."
        ),
        ui.Fold("More numbers of each arm", [
            _table(arms, further, few),
            ui.note(
                "Std of groups: standard deviation of the accuracies of the groups. macro-F1: mean over classes, 0 for "
                "a class that is never predicted."
            ),
        ]),
    ]  # fmt: skip


def _table(arms: Sequence[Arm], shown: Sequence[str], few: Mapping[str, int]) -> ui.Table:
    """A row for each arm, under a line that says what kind of arms follows, where there are several."""
    best = "best control" if sum(arm.control for arm in arms) == 1 else "control"
    kinds = [(kind, list(own)) for kind, own in groupby(arms, lambda arm: arm.kind)]
    rows: list[ui.Cells] = []
    for kind, own in kinds:
        title, text = KINDS[kind]
        if len(kinds) > 1:
            most = max(arm.networks for arm in own)
            rows.append([ui.Cell(title, text.format(n=most), style="kind")])
        for arm in own:
            badges = [ui.span(best, "badge")] if arm.control else []
            if arm.synthetic:
                badges.append(ui.span(f"synthetic{', judged' if arm.judged else ''}", "badge synthetic"))
            head = ui.joined([ui.span("", f"dot {'synthetic' if arm.synthetic else 'real'}"), arm.name, *badges])
            rows.append([ui.Cell(head, arm.how, style="control" if arm.control else ""), *arm_cells(arm, shown, few)])
    return ui.Table(["arm", *(ui.Column(HEADS.get(column, column)) for column in shown)], rows, "dense")


def _alternatives(rows: Sequence[Found]) -> str:
    """What the arms are for that show other explanations of a gain."""
    strong = any(row["changes"] and not row["use"] for row in rows)
    reasons = [
        "“strong augmentation” rotates, scales, stretches and moves real images as arms with synthetic images do"
        * strong,
        "“repeated real”, the placebo, sees real images again where others see synthetic ones"
        * any(row["placebo"] for row in rows),
    ]
    if not any(reasons):
        return ""
    return (
        f"Some arms are there to show what else may explain a gain: {'; '.join(filter(None, reasons))}. Where they "
        "gain as much, it is not the synthetic images that help. They count as arms without synthetic images: the best "
        "of these has to be beaten."
    )


def _comparisons(found: Found) -> list[ui.Block]:
    """Every comparison that was made, behind a fold."""
    judged = found["verdict"]
    every = {judged["primary"]: judged["per_group"], **judged["other_arms"]}
    rows: list[ui.Cells] = [
        [
            arm_text(arm), scope, ui.Cell(row.outcome, style=TONES.get(row.outcome, "none")), difference_text(row),
            arm_text(row.against or ""), number(row.n), number(row.p_adjusted),
        ]
        for arm, rows_of in every.items() for scope, row in comparisons(rows_of).items()
    ]  # fmt: skip
    if not rows:
        return []
    heads: ui.Cells = [
        "arm", "scope", "outcome", ui.Column("points (interval)"), "against", ui.Column("test images"), ui.Column("p"),
    ]  # fmt: skip
    corrected = (
        f"Declared beforehand: {arm_text(judged['primary'])} over all images. Intervals and p-values of all others are "
        "corrected for their number (Holm)."
    )
    return [ui.Fold("Every comparison, with its interval", [ui.Table(heads, rows), ui.note(corrected)])]


def lines_of(arm: Arm, fallback: str) -> str:
    """The name of an arm for a plot: the networks of an ensemble below each other."""
    parts = re.split(r" (?=\+ \d+ x |\d+ of them)", arm.name) if arm.kind == "ensemble" else [arm.name]
    return "\n".join(label(part, fallback, LINE) for part in parts[:3])


def accuracy_plot(arms: Sequence[Arm], shown: Sequence[str]) -> Plot:
    """Accuracy of each arm, one panel per scope, arms as rows, those of a kind together: mean, standard deviation over
    seeds, single seeds."""
    names = [lines_of(arm, f"arm {i + 1}") for i, arm in enumerate(arms)]
    heights = [1.0 + 0.4 * name.count("\n") for name in names]
    rows, between, at = [], [], 0.0
    for i, (arm, height) in enumerate(zip(arms, heights, strict=True)):
        if i and arm.kind != arms[i - 1].kind:
            between.append(-at - 0.2)
            at += 0.4
        rows.append(-at - height / 2)
        at += height

    def panel(axes: Any, scope: str, theme: Theme, named: bool) -> None:
        style_axes(axes, theme, grid="x", title=label(scope, "group", 24))
        for y in between:
            axes.axhline(y, color=theme.rule, linewidth=0.9, zorder=0)
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
        axes.set_ylim(-at - 0.1, 0.1)
        axes.set_yticks(rows, names if named else [""] * len(names), parse_math=False)
        axes.margins(x=0.12)
        low, high = axes.get_xlim()
        if high - low < SPAN:  # arms that are alike: no axis of rounding errors
            axes.set_xlim((low + high - SPAN) / 2, (low + high + SPAN) / 2)
        axes.xaxis.set_major_locator(MaxNLocator(3))

    def paint(figure: Figure, theme: Theme) -> None:
        grid: Any = figure.subplots(1, len(shown), squeeze=False)
        for i, (axes, scope) in enumerate(zip(grid[0], shown, strict=True)):
            panel(axes, scope, theme, i == 0)

    alt = "Accuracy per group and arm: mean over seeds, bar one standard deviation, dashed line the best control"
    return plot(alt, paint, round(26 * at) + 60)


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
