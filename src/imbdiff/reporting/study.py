"""The page of a study: the recommendation and the commands that apply it, the grid, and one look at the test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from imbdiff.data.names import counted
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.classifier import CLASS_MEAN, points
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.curated import REASONS, curation
from imbdiff.reporting.plots import Plot, Theme, is_narrow, plot, style_axes, thousands
from imbdiff.reporting.text import NOTHING, clean, flatten, label, number, seconds, shorten

MAX_ROWS = 200
MAX_GROUPS = 8
MAX_MISSING = 50
MAX_POLICIES, RAREST, OTHERS = 6, 3, 1
MAX_LINES, MAX_LEVELS, MAX_PANELS = 8, 3, 6
COLOURS = (
    ("#c46a10", "#f0a85a"), ("#7b4fb5", "#b493ea"), ("#1f7a4d", "#62c791"), ("#b23a2e", "#f08a7d"),
    ("#0f7f93", "#5cc5d6"), ("#a0478c", "#e08fce"), ("#7d7200", "#d9cc5a"), ("#5b6675", "#c3cbd5"),
)  # fmt: skip
"""Of the lines, on light and dark pages; markers and dashes tell them apart as well."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)))
LEVELS: tuple[Any, ...] = ((0, (6, 3)), (0, (1, 2)), (0, (6, 2, 1, 2)))

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Curated:
    """What one policy keeps and drops for one number of images: results with `curated`; `file` has all scores."""

    policy: str
    number: str
    file: str
    data: ReportData


def build_study(found: Found, curated: Sequence[Curated] = ()) -> str:
    """The page as HTML text with no reference to anything outside it, from what ``study.json`` holds.

    Caps, all stated on the page: 200 rows, 8 groups in tables, 8 lines, 3 arms and 6 panels in the plot, 50 classes
    without validation images, 200 choices of images, pictures of 6 policies with 3 rare classes and one other each.
    """
    rows = sorted(found["rows"], key=lambda row: -_score(row))
    sections = [
        _missing(found),
        _plot_section(found, rows),
        _grid(found, rows),
        *_curation(found, curated),
        _test(found),
        _exploratory(found),
        _protocol(found),
        ui.Section("repeat", "Repeat this study", [ui.Text("", command=found["command"])], "Repeat"),
    ]
    page = ui.Page("study", f"Study of {shorten(found['run'], 120)}", _top(found), [s for s in sections if s])
    return ui.render(page)


def _top(found: Found) -> list[ui.Block]:
    test = found.get("test")
    blocks: list[ui.Block] = [
        ui.Text(recommendation(found), f"verdict {tone(((test or {}).get('scopes') or {}).get('all'))}")
    ]
    blocks += [ui.note(text) for text in (_tested(found), _looks(found.get("looks") or ())) if text]
    chips = [
        ui.Cell(ui.joined([Markup("<b>{}</b>").format(clean(d.scope)), ui.span(d.difference, "")]), style=d.tone)
        for d in differences(test)
    ]
    blocks.append(ui.Items(chips, "chips"))
    if found["apply"]:
        blocks.append(ui.note("To apply it to the run:"))
        blocks += [ui.Text("", command=line) for line in found["apply"]]
    protocol = found["protocol"]
    trained = sum(row["validation"] is not None or not row["reason"] for row in found["rows"])
    looked = "looked at after the choice" if test else "looked at" if found.get("exploratory") else "not looked at"
    return [*blocks, ui.Items([
        ui.fact(number(trained), "compared", "cells and arms without synthetic images"),
        ui.fact(number(trained * len(protocol["seeds"])), "classifiers", f"{protocol['steps']:,} steps each"),
        ui.fact(number(protocol["n_val"]), "validation images", "they choose"),
        ui.fact(number(protocol["n_test"]), "test images", looked),
    ], "facts")]  # fmt: skip


def _score(row: Found) -> float:
    value = None if row["validation"] is None else row["validation"]["mean"]["balanced"]
    return -1.0 if value is None else float(value)


