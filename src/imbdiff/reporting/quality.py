"""The section on quality: what the numbers say, each class against its size, tables by group, how it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from imbdiff.data.names import counted
from imbdiff.metrics.measures import PANELS, QUESTIONS
from imbdiff.metrics.numbers import ClassColumn, Number
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.copies import headline
from imbdiff.reporting.measured import (
    GroupTable,
    Measured,
    Part,
    counts_of,
    heading,
    metric_of,
    printed,
    texts,
    with_interval,
)  # fmt: skip
from imbdiff.reporting.plots import (
    SINGLE,
    Plot,
    Theme,
    class_ticks,
    group_marks,
    outline,
    pixels_across,
    plot,
    style_axes,
    thousands,
)  # fmt: skip
from imbdiff.reporting.text import NOTHING, clean, flatten, label, number

MAX_TABLES = 12
MAX_CLASS_ROWS = 1000
MAX_PANELS = 4
NEARLY = 0.75
"""Share of the classes of the best-known metric that a panel's metric must have."""
SIMILAR = 1.1
"""Sizes of two sets up to this ratio count as equal for numbers that depend on n."""

Found = Mapping[str, Any]


def quality(found: Found | None, run: str, memorisation: Found | None = None) -> ui.Section:
    """The section of `evaluate(...)`. Caps: 12 tables, 1,000 classes in a table."""
    measured = Measured.of(found)
    blocks: list[ui.Block] = []
    if memorisation is not None and memorisation.get("warnings"):
        blocks.append(
            ui.Text(ui.joined([headline(memorisation), ui.link("memorisation", "Are they copies?")]), "alert")
        )
    if measured is None:
        blocks.append(ui.missing("Not computed.", f"imbdiff evaluate {run}"))
    else:
        if measured.main.ranking_only:
            blocks.append(ui.Text(
                "There was no judge that learned from images like these. The numbers below order generators, they do "
                "not say how good the images look.", "missing"))  # fmt: skip
        blocks += [ui.Definitions(answers(measured), "answers"), *_by_class(measured)]
        tables = measured.tables()
        for i, table in enumerate(tables[:MAX_TABLES]):
            blocks += _by_group(table) if i == 0 else [_folded(table)]
        if len(tables) > MAX_TABLES:
            more = counted(len(tables) - MAX_TABLES, "more table")
            blocks.append(ui.Text(ui.joined([more, "of other extractors in", ui.code("metrics.json")]), "note"))
        blocks += how_measured(measured.found)
    return ui.Section("metrics", "Quality of the synthetic images", blocks, "Quality")


def answers(measured: Measured) -> list[tuple[str, str]]:
    """At most four questions with answers, each about all classes and about the rarest group, of the main extractor."""
    made = []
    for question, metrics in QUESTIONS:
        known = [n for m in metrics if (n := measured.number(m, "all")) is not None]
        first = next((n for n in known if n.value is not None), None)
        if first is not None:
            scopes = dict.fromkeys(["all", measured.rarest])
            made.append((question, " ".join(_about(measured, first.metric, s) for s in scopes).strip()))
        elif known:
            made.append((question, "There are too few images to say; the notes below say what is needed."))
    return made


def _about(measured: Measured, metric: str, scope: str) -> str:
    """A sentence with the interval, and how the number compares with that of real images."""
    own, real = measured.number(metric, scope), measured.baseline(metric, scope)
    if own is None:
        return ""
    where = "" if scope == "all" else f"In the {scope} group "
    if own.value is None:
        return f"{where}there are too few images to say."
    row = metric_of(own)
    if scope != "all":
        lead = f"{where}it is {with_interval(own)}"
    elif row.means:
        lead = f"{with_interval(own)} {row.means}"
    else:
        lead = f"{own.short}: {with_interval(own)}" + (f" ({row.what})" if row.what else "")
    return f"{lead}{_against_one(own) if metric == 'diversity' else _against(own, real)}."


def _against(own: Number, real: Number | None) -> str:
    """How the number compares with that of real images: a difference is claimed only where the intervals are apart."""
    if real is None:
        return ""
    who = metric_of(own).baseline
    if real.value is None:
        return f"; of {who} there are too few for this number"
    n = [max(1, one.n_synthetic) for one in (own, real)]
    if metric_of(own).by_n and max(n) > SIMILAR * min(n):
        return f"; {number(n[1])} {who}: {with_interval(real)}, a rough baseline, as this number depends on n"
    if own.low is None or own.high is None or real.low is None or real.high is None:
        return f"; {who}: {with_interval(real)}"
    how = (
        "lower than" if own.high < real.low else "higher than" if own.low > real.high else "not clearly different from"
    )
    return f", {how} the {with_interval(real)} of {who}"


