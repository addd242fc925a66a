"""What the comparison of classifiers found: the verdict, the arms by group, classes, confidence, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from imbdiff.data.names import counted
from imbdiff.data.stats import Groups
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.class_plot import ClassView, Panel, Series, class_plot
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.plots import SINGLE, Plot, Theme, is_narrow, plot, style_axes
from imbdiff.reporting.text import NOTHING, clean, flatten, label, number, shorten, signed

CLASS_MEAN = "mean over classes"
BALANCE, F1, ECE = "Std of groups", "macro-F1", "ECE"
EXTRAS = {BALANCE: "group_sd", F1: "macro_f1", ECE: "ece"}
"""Numbers of an arm besides its accuracies, as the field names them."""
HEADS = {"all": "all (top-1)", BALANCE: f"{BALANCE} ↓", ECE: f"{ECE} ↓"}
TONES = {"helped": "good", "hurt": "bad", "no difference": "same"}
MAX_ROWS = 200
"""Rows of the table of classes: the smallest classes."""

Found = Mapping[str, Any]


def scopes(classifier: Found, groups: Groups) -> list[str]:
    """ "all" and the groups that any arm has an accuracy for, in the order of `groups`."""
    found = {g for arm in classifier.get("arms", ()) for g in _groups(arm.get("mean"))}
    return ["all", *(group for group in groups.names if group in found)]


def columns(classifier: Found, groups: Groups) -> list[str]:
    """Columns of the arms table: :func:`scopes` with the mean over classes, and those of `EXTRAS` that any arm has."""
    shown = scopes(classifier, groups)
    blocks = [arm.get("mean") for arm in classifier.get("arms", ())]
    extras = [x for x in EXTRAS if x not in shown and any(of_scope(block, x) is not None for block in blocks)]
    return ["all", CLASS_MEAN, *shown[1:], *extras]


def of_scope(block: Found | None, scope: str) -> float | None:
    """A number of a run, mean or sd block: accuracy over all images, mean over classes, of a group, or of `EXTRAS`."""
    if not block:
        return None
    whole = {"all": "accuracy", CLASS_MEAN: "balanced_accuracy"}
    if scope not in _groups(block):
        whole |= EXTRAS
    value = block.get(whole[scope]) if scope in whole else _groups(block).get(scope)
    return None if value is None else float(value)


def _groups(block: Found | None) -> Found:
    return (block or {}).get("groups") or {}


def controls_of(classifier: Found) -> list[str]:
    """Names of the arms to beat: the one chosen on validation images, or all without synthetic images."""
    control = classifier.get("control") or {}
    return [str(arm) for arm in control.get("arms") or [control.get("arm")] if arm]


def arm_cells(arm: Found, shown: Sequence[str]) -> list[ui.Cell]:
    """Mean ± standard deviation over seeds, per scope."""
    runs, cells = arm.get("runs") or (), []
    for scope in shown:
        sd = of_scope(arm.get("sd"), scope) if len(runs) != 1 else None
        singles = ", ".join(number(of_scope(run, scope)) for run in runs)
        small = "" if sd is None else f"± {number(sd)}"
        cells.append(ui.Cell(number(of_scope(arm.get("mean"), scope)), small, f"seeds: {singles}" if runs else ""))
    return cells


def points(value: Any) -> str:
    """A difference of accuracies, 0..1, in percentage points with its sign."""
    return signed(None if value is None else 100 * float(value), 1)


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


def outcomes(arm: str, per_group: Found, judged: bool = False) -> list[Outcome]:
    rows = []
    for scope, entry in per_group.items():
        outcome = str(entry.get("outcome") or "not measured")
        text = points(entry.get("difference"))
        if entry.get("low") is not None and entry.get("high") is not None:
            text += f" ({points(entry['low'])} to {points(entry['high'])})"
        if outcome == "not measured" and entry.get("reason"):
            text = str(entry["reason"])
        declared = judged and scope == "all"
        kind = "declared beforehand" if declared else "corrected" if entry.get("corrected") else "exploratory"
        kind = NOTHING if outcome == "not measured" and not declared else kind
        p, n = number(entry.get("p_adjusted")), number(entry.get("n"))
        tone = TONES.get(outcome, "none")
        rows.append(Outcome(arm, scope, outcome, tone, text, entry.get("against") or "", n, p, kind))
    return rows


def judged_outcomes(classifier: Found | None) -> list[Outcome]:
    """Those of the judged arm, by scope."""
    found = (classifier or {}).get("verdict") or {}
    return outcomes(str(found.get("primary") or ""), found.get("per_group") or {}, judged=True)


def verdict_sentence(classifier: Found | None) -> tuple[str, str]:
    """The sentence on top and its tone: that of the outcomes together, mixed if they disagree; "" if there is none."""
    found = (classifier or {}).get("verdict") or {}
    tones = {row.tone for row in judged_outcomes(classifier)}
    tone = "mixed" if {"good", "bad"} <= tones else next((t for t in ("good", "bad", "same") if t in tones), "none")
    return str(found.get("sentence") or ""), tone


def verdict(data: ReportData, run: str) -> list[ui.Block]:
    """What the synthetic images were worth, as the comparison found it: the top of the page."""
    sentence, tone = verdict_sentence(data.classifier)
    if not sentence:
        text = "What the synthetic images are worth has not been judged yet: no classifier was trained."
        return [ui.Text(text, "verdict none", f"imbdiff classify {run}")]
    blocks: list[ui.Block] = [ui.Text(sentence, f"verdict {tone}")]
    own = judged_outcomes(data.classifier)
    found = (data.classifier or {})["verdict"]
    if own:
        chips = [
            ui.Cell(
                ui.joined([Markup("<b>{}</b>").format(clean(o.scope)), o.outcome, ui.span(o.difference, "")]),
                style=o.tone,
            )
            for o in own
        ]
        text = f"Difference of accuracy in percentage points, with its interval. {no_loss(found)}"
        blocks += [ui.Items(chips, "chips"), ui.note(text.strip())]
    if found.get("rule"):
        blocks.append(ui.Fold("How this is decided", [ui.note(found["rule"])]))
    return blocks


def no_loss(found: Found) -> str:
    """Whether a loss over all classes is ruled out."""
    entry = found.get("no_loss")
    if not entry:
        return ""
    margin, low = f"{100 * float(entry['margin']):g} point", points(entry["low"])
    if entry["shown"]:
        return f"Nothing is lost overall: a loss of {margin} or more is ruled out (the interval starts at {low})."
    return f"A loss of {margin} or more overall is not ruled out (the interval starts at {low})."


def classifiers(data: ReportData, run: str) -> ui.Section:
    """The arms with and without synthetic images."""
    title = "Classifier: with and without synthetic images"
    found = data.classifier or {}
    if not found.get("arms"):
        text = "Not computed: no classifier was trained."
        return ui.Section("classifier", title, [ui.missing(text, f"imbdiff classify {run}")], "Classifier")
    protocol = flatten(found.get("protocol") or {})
    blocks = [*_arms(data, found), *_steps(data, found), *_recalls(data, found), *_reliability(found)]
    blocks += [ui.Fold("How the classifiers were trained and compared", [ui.Definitions(protocol)])] if protocol else []
    return ui.Section("classifier", title, blocks, "Classifier")


def _arms(data: ReportData, found: Found) -> list[ui.Block]:
    arms, controls, shown = found["arms"], controls_of(found), columns(found, data.groups)
    how = (found.get("control") or {}).get("chosen_by")
    one = len(controls) == 1
    beat = ""
    if controls:
        beat = f"The best arm without synthetic images, “{controls[0]}”, is the one to beat"
        beat = (beat if one else "Every arm without synthetic images is to be beaten") + (f" ({how})." if how else ".")
    seeds = len(arms[0].get("runs") or ())
    text = (
        f"Test accuracy, mean ± standard deviation over {counted(seeds, 'seed')}. All arms have the same steps and "
        f"augmentation. {beat}"
    )
    marks = f"◆ {'best control' if one else 'controls'} (dashed)" if controls else ""
    judged = (found.get("verdict") or {}).get("primary")
    rows = []
    for arm in arms:
        synthetic, control = bool(arm.get("needs_synthetic")), arm.get("name") in controls
        badges = [ui.span("best control" if one else "control", "badge")] if control else []
        if synthetic:
            badges.append(ui.span(f"synthetic{', judged' if arm.get('name') == judged else ''}", "badge synthetic"))
        head = ui.joined([ui.span("", f"dot {'synthetic' if synthetic else 'real'}"), arm.get("name", ""), *badges])
        rows.append(ui.Row([ui.Cell(head, _how(arm), _use(arm)), *arm_cells(arm, shown)], "control" if control else ""))
    notes = [
        "The accuracy of a group counts every test image of its classes once; the mean over classes counts every class "
        "once.",
        "Std of groups: standard deviation of the accuracies of the groups, 0 where all are recognised equally well."
        * (BALANCE in shown),
        "macro-F1: mean over classes, 0 for a class that is never predicted." * (F1 in shown),
        "ECE: expected calibration error, 15 bins." * (ECE in shown),
    ]
    every = judged_outcomes(found)
    for other, block in ((found.get("verdict") or {}).get("other_arms") or {}).items():
        every += outcomes(str(other), block)
    comparisons = ui.Table(
        [
            "arm",
            "scope",
            "outcome",
            ui.Column("points (interval)"),
            "against",
            ui.Column("test images"),
            ui.Column("p"),
            "",
        ],
        [[o.arm, o.scope, ui.Cell(o.outcome, style=o.tone), o.difference, o.against, o.n, o.p, o.kind] for o in every],
    )
    return [
        ui.Text(text),
        ui.legend(real="real images only", synthetic="with synthetic images", mark=marks),
        ui.Figures([accuracy_plot(found, scopes(found, data.groups))]),
        ui.Table(["arm", *(ui.Column(HEADS.get(scope, scope)) for scope in shown)], rows, "dense"),
        ui.note(" ".join(note for note in notes if note)),
        *([ui.Fold("Every comparison, with its interval", [comparisons])] if every else []),
    ]


def _how(arm: Found) -> str:
    """The arm's recipe and its prior."""
    parts = (arm.get("recipe") or arm.get("loss"), arm.get("prior") and f"prior: {arm['prior']}")
    return shorten(", ".join(str(part) for part in parts if part), 48)