def recommendation(found: Found) -> str:
    """The sentence on top."""
    picked = found.get("recommendation")
    if not picked:
        why = found.get("why_not") or {"reason": "validation images of some classes are missing.", "remedy": ""}
        return f"No recommendation: {why['reason']} {why['remedy']}".strip()
    row = next(row for row in found["rows"] if row["name"] == picked["name"])
    end = f"of {picked['compared']} compared on validation images."
    if row["images"]:
        return (
            f"Recommended: {picked['name']} ({row['images']:,} synthetic images). Balanced accuracy "
            f"{number(picked['score'])}, against {number(picked['control_score'])} of {picked['control']}, the best "
            f"without synthetic images: the highest {end}"
        )
    best = max((r for r in found["rows"] if r["images"]), key=_score, default=None)
    text = f"Recommended: no synthetic images. {picked['name']} has a balanced accuracy of {number(picked['score'])}"
    if best is not None and _score(best) >= 0:
        text += f", against {number(_score(best))} of the best with synthetic images, {best['name']}"
    return f"{text}: the highest {end}"


def tone(scope: Found | None) -> str:
    """good, bad or same, as the interval of the difference on test images says; none without one."""
    if not scope or scope.get("low") is None:
        return "none"
    return "good" if scope["low"] > 0 else "bad" if scope["high"] < 0 else "same"


def _looks(looks: Sequence[Found]) -> str:
    """How often the test images were looked at in this folder."""
    if not looks:
        return ""
    text = f"The test images were looked at {'once' if len(looks) == 1 else f'{len(looks)} times'} in this folder"
    if len(looks) == 1:
        return f"{text}."
    return (
        f"{text}: whoever saw an earlier look may have asked for this grid because of it. Its difference on the test "
        "images is then flattered, as any that was chosen by."
    )


def _tested(found: Found) -> str:
    picked, test = found.get("recommendation"), found.get("test")
    if not picked or not test:
        return ""
    if test["scopes"] is None:
        return "It is the best arm without synthetic images itself: there is nothing to compare on the test images."
    whole = test["scopes"]["all"]
    if whole["difference"] is None:
        return f"On the test images: not compared, {whole['reason']}."
    only = "" if found.get("exploratory") is not None else " and for these two only"
    return (
        f"On {counted(whole['n'], 'test image')}, looked at after this choice{only}: "
        f"{_between(whole)} points of accuracy against {picked['control']}."
    )


def _between(row: Found) -> str:
    return f"{points(row['difference'])} ({points(row['low'])} to {points(row['high'])})"


@dataclass(frozen=True)
class Difference:
    """The difference of the two finalists in one scope."""

    scope: str
    difference: str
    tone: str
    n: str


def differences(test: Found | None) -> list[Difference]:
    rows = []
    for scope, row in ((test or {}).get("scopes") or {}).items():
        text = str(row["reason"]) if row["difference"] is None else _between(row)
        rows.append(Difference(scope, text, tone(row), number(row["n"])))
    return rows[: MAX_GROUPS + 1]


def _groups(found: Found) -> list[str]:
    return [str(group) for group in found["groups"]]


def _columns(found: Found) -> list[ui.Column]:
    return [ui.Column(scope) for scope in (CLASS_MEAN, *_groups(found)[:MAX_GROUPS])]


def accuracies(block: Found | None, groups: Sequence[str]) -> list[ui.Cell]:
    """Mean ± standard deviation over seeds, of the mean over classes and of each group."""
    groups = groups[:MAX_GROUPS]
    if block is None:
        return [ui.Cell(NOTHING)] * (1 + len(groups))
    mean, sd = block["mean"], block["sd"]
    pairs = [(mean["balanced"], sd["balanced"]), *((mean["groups"].get(g), sd["groups"].get(g)) for g in groups)]
    cells = [ui.Cell(number(m), "" if m is None or s is None else f"± {number(s)}") for m, s in pairs]
    singles = "seeds: " + ", ".join(number(v) for v in block["seeds"])
    return [ui.Cell(cells[0].text, cells[0].small, singles), *cells[1:]]


def _missing(found: Found) -> ui.Section | None:
    names = list(found["missing"])
    if not names:
        return None
    blocks: list[ui.Block] = [
        ui.Text("A choice would be made without these classes. The accuracies below are of the other classes."),
        ui.Items([ui.name(one) for one in names[:MAX_MISSING]]),
    ]
    if len(names) > MAX_MISSING:
        blocks.append(ui.note(f"and {number(len(names) - MAX_MISSING)} more"))
    return ui.Section("missing", "Classes without validation images", blocks)


