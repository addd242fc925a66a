"""Every class against its number of training images, from the largest to the smallest: quality, and recall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from imbdiff.metrics.measures import PANELS
from imbdiff.metrics.numbers import ClassColumn
from imbdiff.reporting import blocks as ui
from imbdiff.reporting import plots
from imbdiff.reporting.measured import Measured, heading, metric_of, texts
from imbdiff.reporting.plots import SINGLE, Plot, Theme
from imbdiff.reporting.text import NOTHING, label, number

MAX_CLASS_ROWS = 1000
MAX_PANELS = 4
NEARLY = 0.75
"""Share of the classes of the best-known metric that a panel's metric must have."""


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
    """One number of every class.

    Attributes:
        name, arrow: as it is called, and which way is better; `what` says what it is.
        share: from 0 to 1.
        synthetic, real: with synthetic images (or of them), and without (of real ones); at least one.
        refused: (C,) classes whose number n does not support.
        mean: of many classes a running mean is shown, not a median: values of few test images are coarse.
    """

    name: str
    arrow: str
    what: str
    share: bool
    synthetic: Series | None
    real: Series | None
    refused: np.ndarray
    mean: bool = False

    @property
    def heading(self) -> str:
        return f"{self.name} {self.arrow}".rstrip()

    @property
    def title(self) -> str:
        n = int(self.refused.sum())
        return self.heading + (f"  ({n:,} of {len(self.refused):,}: too few images)" if n else "")

    @property
    def series(self) -> list[Series]:
        return [series for series in (self.synthetic, self.real) if series is not None]

    def text(self, series: Series | None, i: int) -> str:
        """A value of the table behind the plot."""
        if series is None:
            return NOTHING
        value, low, high = (float(values[i]) for values in (series.value, series.low, series.high))
        shown, between = texts(value, low, high, 2 if self.share else None)
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
    """Quality of each class, by the main extractor against the first reference; None for fewer than two classes.

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
        metric = metric_of(column)
        real = columns.get((column.metric, "reference" if metric.alone else "train"))
        baseline = Series.of(real, order) if real is not None and _known(real) else None
        refused = np.array([r is not None for r in column.refused])[order]
        arrow = heading(column).removeprefix(column.short).strip()
        panels.append(
            Panel(column.short, arrow, metric.what, metric.share, Series.of(column, order), baseline, refused)
        )
    if not panels:
        return None
    names, group = classes["names"], classes.get("group") or ()
    return ClassView(
        order.tolist(), [str(names[k]) for k in order], [str(group[k]) for k in order] if group else [],
        counts[order].tolist(), of_what, panels[:MAX_PANELS],
    )  # fmt: skip


def _known(column: ClassColumn) -> int:
    return sum(value is not None for value in column.value)


def by_class(measured: Measured) -> list[ui.Block]:
    """The plot of the quality of each class, and its numbers as a table."""
    view = class_view(measured)
    if view is None:
        return []
    c, real = len(view.order), any(panel.real is not None for panel in view.panels)
    many = c > SINGLE
    rows: list[ui.Cells] = []
    for i in range(min(c, MAX_CLASS_ROWS)):
        cells: ui.Cells = []
        for panel in view.panels:
            own = "refused" if panel.refused[i] else panel.text(panel.synthetic, i)
            cells += [own, ui.Cell(panel.text(panel.real, i), style="baseline")]
        rows.append([ui.name(view.names[i]), view.group[i] if view.group else "", number(view.counts[i]), *cells])
    columns: ui.Cells = ["class", "group", ui.Column(f"{view.counted} images")]
    for panel in view.panels:
        columns += [ui.Column(panel.heading), ui.Column("real")]
    left = f" (the {number(len(rows))} largest of {number(c)} classes)" if len(rows) < c else ""
    what = "; ".join(f"{panel.name}: {panel.what}" for panel in view.panels if panel.what)
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
        ui.note(text),
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
        plots.style_axes(top, theme, y=f"{view.counted}\nimages, log")
        plots.outline(top, np.maximum(np.asarray(view.counts, float), 0.5), 0.5, theme.muted, 0.55)
        top.set_yscale("log")
        top.set_ylim(bottom=0.5)
        top.yaxis.set_major_formatter(FuncFormatter(plots.thousands))
        top.minorticks_off()
        plots.group_marks(top, view.group, theme)
        for axes, panel in zip(others, view.panels, strict=True):
            _paint_panel(axes, panel, theme)
        plots.class_ticks(others[-1], labels, view.counts, plots.pixels_across(figure), theme)
        others[-1].set_xlim(-0.6, c - 0.4)

    tall = 110 + 128 * len(view.panels) + (24 if any(len(one) > 6 for one in labels) and c <= 40 else 0)
    tall += 60 * (len(view.panels) == 1)
    return plots.plot(_alt(view), paint, (1000, tall), (400, tall) if c > 1 else None)


def _paint_panel(axes: Any, panel: Panel, theme: Theme) -> None:
    plots.style_axes(axes, theme, title=panel.title)
    c = len(panel.refused)
    few = c <= SINGLE
    apart = 0.14 if few and len(panel.series) > 1 else 0.0
    for series, colour, marker, shift in (
        (panel.real, theme.real, "D", apart),
        (panel.synthetic, theme.synthetic, "o", -apart),
    ):
        if series is None:
            continue
        x = np.arange(c, dtype=float) + shift
        if few:
            axes.vlines(x, series.low, series.high, color=colour, linewidth=1.5, alpha=0.75)
            axes.plot(x, series.value, color=colour, linewidth=0.8, alpha=0.45, zorder=1)
            axes.plot(x, series.value, marker, color=colour, markersize=4 if marker == "D" else 5.5)
        else:
            axes.plot(x, series.value, ".", color=colour, markersize=2.2, alpha=0.4, markeredgewidth=0)
            middle = running(np.nanmean if panel.mean else np.nanmedian, series.value, max(15, c // 20))
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
    if panel.share:
        axes.set_ylim(-0.14 if panel.refused.any() else -0.04, 1.06)
        axes.set_yticks([0.0, 0.5, 1.0])
        return
    values = np.concatenate([s.value for s in panel.series])
    values = values[np.isfinite(values)]
    ends = np.concatenate([v for s in panel.series for v in (s.low, s.high)])
    ends = ends[np.isfinite(ends)]
    if not len(values):
        return
    width = max(float(np.ptp(values)), 1e-3 * float(np.abs(values).max()), 1e-12)
    low = min(values.min(), max(ends.min(initial=values.min()), values.min() - width))
    high = max(values.max(), min(ends.max(initial=values.max()), values.max() + width))
    axes.set_ylim(low - 0.14 * width, high + 0.08 * width)


def running(middle: Any, values: np.ndarray, window: int) -> np.ndarray:
    """`middle` (such as np.nanmedian) of the values in a centred window; NaN where fewer than a third is finite."""
    half = window // 2
    padded = np.concatenate([np.full(half, np.nan), values, np.full(half, np.nan)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    enough = np.isfinite(windows).sum(axis=1) >= max(1, window // 3)
    result = np.full(len(values), np.nan)
    result[enough] = middle(windows[enough], axis=1)
    return result


def _alt(view: ClassView) -> str:
    """What the plot shows, in words: the median of each number among the larger and the smaller half of the classes."""
    half = len(view.order) // 2

    def median(values: np.ndarray) -> str:
        known = values[np.isfinite(values)]
        return number(float(np.median(known))) if len(known) else "not measured"

    halves = []
    for panel in view.panels:
        value = panel.series[0].value
        halves.append(
            f"{panel.name} {median(value[:half])} in the larger half, {median(value[half:])} in the smaller half"
        )
    return (
        f"{len(view.order):,} classes sorted by their number of {view.counted} images, largest first; "
        f"medians with synthetic images: {'; '.join(halves)}"
    )