def _use(arm: Found) -> str:
    """How synthetic images took part."""
    use = arm.get("use")
    parts = [f"{key} {text}" for key, text in flatten(dict(use)) if text != NOTHING] if isinstance(use, Mapping) else []
    return f"synthetic images: {', '.join(parts)}" if parts else ""


def _steps(data: ReportData, found: Found) -> list[ui.Block]:
    """Per arm the last step and the best by validation images, mean and standard deviation over seeds."""
    present = scopes(found, data.groups)
    shown = ["all", CLASS_MEAN, *present[-1:]] if len(present) > 1 else ["all", CLASS_MEAN]
    rows: list[ui.Row] = []
    for arm in found.get("arms") or ():
        runs = arm.get("runs") or ()
        best = [run.get("best") for run in runs]
        if not best or not all(best):
            continue
        steps = sorted({int(one["step"]) for one in best})
        which = f"{number(steps[0])} to {number(steps[-1])}" if len(steps) > 1 else number(steps[0])
        last = number((found.get("protocol") or {}).get("steps"))
        rows.append(ui.Row([arm.get("name", ""), f"last: step {last}", *_mean_cells(runs, shown)], "first"))
        noun = "step" if len(steps) == 1 else "steps"
        rows.append(ui.Row(["", f"best by validation: {noun} {which}", *_mean_cells(best, shown)]))
    if not rows:
        return []
    return [
        ui.Heading("Last step, and the best by validation images"),
        ui.Table(["arm", "weights", *(ui.Column(HEADS.get(scope, scope)) for scope in shown)], rows, "dense"),
        ui.note("Best: the highest mean over classes on validation images among the steps looked at; the numbers are "
             "those of test images, which choose nothing. The verdict and all else on this page are of the last step."),
    ]  # fmt: skip