def _against_one(own: Number) -> str:
    if own.low is None or own.high is None:
        return ""
    if own.high < 1:
        return ", less varied than real images of a class (1)"
    if own.low > 1:
        return ", further apart than real images of a class (1), which noise brings about too"
    return ", not clearly different from real images of a class (1)"


def _by_group(table: GroupTable) -> list[ui.Block]:
    text: str = "Value with its 95 % interval; arrows say which way is better."
    if table.has_baseline:
        grey = (
            "In grey, marked * below: the same for real images, which is what can be hoped for: the training images in "
            "place of the synthetic ones; for agreement and IS the reference images."
        )
        text = ui.joined([text, ui.span(grey, "baseline")])
    head = f"By group: {table.judge.name or 'an extractor that is not named'} against {table.reference}"
    return [ui.Heading(head), ui.Text(text, "note"), *_table_blocks(table)]


def _folded(table: GroupTable) -> ui.Fold:
    what = f"{table.judge.name} against {table.reference}" + " (for ranking only)" * table.judge.ranking_only
    return ui.Fold(f"{what}: {table.headline}" if table.headline else what, _table_blocks(table), kind="folded")


def _table_blocks(table: GroupTable) -> list[ui.Block]:
    main, more = table.part(main=True), table.part(main=False)
    blocks: list[ui.Block] = _part_blocks(main) if main else []
    blocks += [ui.Text(note, "note") for note in table.notes]
    if more:
        names = ", ".join(head.split(" ")[0] for head, _ in more.heads)
        blocks.append(ui.Fold(f"More numbers: {names}" if names else "More numbers", _part_blocks(more)))
    return blocks


def _part_blocks(part: Part) -> list[ui.Block]:
    table = part.table
    blocks: list[ui.Block] = []
    if part.metrics:
        rows = []
        for scope in table.measured.scopes:
            small = " ".join(text for text in (table.counts(scope), table.left_out(scope)) if text)
            cells = [_cell(part, table.own(m, scope), table.real(m, scope)) for m in part.metrics]
            rows.append([ui.Cell(scope, small), *cells])
        columns = [ui.Column(head, title=what) for head, what in part.heads]
        blocks.append(ui.Table([ui.Cell("scope", "synthetic / reference images"), *columns], rows, "dense"))
    if part.refusals:
        lead = "Refused, not printed" if part.metrics else "Nothing could be printed"
        blocks += [ui.Text(f"{lead}, as n does not support it:", "note"), ui.Items(part.refusals, "reasons")]
    if part.fewer:
        blocks.append(ui.Text(part.fewer, "note"))
    return blocks


def _cell(part: Part, own: Number | None, real: Number | None) -> ui.Cell:
    """A number of the synthetic images and, below it, of the real ones."""
    text = _printed(part, own, "own") if own else Markup(NOTHING)
    below = ui.span(_printed(part, real, "real"), "baseline") if real else Markup("")
    return ui.Cell(text + below, style="refused" if own and own.refused else "")


def _printed(part: Part, n: Number, style: str) -> Markup:
    mark = Markup("<sup>{}</sup>").format(part.mark(n)) if part.mark(n) else Markup("")
    if n.refused:
        return ui.span(Markup("refused") + mark, "", f"{n.refused}; {counts_of(n)}")
    value, between = printed(n)
    small = Markup(" <small>{}</small>").format(between) if between else Markup("")
    return ui.span(Markup("{}{}").format(value, mark), style, counts_of(n)) + small


