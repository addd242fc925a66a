"""The page of a study: the recommendation and the commands that apply it, the grid, two arms on the test images."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from imbdiff.data.names import counted
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.classifier import (
    ADJUSTMENT,
    CLASS_MEAN,
    TONES,
    adjustment_cell,
    adjustment_note,
    decisions_of,
    outcome_chips,
)
from imbdiff.reporting.curated import REASONS
from imbdiff.reporting.plots import Plot, Theme, plot, style_axes, thousands
from imbdiff.reporting.text import NOTHING, flatten, label, number, seconds, shorten, with_sd

MAX_ROWS = 200
MAX_GROUPS = 8
MAX_LEVELS, MAX_PANELS = 3, 6
STYLES = (
    ("#d1771f", "o"), ("#9366d0", "s"), ("#2f9a68", "^"), ("#cf5b4f", "D"),
    ("#2a9db3", "v"), ("#bb62a6", "P"), ("#9a8d16", "X"), ("#7a8696", "*"),
)  # fmt: skip
"""Colour and marker of each line, at most 8."""
DASHES: tuple[Any, ...] = ((0, (6, 3)), (0, (1, 2)), (0, (6, 2, 1, 2)))

Found = Mapping[str, Any]


def build_study(found: Found) -> str:
    """The page as HTML text with no reference to anything outside it, from what ``study.json`` holds.

    Caps, all stated on the page: 200 rows, 8 groups in tables, 8 lines, 3 arms and 6 panels in the plot.
    """
    rows = sorted(found["rows"], key=lambda row: -score(row))
    protocol = [*flatten(found["protocol"]), *flatten(found["grid"], "grid"), ("time", seconds(found["seconds"]))]
    sections = [
        _plot_section(found, rows),
        _grid(found, rows),
        _curation(found),
        _test(found),
        ui.Section("protocol", "Protocol", [ui.Definitions(protocol)], "Protocol"),
        ui.Section("repeat", "Repeat this study", [ui.Text("", command=found["command"])], "Repeat"),
    ]
    return ui.render("study", f"Study of {shorten(found['run'], 120)}", _top(found), sections)


def score(row: Found) -> float:
    """Mean balanced accuracy on validation images; -1 where there is none."""
    value = None if row["validation"] is None else row["validation"]["mean"]["balanced"]
    return -1.0 if value is None else value


def _top(found: Found) -> list[ui.Block]:
    test, protocol = found["test"], found["protocol"]
    scopes = (test or {}).get("scopes") or {}
    tone = TONES.get(scopes["all"]["outcome"], "none") if scopes else "none"
    blocks: list[ui.Block] = [ui.Text(recommendation(found), f"verdict {tone}")]
    if test:
        text = "It is the best arm without synthetic images itself: there is nothing to compare on the test images."
        if scopes:
            text = (
                f"On {counted(scopes['all']['n'], 'test image')}, read after this choice and for these two only; "
                "differences in percentage points."
            )
        read = len(found["readings"])
        text += f" Results on test images were read {'once' if read == 1 else f'{read} times'} in this folder."
        if read > 1:
            text += " A grid that was chosen in the knowledge of earlier results flatters the difference."
        blocks += [ui.note(text), *outcome_chips(scopes)]
        run = shlex.quote(found["run"])
        learned = test.get("learned") or {}
        said = [f"To measure it, {test['remedy']}."] if test.get("remedy") else learned.get("warnings", ())
        blocks += [ui.Text(text.replace(" RUN", f" {run}"), "alert") for text in said]
    if found["apply"]:
        blocks += [ui.note("To apply it to the run:"), *(ui.Text("", command=line) for line in found["apply"])]
    trained = sum(row["validation"] is not None for row in found["rows"])
    return [*blocks, ui.Items([
        ui.fact(number(trained), "compared", "cells and arms without synthetic images"),
        ui.fact(number(trained * len(protocol["seeds"])), "classifiers", f"{protocol['steps']:,} steps each"),
        ui.fact(number(protocol["n_val"]), "validation images", "they choose"),
        ui.fact(number(protocol["n_test"]), "test images", "read after the choice" if test else "not read"),
    ], "facts")]  # fmt: skip


def recommendation(found: Found) -> str:
    """The sentence on top."""
    picked = found["recommendation"]
    if not picked:
        return f"No recommendation: {found['why_not']['reason']} {found['why_not']['remedy']}"
    row = next(row for row in found["rows"] if row["name"] == picked["name"])
    kind, other, value = "without", picked["control"], picked["control_score"]
    if not row["images"]:
        best = max(found["rows"], key=lambda row: score(row) if row["images"] else -2.0)
        kind, other, value = "with", best["name"], score(best)
    return (
        f"Recommended: {picked['name']} ({number(row['images'])} synthetic images). Balanced accuracy "
        f"{number(picked['score'])}, the highest of {picked['compared']} compared on validation images, against "
        f"{number(value)} of {other}, the best {kind} synthetic images."
    )


def _columns(found: Found) -> list[ui.Column]:
    return [ui.Column(scope) for scope in (CLASS_MEAN, *found["groups"][:MAX_GROUPS])]


def accuracies(block: Found | None, groups: Sequence[str]) -> list[ui.Cell]:
    """Mean ± standard deviation over seeds, of the balanced accuracy and of the accuracy of each group."""
    groups = groups[:MAX_GROUPS]
    if block is None:
        return [ui.Cell(NOTHING)] * (1 + len(groups))
    mean, sd = by_scope(block, "mean"), by_scope(block, "sd")
    singles = "seeds: " + ", ".join(number(v) for v in block["seeds"])
    return [
        ui.Cell(*with_sd(mean.get(scope), sd.get(scope)), singles if scope == CLASS_MEAN else "")
        for scope in (CLASS_MEAN, *groups)
    ]


def by_scope(block: Found, what: str) -> dict[str, float | None]:
    return {CLASS_MEAN: block[what]["balanced"], **block[what]["groups"]}


def lines_of(rows: Sequence[Found]) -> dict[str, list[Found]]:
    """Cells by recipe, curation and use, which differ in the number of images; that of the best cell first."""
    found: dict[str, list[Found]] = {}
    several = len({row["use"]["words"] for row in rows if row["use"]}) > 1
    for row in rows:
        if row["validation"] is not None and row["number"] is not None:
            choice = "" if row["curation"] == "none" else row["curation"]
            parts = (row["label"], choice, row["use"]["words"] if several else "")
            found.setdefault(", ".join(part for part in parts if part), []).append(row)
    return {name: sorted(own, key=lambda row: row["images"]) for name, own in found.items()}


def _plot_section(found: Found, rows: Sequence[Found]) -> ui.Section:
    title, groups = "Accuracy against the number of synthetic images", found["groups"]
    lines = lines_of(rows)
    if not lines:
        text = "There are no accuracies on validation images to show."
        return ui.Section("plot", title, [ui.note(text)], "Plot")
    without = [row for row in rows if row["number"] is None and row["validation"] is not None]
    text = "On validation images; points are means over seeds, bars one standard deviation."
    for shown, every, what in (
        (len(STYLES), lines, "lines, those of the highest points"),
        (MAX_LEVELS, without, "arms without synthetic images, the best"),
        (MAX_PANELS - 1, groups, "groups"),
    ):
        if len(every) > shown:
            text += f" Shown are {shown} of {len(every)} {what}."
    figure = study_plot(
        dict(list(lines.items())[: len(STYLES)]), without[:MAX_LEVELS], [CLASS_MEAN, *groups][:MAX_PANELS]
    )
    return ui.Section("plot", title, [ui.Figures([figure]), ui.note(text)], "Plot")


def study_plot(lines: Mapping[str, Sequence[Found]], without: Sequence[Found], scopes: Sequence[str]) -> Plot:
    """A panel per scope: lines with bars of one standard deviation, and dashed levels of arms without synthetic
    images, the best of them first."""
    names = [label(name, f"line {i + 1}", 60) for i, name in enumerate(lines)]
    names += [label(f"without synthetic images: {row['name']}", f"arm {i + 1}", 60) for i, row in enumerate(without)]
    widest = max((row["images"] for own in lines.values() for row in own), default=1)
    across = len(scopes) if len(scopes) <= 4 else 3
    down = -(-len(scopes) // across)

    def panel(axes: Any, scope: str, theme: Theme) -> list[Any]:
        style_axes(axes, theme, x="synthetic images", y="validation accuracy", title=label(scope, "group", 24))
        handles: list[Any] = []
        for i, (own, (colour, marker)) in enumerate(zip(lines.values(), STYLES, strict=False)):
            shift = (i - (len(lines) - 1) / 2) * 0.004 * widest  # bars of equal numbers do not hide each other
            known = [row for row in own if by_scope(row["validation"], "mean").get(scope) is not None]
            x = [row["images"] + shift for row in known]
            mean, sd = ([by_scope(row["validation"], what)[scope] or 0.0 for row in known] for what in ("mean", "sd"))
            axes.errorbar(x, mean, sd, color=colour, fmt="none", elinewidth=1.2, alpha=0.55)
            handles += axes.plot(x, mean, color=colour, marker=marker, linewidth=1.6, markersize=5.5)
        for row, dash in zip(without, DASHES, strict=False):
            value = by_scope(row["validation"], "mean").get(scope)
            style = {"color": theme.real if row is without[0] else theme.muted, "linestyle": dash}
            if value is not None:
                axes.axhline(value, zorder=1, **style)
            handles += axes.plot([], [], **style)
        axes.set_xlim(0, widest * 1.06)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return handles

    def paint(figure: Figure, theme: Theme) -> None:
        grid: Any = figure.subplots(down, across, squeeze=False)
        handles: list[Any] = []
        for axes, scope in zip(grid.ravel(), scopes, strict=False):
            handles = panel(axes, scope, theme)
        for axes in grid.ravel()[len(scopes) :]:
            axes.set_visible(False)
        legend = figure.legend(
            handles, names, loc="outside lower left", ncols=2, frameon=False, fontsize=8.5, labelcolor=theme.ink,
            handlelength=3.2,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)

    alt = f"Validation accuracy against the number of synthetic images, by way of using them, for {', '.join(scopes)}"
    return plot(alt, paint, 270 * down + 18 * -(-len(names) // 2) + 20)


def _grid(found: Found, rows: Sequence[Found]) -> ui.Section:
    picked, groups = found["recommendation"], found["groups"]
    blocks: list[ui.Block] = []
    if picked:
        equal = f" Equal to the recommended one: {'; '.join(picked['equal'][:20])}." if picked["equal"] else ""
        blocks.append(ui.Text(
            f"The choice: {picked['rule']}.{equal} The highest of many is so partly by luck: how much it gains is "
            "better judged by the test images."))  # fmt: skip
    table = [_grid_row(row, groups, picked) for row in rows[:MAX_ROWS]]
    heads: ui.Cells = [
        "recipe", "number", "curation", "use", ui.Column("synthetic images"), *_columns(found), ui.Column(ADJUSTMENT),
    ]  # fmt: skip
    text = "Mean ± standard deviation over seeds. Where curation left fewer images than wanted, fewer were used."
    for shown, every, what in ((MAX_ROWS, rows, "rows, with lower accuracies,"), (MAX_GROUPS, groups, "groups")):
        if len(every) > shown:
            text += f" {number(len(every) - shown)} more {what} are in study.json."
    blocks += [ui.Table(heads, table, "dense"), ui.note(text)]
    chosen = adjustment_note(rows)
    blocks += [ui.note(chosen)] if chosen else []
    return ui.Section("grid", "The grid, by balanced accuracy on validation images", blocks, "Grid")


def _grid_row(row: Found, groups: Sequence[str], picked: Found | None) -> ui.Cells:
    synthetic = row["number"] is not None
    kind = "synthetic" if synthetic else "real"
    badge = ""
    if picked and row["name"] in (picked["name"], picked["control"]):
        badge = ui.span("recommended" if row["name"] == picked["name"] else "best without", f"badge {kind}")
    few = f"of {row['wanted']:,}; {counted(row['short'], 'class', 'classes')} short"
    small = [few * (row["images"] < row["wanted"]), row["reason"]]
    head = ui.joined([ui.span("", f"dot {kind}"), row["label"], badge])
    return [
        ui.Cell(head, title=row["name"], style="control" if badge else ""),
        shorten(row["number"], 60) if synthetic else NOTHING,
        row["curation"] or NOTHING,
        row["use"]["words"] if row["use"] else NOTHING,
        ui.Cell(number(row["images"]), "; ".join(text for text in small if text)),
        *accuracies(row["validation"], groups),
        adjustment_cell(decisions_of(row)),
    ]


def _curation(found: Found) -> ui.Section | None:
    """A table of all choices of images."""
    choices = found["curated"]
    if not choices:
        return None
    rows = []
    for row in choices[:MAX_ROWS]:
        out = [f"{REASONS[reason][0]} {n:,}" for reason, n in row["reasons"].items() if reason != "kept"]
        counts = [number(row[key]) for key in ("wanted", "candidates", "kept")]
        rows.append(
            [row["policy"], shorten(row["number"], 60), *counts, ", ".join(out) or NOTHING, ui.code(row["file"])]
        )
    text = "The scores of every candidate are in the folder curation/."
    if len(choices) > MAX_ROWS:
        text += f" {number(len(choices) - MAX_ROWS)} more rows are in study.json."
    heads = [ui.Column(text) for text in ("wanted", "candidates", "kept")]
    table = ui.Table(["curation", "number", *heads, "not kept", "file"], rows)
    return ui.Section("curation", "Which images were kept", [table, ui.note(text)], "Curation")


def _test(found: Found) -> ui.Section | None:
    test = found["test"]
    if not test:
        return None
    rows = [[arm, *accuracies(block, found["groups"])] for arm, block in test["numbers"].items()]
    blocks: list[ui.Block] = [ui.Table(["arm", *_columns(found)], rows)]
    if test["scopes"]:
        blocks.append(ui.note(
            "Differences on top: recommended minus best without, over images of the classes that claims are made of; "
            "bootstrap over seeds and, within classes, test images. The comparison declared beforehand is that over "
            "all, with a 95 % interval; those of groups are corrected for their number by Holm's method."))  # fmt: skip
    return ui.Section("test", "On the test images", blocks, "Test images")
