"""Quality of each class against its number of training images: the classes from the largest to the smallest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from imbdiff.metrics.measures import METRICS, PANELS, Metric
from imbdiff.reporting.measured import Measured, arrow, kind_of, short_name, texts
from imbdiff.reporting.plots import Plot, Theme, class_ticks, dress, group_marks, plot, thousands
from imbdiff.reporting.text import NOTHING, clean, label, number

MAX_SINGLE = 60
"""Classes up to which each is drawn with its interval; above, points and a running median."""
MAX_PANELS = 4
NEARLY = 0.75


@dataclass(frozen=True, eq=False)
class Series:
    """A number of every class, in the order of the plot: (C,) value and interval, NaN where there is none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class Panel:
    """One kind of quality; `yard`: of real images; `refused`: (C,) classes whose number n does not support."""

    kind: Metric
    name: str
    arrow: str
    own: Series
    yard: Series | None
    refused: np.ndarray

    @property
    def title(self) -> str:
        n = int(self.refused.sum())
        note = f"  ({n:,} of {len(self.refused):,}: too few images)" if n else ""
        return f"{self.name} {self.arrow}".rstrip() + note


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
    classes = measured.metrics.get("classes")
    if not isinstance(classes, Mapping) or len(classes.get("names") or ()) < 2:
        return None
    counted = "training" if classes.get("n_train") else "reference"
    counts = np.asarray(classes.get("n_train") or classes["n_reference"])
    order = np.argsort(-counts, kind="stable")
    columns = {_place(measured, column): column for column in classes.get("metrics") or ()}
    panels = []
    for kinds in PANELS:
        found = [(kind, columns.get((kind, "synthetic"))) for kind in kinds]
        known = [(kind, column) for kind, column in found if column is not None and _count(column)]
        if known:
            most = max(_count(column) for _, column in known)
            kind, column = next(pair for pair in known if _count(pair[1]) >= NEARLY * most)
            yard = columns.get((kind, "reference" if METRICS[kind].alone else "train"))
            panels.append(_panel(column, yard, order))
    if not panels:
        return None
    names, group = classes["names"], classes.get("group") or ()
    return ClassView(
        order.tolist(),
        [str(names[k]) for k in order],
        [str(group[k]) for k in order] if group else [],
        counts[order].tolist(),
        counted,
        panels[:MAX_PANELS],
    )


def _place(measured: Measured, column: Mapping[str, Any]) -> tuple[str, str]:
    """(kind, of which images) where the column belongs to the main extractor and first reference; ("", "") if not."""
    kind = kind_of(column)
    own = kind.name == "CAS" or str(column.get("fingerprint")) == measured.main.fingerprint
    against = kind.alone or str(column.get("reference")) == measured.references[0]
    return (kind.name, str(column.get("of"))) if own and against else ("", "")


def _count(column: Mapping[str, Any]) -> int:
    return sum(value is not None for value in column["value"])


def _panel(column: Mapping[str, Any], yard: Mapping[str, Any] | None, order: np.ndarray) -> Panel:
    refused = np.array([r is not None for r in column["refused"]])[order]
    other = None if yard is None or not _count(yard) else _series(yard, order)
    name, way = short_name(column), arrow(column.get("direction"))
    return Panel(kind_of(column), name, way, _series(column, order), other, refused)


def _series(column: Mapping[str, Any], order: np.ndarray) -> Series:
    value, low, high = (np.array(column[key], dtype=float)[order] for key in ("value", "low", "high"))
    return Series(value, low, high)


def class_plot(view: ClassView) -> Plot:
    """Panels above each other on one axis of classes, the number of images of each on top.

    Up to 60 classes each stands with its interval; more are points, with the running median over a twentieth of the
    classes. Classes whose number was refused are hollow marks on the lower edge.
    """
    c = len(view.order)
    labels = [label(name, f"#{k}") for name, k in zip(view.names, view.order, strict=True)]

    def draw(figure: Figure, theme: Theme) -> None:
        rows = len(view.panels) + 1
        grid: Any = figure.subplots(rows, 1, sharex=True, height_ratios=[0.62] + [1.0] * (rows - 1), squeeze=False)
        every = grid.ravel()
        _counts_panel(every[0], view, theme)
        for axes, panel in zip(every[1:], view.panels, strict=True):
            _draw_panel(axes, panel, theme)
            _title(axes, panel.title, theme)
        pixels = figure.get_figwidth() * 96
        class_ticks(every[-1], labels, view.counts, pixels, theme)
        every[-1].set_xlim(-0.6, c - 0.4)

    tall = 110 + 128 * len(view.panels) + (24 if any(len(name) > 6 for name in labels) and c <= 40 else 0)
    return plot(_alt(view), draw, (1000, tall), (400, tall) if c > 1 else None)