def _mean_cells(blocks: Sequence[Found], shown: Sequence[str]) -> list[ui.Cell]:
    cells = []
    for scope in shown:
        known = [value for block in blocks if (value := of_scope(block, scope)) is not None]
        if len(known) < len(blocks):
            cells.append(ui.Cell(NOTHING))
            continue
        sd = f"± {number(float(np.std(known, ddof=1)))}" if len(known) > 1 else ""
        cells.append(ui.Cell(number(float(np.mean(known))), sd, counted(len(known), "seed")))
    return cells


def pair(classifier: Found) -> tuple[list[Found], str]:
    """The arm without synthetic images and the judged one, as far as they are there, and how the first was chosen.

    The first is the control; where several are, that of the highest mean over classes on the test images, which decides
    nothing but what is shown.
    """
    arms = {str(arm.get("name")): arm for arm in classifier.get("arms") or ()}
    controls = [arms[one] for one in controls_of(classifier) if one in arms]
    found = []
    if controls:
        found.append(max(controls, key=lambda arm: of_scope(arm.get("mean"), CLASS_MEAN) or 0.0))
    judged = arms.get(str((classifier.get("verdict") or {}).get("primary")))
    if judged is not None and judged not in found:
        found.append(judged)
    several = "of the controls, that with the highest mean over classes on the test images: for these pictures only"
    return found, several if len(controls) > 1 else ""


