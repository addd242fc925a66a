"""The section on quality: what the numbers say, each class against its size, tables by group, how it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from imbdiff.data.names import counted
from imbdiff.metrics.measures import PANELS, QUESTIONS
from imbdiff.metrics.numbers import ClassColumn, Number
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.class_plot import Classes, Panel, class_plot
from imbdiff.reporting.copies import beyond_held_out, headline
from imbdiff.reporting.measured import (
    SMALL,
    GroupTable,
    Measured,
    counts_of,
    heading,
    metric_of,
    printed,
    reasons,
    with_interval,
)
from imbdiff.reporting.text import NOTHING, flatten, number

MAX_TABLES, MAX_PANELS, MAX_CLASS_ROWS = 12, 4, 1000
SIMILAR = 1.1
"""Sizes of two sets up to this ratio count as equal for numbers that depend on n."""
NEARLY = 0.75
"""Share of the classes of the best-known metric that a panel's metric must have."""

Found = Mapping[str, Any]


def quality(found: Found | None, run: str) -> ui.Section:
    """The section of `evaluate(...)`. Caps: 12 tables, 1,000 classes in a table."""
    measured = Measured.of(found)
    blocks: list[ui.Block] = []
    memorisation = (found or {}).get("memorisation")
    if memorisation and memorisation["warnings"]:
        copies = ui.joined([headline(memorisation), ui.link("memorisation", "Are they copies?")])
        blocks.append(ui.Text(copies, "alert" if beyond_held_out(memorisation) else ""))
    blocks.append(ui.Items(list((found or {}).get("warnings", []))))
    if measured is None:
        blocks.append(ui.missing("Not computed.", f"imbdiff evaluate {run}"))
        return ui.Section("metrics", "Quality of the synthetic images", blocks, "Quality")
    if measured.main.judge.ranking_only:
        other = measured.found.get("protocol", {}).get("pretrained_judge")
        text = (
            "There was no judge that learned from images like these. The numbers below order generators, they do not "
            "say how good the images look."
        )
        blocks.append(ui.Text(ui.joined([text, f"Judge: {other}." if other else ""]), "missing"))
    blocks += [ui.Definitions(answers(measured), "answers"), *_by_class(measured), *_by_group(measured.main)]
    for table in measured.tables[1:MAX_TABLES]:
        ranking = " (for ranking only)" if table.judge.ranking_only else ""
        line = f"{table.judge.extractor} against {table.reference}{ranking}"
        blocks.append(ui.Fold(line, _table_blocks(table), kind="folded"))
    if len(measured.tables) > MAX_TABLES:
        more = counted(len(measured.tables) - MAX_TABLES, "more table")
        blocks.append(ui.note(ui.joined([more, "of other extractors in", ui.code("metrics.json")])))
    blocks.append(ui.Fold("How this was measured", how_measured(measured.found), kind="box"))
    return ui.Section("metrics", "Quality of the synthetic images", blocks, "Quality")


def answers(measured: Measured) -> list[tuple[str, str]]:
    """At most four questions with answers, each about all classes and the last group, of the main extractor."""
    made = []
    for question, metrics in QUESTIONS:
        known = [n for m in metrics if (n := measured.main.own.get((m, "all"))) is not None]
        first = next((n for n in known if n.value is not None), None)
        if first is not None:
            scopes = dict.fromkeys(["all", measured.main.scopes[-1]])
            made.append((question, " ".join(_about(measured.main, first.metric, s) for s in scopes).strip()))
        elif known:
            made.append((question, "There are too few images to say; the notes below say what is needed."))
    return made


def _about(table: GroupTable, metric: str, scope: str) -> str:
    """A sentence with the interval, and how the number compares with that of real images."""
    own, real = table.own.get((metric, scope)), table.real.get((metric, scope))
    if own is None:
        return ""
    where = "" if scope == "all" else f"In the {scope} group "
    if own.value is None:
        return f"{where}there are too few images to say."
    row = metric_of(own)
    if scope != "all":
        lead = f"{where}it is {with_interval(own)}"
    else:
        lead = f"{own.short} {with_interval(own)}" + (f" ({row.what})" if row.what else "")
    return lead + _against(own, real) + "."