@dataclass(frozen=True)
class Line:
    """One way of using synthetic images: number of them, mean accuracy and standard deviation by scope, per point."""

    name: str
    points: tuple[tuple[int, Mapping[str, float | None], Mapping[str, float | None]], ...]


@dataclass(frozen=True)
class Level:
    """An arm without synthetic images: mean accuracy by scope; `control` is the best of them."""

    name: str
    mean: Mapping[str, float | None]
    control: bool


def _by_scope(row: Found, block: str) -> dict[str, float | None]:
    found = row["validation"][block]
    return {CLASS_MEAN: found["balanced"], **found["groups"]}


def lines_of(rows: Sequence[Found]) -> list[Line]:
    """One line per recipe, curation and use; the line of the highest score first, as `rows` are."""
    uses = {row["use"]["words"] for row in rows if row["use"]}
    found: dict[tuple[str, str, str], list[Found]] = {}
    for row in rows:
        if row["validation"] is not None and row["number"] is not None:
            found.setdefault((row["label"], row["curation"], row["use"]["words"]), []).append(row)
    lines = []
    for (recipe, choice, use), own in found.items():
        parts = [recipe, "" if choice == "none" else choice, use if len(uses) > 1 else ""]
        made = [(row["images"], _by_scope(row, "mean"), _by_scope(row, "sd")) for row in own]
        lines.append(Line(", ".join(p for p in parts if p), tuple(sorted(made, key=lambda p: p[0]))))
    return lines


def _plot_section(found: Found, rows: Sequence[Found]) -> ui.Section:
    title = "Accuracy against the number of synthetic images"
    lines, groups, picked = lines_of(rows), _groups(found), found.get("recommendation")
    if not lines:
        text = "There are no accuracies on validation images to show."
        return ui.Section("plot", title, [ui.note(text)], "Plot")
    without = [row for row in rows if row["number"] is None and row["validation"] is not None]
    best = picked["control"] if picked else None
    levels = [Level(row["name"], _by_scope(row, "mean"), row["name"] == best) for row in without[:MAX_LEVELS]]
    text = (
        "On validation images; points are means over seeds, bars one standard deviation. Points are a little apart "
        "where numbers are equal."
    )
    if len(lines) > MAX_LINES:
        text += f" Shown are the {MAX_LINES} of {len(lines)} lines with the highest points; all are in the table."
    if len(without) > MAX_LEVELS:
        text += f" Shown are the best {MAX_LEVELS} of {len(without)} arms without synthetic images."
    if len(groups) + 1 > MAX_PANELS:
        text += f" Shown are {MAX_PANELS - 1} of {len(groups)} groups."
    figure = accuracy_plot(lines[:MAX_LINES], levels, [CLASS_MEAN, *groups][:MAX_PANELS])
    return ui.Section("plot", title, [ui.Figures([figure]), ui.note(text)], "Plot")