def recall_of(arm: Found, order: Sequence[int]) -> Series | None:
    """Recall of each class, mean with a standard deviation over seeds on both sides; None where no class has one."""
    value, sd = (np.array((arm.get(key) or {}).get("per_class") or (), dtype=float) for key in ("mean", "sd"))
    if value.shape != (len(order),) or not np.isfinite(value).any():
        return None
    sd = sd if sd.shape == value.shape else np.zeros_like(value)
    return Series(value[order], np.clip(value - sd, 0, 1)[order], np.clip(value + sd, 0, 1)[order])


def _recalls(data: ReportData, found: Found) -> list[ui.Block]:
    """The best arm without synthetic images and the judged one, class by class; the table from the smallest class."""
    shown, chosen = pair(found)
    order, c = data.by_size, data.stats.num_classes
    arms = {bool(arm.get("needs_synthetic")): (arm, one) for arm in shown if (one := recall_of(arm, order)) is not None}
    if not arms:
        return []
    names = {("synthetic" if synthetic else "real"): str(arm.get("name", "")) for synthetic, (arm, _) in arms.items()}
    series = [one for _, one in arms.values()]
    own, real = (arms[which][1] if which in arms else None for which in (True, False))
    panel = Panel("recall of the class", "", "", True, own, real, np.zeros(c, bool), mean=True)
    counts, groups = [data.stats.counts[k] for k in order], [data.group(k) for k in order]
    view = ClassView(order, [data.stats.names[k] for k in order], groups, counts, "training", [panel])
    rows: list[ui.Cells] = []
    for i in range(c)[::-1][:MAX_ROWS]:
        gap = [signed(float(100 * (series[-1].value[i] - series[0].value[i])), 1)] if len(series) > 1 else []
        cells = [ui.name(view.names[i]), groups[i], number(counts[i])]
        rows.append([*cells, *(panel.text(one, i) for one in series), *gap])
    heads: ui.Cells = ["class", "group", ui.Column("training images"), *(ui.Column(one) for one in names.values())]
    heads += [ui.Column("points")] if len(series) > 1 else []
    left = f" (the {number(len(rows))} smallest of {number(c)})" if len(rows) < c else ""
    how = "Points: classes; lines: running means." if c > SINGLE else "Mean over seeds; bars: one standard deviation."
    return [
        ui.Heading("Recall of each class against its training images"),
        ui.legend(**names),
        ui.Figures([class_plot(view)]),
        ui.note(how + (f" Without synthetic images: {chosen}." if chosen else "")),
        ui.Fold(f"Recall of each class as a table{left}", [ui.Table(heads, rows)]),
    ]