def _against(own: Number, real: Number | None) -> str:
    """How the number compares with that of real images: a difference is claimed only where the intervals are apart."""
    if real is None:
        return ""
    who = "real reference images" if metric_of(own).alone else "real training images"
    if real.value is None:
        return f"; of {who} there are too few for this number"
    n = [max(1, one.n_synthetic) for one in (own, real)]
    if metric_of(own).by_n and max(n) > SIMILAR * min(n):
        return f"; {number(n[1])} {who}: {with_interval(real)}, a rough baseline, as this number depends on n"
    if own.low is None or own.high is None or real.low is None or real.high is None:
        return f"; {who}: {with_interval(real)}"
    lower, higher = own.high < real.low, own.low > real.high
    how = "lower than" if lower else "higher than" if higher else "not clearly different from"
    return f", {how} the {with_interval(real)} of {who}"


def _by_group(table: GroupTable) -> list[ui.Block]:
    text: str = "Value with its 95 % interval; arrows say which way is better."
    if table.real:
        grey = (
            "In grey: the same for real images, which is what can be hoped for: the training images in place of the "
            "synthetic ones; for agreement and IS the reference images."
        )
        text = ui.joined([text, ui.span(grey, "baseline")])
    head = f"By group: {table.judge.extractor or 'an extractor without a name'} against {table.reference}"
    return [ui.heading(head), ui.note(text), *_table_blocks(table)]


def _table_blocks(table: GroupTable) -> list[ui.Block]:
    blocks = [*_part(table, main=True), *(ui.note(text) for text in table.notes)]
    names = [table.head(m).short for m in table.metrics(main=False)]
    return [*blocks, ui.Fold(f"More numbers: {', '.join(names)}", _part(table, main=False))] if names else blocks


def _part(table: GroupTable, main: bool) -> list[ui.Block]:
    """The numbers that matter most, or the others, and why some were refused."""
    metrics, shown = table.metrics(main), table.printable(main)
    own = [n for m in metrics for s in table.scopes if (n := table.own.get((m, s))) is not None]
    refused = reasons([n for n in own if n.refused])
    blocks: list[ui.Block] = []
    if shown:
        columns = [ui.Column(heading(table.head(m)), title=metric_of(table.head(m)).what) for m in shown]
        rows = [[ui.Cell(s, table.counts(s)), *(_cell(table, m, s) for m in shown)] for s in table.scopes]
        blocks.append(ui.Table([ui.Cell("scope", "synthetic / reference images"), *columns], rows, "dense"))
    if refused:
        lead = "Refused, not printed" if shown else "Nothing could be printed"
        blocks += [ui.note(f"{lead}, as n does not support it:"), ui.Items(refused, "reasons")]
    return blocks


def _cell(table: GroupTable, metric: str, scope: str) -> ui.Cell:
    """A number of the synthetic images and, below it, of the real ones."""
    own, real = table.own.get((metric, scope)), table.real.get((metric, scope))
    text = Markup(NOTHING) if own is None else _printed(own, "own")
    below = Markup("") if real is None else ui.span(_printed(real, "real"), "baseline")
    return ui.Cell(text + below, style="refused" if own and own.refused else "")


def _printed(n: Number, style: str) -> Markup:
    if n.refused:
        return ui.span("refused", "", f"{n.refused}; {counts_of(n)}")
    value, between = printed(n)
    small = Markup(" <small>{}</small>").format(between) if between else Markup("")
    return ui.span(value + SMALL * bool(n.extra.get("small_sample")), style, counts_of(n)) + small


# -- class by class