def _counts_panel(axes: Any, view: ClassView, theme: Theme) -> None:
    dress(axes, theme)
    c, counts = len(view.counts), np.maximum(np.asarray(view.counts, float), 0.5)
    if c <= MAX_SINGLE:
        axes.bar(np.arange(c), counts - 0.5, 0.74, bottom=0.5, color=theme.muted, alpha=0.55)
    else:
        edges = np.arange(c + 1) - 0.5
        axes.fill_between(edges, 0.5, np.append(counts, counts[-1]), step="post", color=theme.muted, alpha=0.55, lw=0)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter(FuncFormatter(thousands))
    axes.minorticks_off()
    if view.group:
        group_marks(axes, view.group, theme)
    axes.set_ylabel(f"{view.counted}\nimages, log", color=theme.muted, fontsize=8)


def _draw_panel(axes: Any, panel: Panel, theme: Theme) -> None:
    dress(axes, theme)
    c = len(panel.refused)
    few = c <= MAX_SINGLE
    for series, colour, marker, shift in (
        (panel.yard, theme.real, "D", 0.14),
        (panel.own, theme.synthetic, "o", -0.14),
    ):
        if series is None:
            continue
        x = np.arange(c, dtype=float) + (shift if few and panel.yard is not None else 0.0)
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
    if panel.kind.share:
        axes.set_ylim(-0.14 if panel.refused.any() else -0.04, 1.06)
        axes.set_yticks([0.0, 0.5, 1.0])
        return
    series = [s for s in (panel.own, panel.yard) if s is not None]
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


def _title(axes: Any, text: str, theme: Theme) -> None:
    axes.set_title(text, loc="left", fontsize=9.5, color=theme.ink, fontweight="bold", parse_math=False)


def running_median(values: np.ndarray, window: int) -> np.ndarray:
    """Median of the finite values in a centred window; NaN where fewer than a third of the window is finite."""
    half = window // 2
    padded = np.concatenate([np.full(half, np.nan), values, np.full(half, np.nan)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    known = np.isfinite(windows).sum(axis=1)
    result = np.full(len(values), np.nan)
    enough = known >= max(1, window // 3)
    result[enough] = np.nanmedian(windows[enough], axis=1)
    return result


def _alt(view: ClassView) -> str:
    """What the plot shows, in words: the median of each number among the larger and the smaller half of the classes."""
    half = len(view.order) // 2
    said = []
    for panel in view.panels:
        large, small = (_median(part) for part in (panel.own.value[:half], panel.own.value[half:]))
        said.append(f"{panel.name} {large} in the larger half, {small} in the smaller half")
    return (
        f"Quality of {len(view.order):,} classes sorted by their number of {view.counted} images, largest first; "
        f"medians of the synthetic images: {'; '.join(said)}"
    )


def _median(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return number(float(np.median(known))) if len(known) else "not measured"


def class_rows(view: ClassView, limit: int = 1000) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """The plot as a table: (class, group, images, [(synthetic, real) for each panel]), at most `limit` classes."""
    rows = []
    for i, name in enumerate(view.names[:limit]):
        cells = []
        for panel in view.panels:
            own = "refused" if panel.refused[i] else _text(panel, panel.own, i)
            cells.append((own, NOTHING if panel.yard is None else _text(panel, panel.yard, i)))
        rows.append((clean(name), clean(view.group[i]) if view.group else "", number(int(view.counts[i])), cells))
    return rows


def _text(panel: Panel, series: Series, i: int) -> str:
    record = {"metric": panel.kind.name} | {key: float(getattr(series, key)[i]) for key in ("value", "low", "high")}
    value, between = texts(record)
    return value if NOTHING in (value, *between.split(" to ")) else f"{value} ({between})"


def panel_notes(view: ClassView) -> Sequence[str]:
    """One sentence for each panel on what it shows."""
    return [f"{panel.name}: {panel.kind.what}" for panel in view.panels if panel.kind.what]