def accuracy_plot(classifier: Found, shown: Sequence[str]) -> Plot:
    """Accuracy of each arm, one panel per scope, arms as rows: mean, standard deviation over seeds, single seeds."""
    arms, controls = classifier.get("arms", ()), controls_of(classifier)
    rows = list(range(len(arms)))[::-1]
    names = [label(arm.get("name", ""), f"arm {i + 1}", 30) for i, arm in enumerate(arms)]

    def panel(axes: Any, scope: str, theme: Theme, named: bool) -> None:
        style_axes(axes, theme, grid="x", title=label(scope, "group", 24))
        for y, arm in zip(rows, arms, strict=True):
            colour = theme.synthetic if arm.get("needs_synthetic") else theme.real
            mean, sd = of_scope(arm.get("mean"), scope), of_scope(arm.get("sd"), scope) or 0.0
            if mean is None:
                continue
            control = arm.get("name") in controls
            seeds = [v for run in arm.get("runs") or () if (v := of_scope(run, scope)) is not None]
            axes.plot(seeds, [y] * len(seeds), "o", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
            axes.plot([mean - sd, mean + sd], [y, y], color=colour, linewidth=1.6, solid_capstyle="round")
            axes.plot([mean], [y], "D" if control else "o", color=colour, markersize=6)
            if control:
                axes.axvline(mean, color=theme.real, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.set_yticks(rows)
        axes.set_yticklabels(names if named else [""] * len(names), parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.12)

    def paint(figure: Figure, theme: Theme) -> None:
        slim = is_narrow(figure)
        shape = (len(shown), 1) if slim else (1, len(shown))
        grid: Any = figure.subplots(*shape, squeeze=False)
        for i, (axes, scope) in enumerate(zip(grid.ravel(), shown, strict=True)):
            panel(axes, scope, theme, slim or i == 0)

    alt = "Accuracy per group and arm: mean over seeds, bar one standard deviation, dashed line the best control"
    tall = 26 * len(arms) + 60
    return plot(alt, paint, (1000, tall), (400, tall * len(shown)))


def _reliability(found: Found) -> list[ui.Block]:
    arms = [arm for arm in pair(found)[0] if (arm.get("mean") or {}).get("reliability")]
    arms = [arm for arm in arms if arm["mean"].get("ece") is not None]
    if not arms:
        return []
    return [
        ui.Heading("Is it right as often as it is sure?"),
        ui.Figures([reliability_plot(arms)]),
        ui.note("Test images of all seeds in 15 bins of confidence. On the dashed line a classifier is right as often "
             "as it says; below it, it is too sure. ECE is the mean gap, weighted by images, of each seed by itself; "
             "chance alone gives a perfectly calibrated one the value in brackets."),
    ]  # fmt: skip


def reliability_plot(arms: Sequence[Found]) -> Plot:
    """How often each arm was right against how sure it was, and below it the share of images in each bin."""

    def paint(figure: Figure, theme: Theme) -> None:
        slim = is_narrow(figure)
        rows, across = (2 * len(arms), 1) if slim else (2, len(arms))
        heights = [3.0, 1.0] * (len(arms) if slim else 1)
        grid: Any = figure.subplots(rows, across, squeeze=False, height_ratios=heights)
        for i, arm in enumerate(arms):
            above, below = (grid[2 * i, 0], grid[2 * i + 1, 0]) if slim else (grid[0, i], grid[1, i])
            _reliability_panel(above, below, arm, theme)

    said = "; ".join(f"{label(arm['name'], 'arm', 60)}: calibration error {number(arm['mean']['ece'])}" for arm in arms)
    tall = 345
    return plot(f"Accuracy against confidence: {said}", paint, (1000, tall), (400, tall * len(arms)))


def _reliability_panel(above: Any, below: Any, arm: Found, theme: Theme) -> None:
    colour = theme.synthetic if arm.get("needs_synthetic") else theme.real
    bins, chance = arm["mean"]["reliability"], arm["mean"].get("ece_chance")
    used = [(b, row) for b, row in enumerate(bins) if row["n"]]
    width = 1 / len(bins)
    total = sum(row["n"] for _, row in used)
    by_chance = "" if chance is None else f" (by chance alone {number(chance)})"
    title = f"{label(arm['name'], 'arm', 48)}\nECE {number(arm['mean']['ece'])}{by_chance}"
    style_axes(above, theme, y="share right", title=title)
    style_axes(below, theme, y="images", x="confidence: softmax probability of the class predicted")
    for axes in (above, below):
        axes.set_xlim(-0.01, 1.01)
    above.plot([0, 1], [0, 1], color=theme.muted, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
    middle = [(b + 0.5) * width for b, _ in used]
    share = [row["n"] / total for _, row in used]
    hits, sure = ([row[key] for _, row in used] for key in ("accuracy", "confidence"))
    above.bar(middle, hits, 0.86 * width, color=colour, alpha=0.22)
    above.vlines(sure, hits, sure, color=colour, linewidth=1.2)
    above.scatter(sure, hits, s=[14 + 120 * s for s in share], color=colour, linewidths=0, zorder=3)
    above.set_ylim(-0.03, 1.06)
    above.set_yticks([0.0, 0.5, 1.0])
    above.set_xticklabels([])
    below.bar(middle, share, 0.86 * width, color=colour, alpha=0.55)
    below.yaxis.set_major_locator(MaxNLocator(2))
    below.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