def class_panels(measured: Measured) -> tuple[Classes, list[Panel]] | None:
    """Quality of each class, by the main extractor against the first reference; None for fewer than two classes.

    Classes are ordered by their training images; where these are not known, by the reference's.
    """
    classes = measured.found.get("classes") or {}
    if len(classes.get("names") or ()) < 2:
        return None
    counts = np.asarray(classes.get("n_train") or classes["n_reference"])
    order = np.argsort(-counts, kind="stable")
    columns: dict[tuple[str, str], ClassColumn] = {}
    for row in classes.get("metrics") or ():
        column = ClassColumn.from_json(row)
        by_main = column.metric == "CAS" or column.fingerprint == measured.main.judge.fingerprint
        if by_main and (metric_of(column).alone or column.reference == measured.main.reference):
            columns[column.metric, column.of] = column

    def series(column: ClassColumn | None) -> np.ndarray | None:
        if column is None or not _known(column):
            return None
        return np.array([column.value, column.low, column.high], dtype=float)[:, order]

    panels = []
    for metrics in PANELS:
        known = [(c, n) for m in metrics if (c := columns.get((m, "synthetic"))) and (n := _known(c))]
        if known:
            column = next(c for c, n in known if n >= NEARLY * max(n for _, n in known))
            metric = metric_of(column)
            real = series(columns.get((column.metric, "reference" if metric.alone else "train")))
            refused = np.array([reason is not None for reason in column.refused])[order]
            panels.append(Panel(heading(column), series(column), real, metric.share, refused))
    if not panels:
        return None
    names, group = classes["names"], classes.get("group") or ()
    shown = Classes(
        order.tolist(), [str(names[k]) for k in order], [str(group[k]) for k in order] if group else [],
        counts[order].tolist(), "training" if classes.get("n_train") else "reference",
    )  # fmt: skip
    return shown, panels[:MAX_PANELS]


def _known(column: ClassColumn) -> int:
    return sum(value is not None for value in column.value)


def _by_class(measured: Measured) -> list[ui.Block]:
    """The plot of the quality of each class, and its numbers as a table."""
    found = class_panels(measured)
    if found is None:
        return []
    classes, panels = found
    c = len(classes.order)
    rows: list[ui.Cells] = []
    for i in range(min(c, MAX_CLASS_ROWS)):
        group = classes.group[i] if classes.group else ""
        values = [cell for panel in panels for cell in (panel.text(panel.synthetic, i), panel.text(panel.real, i))]
        rows.append([ui.name(classes.names[i]), group, number(classes.counts[i]), *values])
    columns: ui.Cells = ["class", "group", ui.Column(f"{classes.counted} images")]
    columns += [column for panel in panels for column in (ui.Column(panel.name), ui.Column("real"))]
    text = (
        f"Classes are sorted by {classes.counted} images; of many classes lines are running averages. Hollow marks on "
        "the lower edge: classes with too few images for this number. Real images: the training images in place of "
        "the synthetic ones; for agreement, the reference images."
    )
    left = f" (the {number(len(rows))} largest of {number(c)} classes)" if len(rows) < c else ""
    real = any(panel.real is not None for panel in panels)
    return [
        ui.heading("Each class, from the largest to the smallest"),
        ui.legend(synthetic="synthetic images, with interval", real="real images, with interval" if real else ""),
        ui.Figures([class_plot(classes, panels)]),
        ui.note(text),
        ui.Fold(f"These numbers as a table{left}", [ui.Table(columns, rows)]),
    ]


# -- what the numbers depend on


def how_measured(metrics: Found) -> list[ui.Block]:
    """What the numbers depend on, so that they can be repeated."""
    protocol = dict(metrics.get("protocol") or {})
    extractors = protocol.pop("extractors", ())
    measures = {key: f"{m['what']} ({m['source']})" for key, m in protocol.pop("measures", {}).items()}
    rows = [row for row in flatten(protocol) if row[1] != NOTHING]
    rows.append(("intervals", "95 %; each measure below says what its interval covers"))
    details = [
        ui.Fold(f"Extractor {e['name']}", [ui.Definitions(flatten(e))], i == 0) for i, e in enumerate(extractors)
    ]
    every = ui.Fold("Every measure, with its source", [ui.Definitions(list(measures.items()))])
    return [ui.Definitions(rows), *details, ui.note(_fid(extractors)), every]


def _fid(extractors: Any) -> str:
    """Whether a number here may be called FID."""
    own = next((e for e in extractors if e["is_fid"]), None)
    if own is None:
        return (
            "No number here is an FID: that name belongs to one set of Inception weights, which were not at hand. "
            "FD[name] is the same distance with another extractor, comparable only with numbers of the same name, "
            "fingerprint and reference."
        )
    unverified = "" if own["verified"] else " (unverified: not yet compared with published features)"
    return f"FID, FID∞ and KID are computed with the Inception weights that these names stand for{unverified}."