def accuracy_plot(lines: Sequence[Line], levels: Sequence[Level], scopes: Sequence[str]) -> Plot:
    """Lines with bars of one standard deviation, and dashed levels of the arms without synthetic images.

    Args:
        lines: at most 8; levels: at most 3; scopes: at most 6, in the order of the panels.
    """
    names = [label(line.name, f"line {i + 1}", 60) for i, line in enumerate(lines)]
    names += [label(f"without synthetic images: {v.name}", f"arm {i + 1}", 60) for i, v in enumerate(levels)]
    widest = max((point[0] for line in lines for point in line.points), default=1)
    across = min(len(scopes), 4 if len(scopes) != 5 else 3)

    def panel(axes: Any, scope: str, theme: Theme, dark: bool) -> list[Any]:
        style_axes(axes, theme, x="synthetic images", title=label(scope, "group", 24))
        handles = []
        for i, line in enumerate(lines):
            colour = COLOURS[i % len(COLOURS)][dark]
            # a little apart, so that bars of equal numbers do not hide each other
            shift = (i - (len(lines) - 1) / 2) * 0.004 * widest
            known = [(n + shift, y, s.get(scope) or 0.0) for n, m, s in line.points if (y := m.get(scope)) is not None]
            for x, mean, sd in known:
                axes.plot([x, x], [mean - sd, mean + sd], color=colour, linewidth=1.2, alpha=0.55)
            style = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
            xs, ys = [x for x, _, _ in known], [y for _, y, _ in known]
            handles += axes.plot(xs, ys, linewidth=1.6, markersize=5.5, **style)
        for i, level in enumerate(levels):
            value = level.mean.get(scope)
            colour = theme.real if level.control else theme.muted
            style = {"color": colour, "linestyle": LEVELS[i % len(LEVELS)], "linewidth": 1.6 if level.control else 1.1}
            if value is not None:
                axes.axhline(value, zorder=1, **style)
            handles += axes.plot([], [], **style)
        axes.set_xlim(0, widest * 1.06)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return handles

    def paint(figure: Figure, theme: Theme) -> None:
        slim = is_narrow(figure)
        columns = 1 if slim else across
        grid: Any = figure.subplots(-(-len(scopes) // columns), columns, squeeze=False)
        handles: list[Any] = []
        for axes, scope in zip(grid.ravel(), scopes, strict=False):
            handles = panel(axes, scope, theme, theme.paper != "#ffffff")
        for axes in grid.ravel()[len(scopes) :]:
            axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel("validation accuracy", fontsize=8.5, color=theme.muted)
        legend = figure.legend(
            handles, names, loc="outside lower left", ncols=1 if slim else 2, frameon=False, fontsize=8.5,
            labelcolor=theme.ink, handlelength=3.2,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)

    size = (1000, 270 * -(-len(scopes) // across) + 18 * -(-len(names) // 2) + 20)
    narrow = (400, 210 * len(scopes) + 18 * len(names) + 20)
    alt = (
        f"Validation accuracy against the number of synthetic images, {len(lines)} ways of using them, for "
        f"{', '.join(scopes)}; bars one standard deviation over seeds, dashed lines the arms without synthetic images"
    )
    return plot(alt, paint, size, narrow)


def _grid(found: Found, rows: Sequence[Found]) -> ui.Section:
    picked, groups = found.get("recommendation"), _groups(found)
    blocks: list[ui.Block] = []
    if picked:
        equal = f" Equal to the recommended one: {'; '.join(picked['equal'][:20])}." if picked["equal"] else ""
        blocks.append(ui.Text(
            f"The choice: {picked['rule']}.{equal} The highest of many is so partly by luck: how much it gains is "
            "better judged by the test images."))  # fmt: skip
    table = [_grid_row(row, groups, picked) for row in rows[:MAX_ROWS]]
    heads: ui.Cells = ["recipe", "number", "curation", "use", ui.Column("synthetic images"), *_columns(found)]
    text = "Mean ± standard deviation over seeds. Where curation left fewer images than wanted, fewer were used."
    if len(rows) > MAX_ROWS:
        text += f" {number(len(rows) - MAX_ROWS)} more rows, with lower accuracies, are in study.json."
    if len(groups) > MAX_GROUPS:
        text += f" {number(len(groups) - MAX_GROUPS)} more groups are in study.json."
    blocks += [ui.Table(heads, table, "dense"), ui.note(text)]
    return ui.Section("grid", "The grid, by balanced accuracy on validation images", blocks, "Grid")


def _grid_row(row: Found, groups: Sequence[str], picked: Found | None) -> ui.Row:
    badge = ""
    if picked and row["name"] in (picked["name"], picked["control"]):
        badge = "recommended" if row["name"] == picked["name"] else "best without"
    synthetic = row["number"] is not None
    kind = "synthetic" if synthetic else "real"
    few = [f"of {row['wanted']:,}; {counted(row['short'], 'class', 'classes')} short"] * (row["images"] < row["wanted"])
    mark = [ui.span(badge, "badge synthetic" if synthetic else "badge")] if badge else []
    head = ui.Cell(ui.joined([ui.span("", f"dot {kind}"), row["label"], *mark]), title=row["name"])
    return ui.Row([
        head,
        shorten(row["number"], 60) if synthetic else NOTHING,
        row["curation"] or NOTHING,
        row["use"]["words"] if row["use"] else NOTHING,
        ui.Cell(number(row["images"]), "; ".join([*few, *([row["reason"]] if row["reason"] else [])])),
        *accuracies(row["validation"], groups),
    ], "control" if badge else "")  # fmt: skip


def _curation(found: Found, curated: Sequence[Curated]) -> list[ui.Section]:
    """A table of all choices of images, and for each policy its section as a run's page has it."""
    choices = list(found.get("curated") or ())
    if not choices:
        return []
    rows = []
    for row in choices[:MAX_ROWS]:
        out = [f"{REASONS.get(reason, reason)} {n:,}" for reason, n in row["reasons"].items() if reason != "kept"]
        counts = [number(row[key]) for key in ("wanted", "candidates", "kept")]
        rows.append([row["policy"], shorten(row["number"], 60), *counts, ", ".join(out) or NOTHING])
    text = "The scores of every candidate are in curation/, in the files that study.json names."
    if len(choices) > MAX_ROWS:
        text += f" {number(len(choices) - MAX_ROWS)} more rows are in study.json."
    text += " Below, kept and dropped images of each policy, for one number." if curated else ""
    hidden = len({row["policy"] for row in choices}) - MAX_POLICIES
    text += f" {number(hidden)} more policies are not shown." if hidden > 0 else ""
    heads: ui.Cells = [
        "curation",
        "number",
        ui.Column("wanted"),
        ui.Column("candidates"),
        ui.Column("kept"),
        "not kept",
    ]
    sections = [ui.Section("curation", "Which images were kept", [ui.Table(heads, rows), ui.note(text)], "Curation")]
    for i, one in enumerate(curated[:MAX_POLICIES], start=1):
        own = curation(one.data, RAREST, OTHERS)
        if own is not None:
            file = ui.note(ui.joined(["The scores of every candidate:", ui.code(one.file)]))
            sections.append(
                ui.Section(f"curation-{i}", f"{one.policy}, for {shorten(one.number, 60)}", [*own.blocks, file])
            )
    return sections


def _test(found: Found) -> ui.Section | None:
    test = found.get("test")
    if not test:
        return None
    one = len(test["numbers"]) == 1
    if found.get("exploratory") is not None:
        who = "The recommended arm" if one else "The recommended one and the best without synthetic images"
        text = (
            f"{who}, chosen on validation images. All others were looked at after the choice as well (--reveal-test): "
            "they are below, as exploratory."
        )
    else:
        who = "the recommended arm" if one else "the recommended one and the best without synthetic images"
        text = f"Looked at after the choice, for {who} only."
    rows: list[ui.Cells] = [[arm, *accuracies(block, _groups(found))] for arm, block in test["numbers"].items()]
    blocks: list[ui.Block] = [ui.Text(text), ui.Table(["arm", *_columns(found)], rows)]
    if differences(test):
        table: list[ui.Cells] = [[d.scope, ui.Cell(d.difference, style=d.tone), d.n] for d in differences(test)]
        blocks += [
            ui.Heading("Difference"),
            ui.Table(["scope", ui.Column("difference in points (interval)"), ui.Column("test images")], table),
            ui.note("Recommended minus best without, over images of the classes that claims are made of; bootstrap "
                 "over seeds and, within classes, test images. The comparison declared beforehand is that over all of "
                 "them, with a 95 % interval. Those of groups are corrected for their number by Holm's method, and "
                 "their intervals are widened with it, so that an interval excludes 0 where the corrected p-value is "
                 "below 0.05, and only there."),
        ]  # fmt: skip
    return ui.Section("test", "On the test images", blocks, "Test images")


def _exploratory(found: Found) -> ui.Section | None:
    explored = found.get("exploratory")
    if explored is None:
        return None
    rows: list[ui.Cells] = [
        [row["name"], *accuracies(row["numbers"], _groups(found))] for row in explored["rows"][:MAX_ROWS]
    ]
    text = (
        f"{number(explored['compared'])} compared, in the order of the grid. These numbers chose nothing, and a "
        "choice by them would need other test images to be tested on."
    )
    blocks: list[ui.Block] = [ui.Text(text), ui.Table(["arm", *_columns(found)], rows)]
    if explored["compared"] > len(rows):
        blocks.append(ui.note(f"{number(explored['compared'] - len(rows))} more are in study.json."))
    return ui.Section("exploratory", "Exploratory: all of them on the test images", blocks, "Exploratory")


def _protocol(found: Found) -> ui.Section:
    rows = [*flatten(found["protocol"]), *flatten(found["grid"], "grid"), ("time", seconds(found["seconds"]))]
    return ui.Section("protocol", "Protocol", [ui.Definitions(rows)], "Protocol")