@dataclass(frozen=True, eq=False)
class Series:
    """A number of every class, in the order of the plot: (C,) value and interval, NaN where there is none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, column: ClassColumn, order: np.ndarray) -> Series:
        return cls(*(np.array(getattr(column, key), dtype=float)[order] for key in ("value", "low", "high")))


@dataclass(frozen=True, eq=False)
class Panel:
    """One metric of every class; `real`: of real images; `refused`: (C,) classes whose number n does not support."""

    origin: ClassColumn
    own: Series
    real: Series | None
    refused: np.ndarray

    @property
    def title(self) -> str:
        n = int(self.refused.sum())
        return heading(self.origin) + (f"  ({n:,} of {len(self.refused):,}: too few images)" if n else "")

    def text(self, series: Series | None, i: int) -> str:
        """A value of the table behind the plot."""
        if series is None:
            return NOTHING
        value, low, high = (float(values[i]) for values in (series.value, series.low, series.high))
        shown, between = texts(value, low, high, metric_of(self.origin).decimals)
        return shown if NOTHING in (shown, *between.split(" to ")) else f"{shown} ({between})"


@dataclass(frozen=True, eq=False)
class ClassView:
    """The classes by size, with the panels of the plot.

    Attributes:
        order: (C,) labels, largest class first.
        names, group: (C,) in this order; `group` is empty where there are none.
        counts: (C,) images behind the order; `counted` says of what.
    """

    order: list[int]
    names: list[str]
    group: list[str]
    counts: list[int]
    counted: str
    panels: list[Panel]


def class_view(measured: Measured) -> ClassView | None:
    """What the plot shows, by the main extractor against the first reference; None for fewer than two classes.

    Classes are ordered by their training images; where these are not known, by the reference's.
    """
    classes = measured.found.get("classes")
    if not isinstance(classes, Mapping) or len(classes.get("names") or ()) < 2:
        return None
    of_what = "training" if classes.get("n_train") else "reference"
    counts = np.asarray(classes.get("n_train") or classes["n_reference"])
    order = np.argsort(-counts, kind="stable")
    columns: dict[tuple[str, str], ClassColumn] = {}
    for row in classes.get("metrics") or ():
        column = ClassColumn.from_json(row)
        by_main = column.metric == "CAS" or column.fingerprint == measured.main.fingerprint
        if by_main and (metric_of(column).alone or column.reference == measured.references[0]):
            columns[column.metric, column.of] = column
    panels = []
    for metrics in PANELS:
        known = [(c, n) for m in metrics if (c := columns.get((m, "synthetic"))) and (n := _known(c))]
        if not known:
            continue
        column = next(c for c, n in known if n >= NEARLY * max(n for _, n in known))
        real = columns.get((column.metric, "reference" if metric_of(column).alone else "train"))
        refused = np.array([r is not None for r in column.refused])[order]
        series = Series.of(real, order) if real is not None and _known(real) else None
        panels.append(Panel(column, Series.of(column, order), series, refused))
    if not panels:
        return None
    names, group = classes["names"], classes.get("group") or ()
    return ClassView(
        order.tolist(), [str(names[k]) for k in order], [str(group[k]) for k in order] if group else [],
        counts[order].tolist(), of_what, panels[:MAX_PANELS],
    )  # fmt: skip


def _known(column: ClassColumn) -> int:
    return sum(value is not None for value in column.value)


def _by_class(measured: Measured) -> list[ui.Block]:
    view = class_view(measured)
    if view is None:
        return []
    c, real = len(view.order), any(panel.real is not None for panel in view.panels)
    many = c > SINGLE
    rows: list[ui.Cells] = []
    for i in range(min(c, MAX_CLASS_ROWS)):
        cells: ui.Cells = []
        for panel in view.panels:
            own = "refused" if panel.refused[i] else panel.text(panel.own, i)
            cells += [own, ui.Cell(panel.text(panel.real, i), style="baseline")]
        rows.append([ui.name(view.names[i]), view.group[i] if view.group else "", number(view.counts[i]), *cells])
    columns: ui.Cells = ["class", "group", ui.Column(f"{view.counted} images")]
    for panel in view.panels:
        columns += [ui.Column(heading(panel.origin)), ui.Column("real")]
    left = f" (the {number(len(rows))} largest of {number(c)} classes)" if len(rows) < c else ""
    what = "; ".join(f"{p.origin.short}: {metric_of(p.origin).what}" for p in view.panels if metric_of(p.origin).what)
    text = (
        f"Classes are sorted by {view.counted} images. Hollow marks on the lower edge: classes with too few images for "
        f"this number. {what}."
    )
    if real:
        text += " Real images: the training images in place of the synthetic ones; for agreement, the reference images."
    return [
        ui.Heading("Each class, from the largest to the smallest"),
        ui.legend(
            synthetic=f"synthetic images{' (line: running median)' if many else ', with interval'}",
            real=f"real images{' (dashed: running median)' if many else ', with interval'}" if real else "",
        ),
        ui.Figures([class_plot(view)]),
        ui.Text(text, "note"),
        ui.Fold(f"These numbers as a table{left}", [ui.Table(columns, rows)]),
    ]


def class_plot(view: ClassView) -> Plot:
    """Panels above each other on one axis of classes, the number of images of each on top.

    Up to 60 classes each is shown with its interval; more are points, with the running median over a twentieth of the
    classes. Classes whose number was refused are hollow marks on the lower edge.
    """
    c = len(view.order)
    labels = [label(one, f"#{k}") for one, k in zip(view.names, view.order, strict=True)]

    def paint(figure: Figure, theme: Theme) -> None:
        rows = len(view.panels) + 1
        grid: Any = figure.subplots(rows, 1, sharex=True, height_ratios=[0.62] + [1.0] * (rows - 1), squeeze=False)
        top, *others = grid.ravel()
        style_axes(top, theme, y=f"{view.counted}\nimages, log")
        outline(top, np.maximum(np.asarray(view.counts, float), 0.5), 0.5, theme.muted, 0.55)
        top.set_yscale("log")
        top.set_ylim(bottom=0.5)
        top.yaxis.set_major_formatter(FuncFormatter(thousands))
        top.minorticks_off()
        group_marks(top, view.group, theme)
        for axes, panel in zip(others, view.panels, strict=True):
            _paint_panel(axes, panel, theme)
        class_ticks(others[-1], labels, view.counts, pixels_across(figure), theme)
        others[-1].set_xlim(-0.6, c - 0.4)

    tall = 110 + 128 * len(view.panels) + (24 if any(len(one) > 6 for one in labels) and c <= 40 else 0)
    return plot(_alt(view), paint, (1000, tall), (400, tall) if c > 1 else None)


def _paint_panel(axes: Any, panel: Panel, theme: Theme) -> None:
    style_axes(axes, theme, title=panel.title)
    c = len(panel.refused)
    few = c <= SINGLE
    for series, colour, marker, shift in (
        (panel.real, theme.real, "D", 0.14),
        (panel.own, theme.synthetic, "o", -0.14),
    ):
        if series is None:
            continue
        x = np.arange(c, dtype=float) + (shift if few and panel.real is not None else 0.0)
        if few:
            axes.vlines(x, series.low, series.high, color=colour, linewidth=1.5, alpha=0.75)
            axes.plot(x, series.value, color=colour, linewidth=0.8, alpha=0.45, zorder=1)
            axes.plot(x, series.value, marker, color=colour, markersize=4 if marker == "D" else 5.5)
        else:
            axes.plot(x, series.value, ".", color=colour, markersize=2.2, alpha=0.4, markeredgewidth=0)
            middle = running_median(series.value, max(15, c // 20))
            axes.plot(x, middle, color=colour, linewidth=2.0, linestyle="-" if marker == "o" else (0, (4, 2)))
    _limits(axes, panel)
    if panel.refused.any():
        places = np.flatnonzero(panel.refused)
        style = {"markersize": 5.5 if few else 3.0, "markerfacecolor": "none", "markeredgewidth": 0.9 if few else 0.5}
        axes.plot(
            places, np.zeros(len(places)), "o", color=theme.synthetic, transform=axes.get_xaxis_transform(),
            clip_on=False, **style,
        )  # fmt: skip


def _limits(axes: Any, panel: Panel) -> None:
    """Shares from 0 to 1; others by their values, so that one wide interval does not flatten all."""
    if metric_of(panel.origin).share:
        axes.set_ylim(-0.14 if panel.refused.any() else -0.04, 1.06)
        axes.set_yticks([0.0, 0.5, 1.0])
        return
    series = [s for s in (panel.own, panel.real) if s is not None]
    values = np.concatenate([s.value for s in series])
    values = values[np.isfinite(values)]
    ends = np.concatenate([v for s in series for v in (s.low, s.high)])
    ends = ends[np.isfinite(ends)]
    if not len(values):
        return
    width = max(float(np.ptp(values)), 1e-3 * float(np.abs(values).max()), 1e-12)
    low = min(values.min(), max(ends.min(initial=values.min()), values.min() - width))
    high = max(values.max(), min(ends.max(initial=values.max()), values.max() + width))
    axes.set_ylim(low - 0.14 * width, high + 0.08 * width)


def running_median(values: np.ndarray, window: int) -> np.ndarray:
    """Median of the finite values in a centred window; NaN where fewer than a third of the window is finite."""
    half = window // 2
    padded = np.concatenate([np.full(half, np.nan), values, np.full(half, np.nan)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    enough = np.isfinite(windows).sum(axis=1) >= max(1, window // 3)
    result = np.full(len(values), np.nan)
    result[enough] = np.nanmedian(windows[enough], axis=1)
    return result


def _alt(view: ClassView) -> str:
    """What the plot shows, in words: the median of each number among the larger and the smaller half of the classes."""
    half = len(view.order) // 2

    def median(values: np.ndarray) -> str:
        known = values[np.isfinite(values)]
        return number(float(np.median(known))) if len(known) else "not measured"

    halves = []
    for p in view.panels:
        large, small = median(p.own.value[:half]), median(p.own.value[half:])
        halves.append(f"{p.origin.short} {large} in the larger half, {small} in the smaller half")
    return (
        f"Quality of {len(view.order):,} classes sorted by their number of {view.counted} images, largest first; "
        f"medians of the synthetic images: {'; '.join(halves)}"
    )


_SETS = (("reference", "Reference"), ("synthetic", "Synthetic images"), ("train", "Training images"))
_RULES = (("class_mix", "Class mix"), ("groups", "Groups"), ("subsets", "Which images"), ("seed", "Seed"))
_SHOWN_ELSEWHERE = frozenset({key for key, _ in (*_SETS, *_RULES)} | {f"n_{key}" for key, _ in _SETS}) | {
    "fingerprints", "measures", "extractors", "agreement", "CAS", "memorisation",
}  # fmt: skip


def how_measured(metrics: Found) -> list[ui.Block]:
    """What the numbers depend on, so that they can be repeated; what is beyond the known parts is shown as it is."""
    protocol = metrics.get("protocol")
    if not isinstance(protocol, Mapping) or not protocol:
        return []
    rows = [(title, text) for key, title in _SETS if (text := _set(protocol, key))]
    rows += [(title, str(protocol[key])) for key, title in _RULES if protocol.get(key) is not None]
    rows.append(
        ("Intervals", "95 %; what an interval covers is with its measure below. Refused: what n cannot support.")
    )
    rows += flatten({key: value for key, value in protocol.items() if key not in _SHOWN_ELSEWHERE})
    measures = [
        (what, f"{m.get('what', '')} ({m.get('source', '')})")
        for what, m in (protocol.get("measures") or {}).items()
        if isinstance(m, Mapping)
    ]
    measures += [(key, str(protocol[key])) for key in ("agreement", "CAS", "memorisation") if protocol.get(key)]
    extractors = [e for e in protocol.get("extractors") or () if isinstance(e, Mapping)]
    blocks: list[ui.Block] = [ui.Definitions(rows)]
    for i, e in enumerate(extractors):
        blocks.append(
            ui.Fold(f"Extractor {e.get('name', '')}", [ui.Definitions(_extractor(e, metrics.get("judge")))], i == 0)
        )
    blocks.append(ui.Text(_fid(extractors), "note"))
    if measures:
        what = "Every measure, with its source and what its interval covers"
        blocks.append(ui.Fold(what, [ui.Definitions(measures)]))
    return [ui.Fold("How this was measured", blocks, open=True, kind="box")]


def _set(protocol: Found, key: str) -> str:
    """Name, size and fingerprint of a set of images."""
    n, named = protocol.get(f"n_{key}"), str(protocol.get(key) or "")
    if n is None:
        return "not given: no memorisation, no groups, no numbers of real training images" if key == "train" else named
    fingerprint = (protocol.get("fingerprints") or {}).get(key)
    text = f"{named}: {number(n)} images" if named else f"{number(n)} images"
    return text + (f", fingerprint {clean(fingerprint)[:16]}" if fingerprint else "")


def _extractor(e: Found, judge: Any) -> list[tuple[str, str]]:
    agreed = {True: "yes, they agree", False: "not yet: unverified"}
    accuracy = ""
    if isinstance(judge, Mapping) and judge.get("fingerprint") == e.get("fingerprint") and judge.get("accuracy"):
        accuracy = number(judge["accuracy"])
    rows = [
        ("Features", number(e.get("dim"))),
        ("Preprocessing", e.get("preprocessing") or ""),
        ("Weights", e.get("weights") or ""),
        ("Trained on", e.get("trained_on") or "nothing that is recorded"),
        ("Accuracy on the reference", accuracy),
        ("Fingerprint", str(e.get("fingerprint") or "")[:16]),
        ("Features compared with published ones", agreed.get(e.get("verified"), "there are none to compare with")),  # type: ignore[arg-type]
        ("Its numbers", "rank generators, no more" if e.get("ranking_only") else "measure quality"),
    ]
    return [(what, text) for what, text in rows if text]


def _fid(extractors: Sequence[Found]) -> str:
    """Whether a number here may be called FID."""
    own = next((e for e in extractors if e.get("is_fid")), None)
    if own is None:
        return (
            "No number here is an FID: that name belongs to one set of Inception weights, which were not at hand. "
            "FD[name] is the same distance with another extractor, comparable only with numbers of the same name, "
            "fingerprint and reference."
        )
    unverified = "" if own.get("verified") else " (unverified: not yet compared with published features)"
    return f"FID, FID∞ and KID are computed with the Inception weights that these names stand for{unverified}."
