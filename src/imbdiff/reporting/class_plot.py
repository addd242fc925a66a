"""A plot of every class, from the largest to the smallest: any number of panels on one axis of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from imbdiff.reporting.plots import WIDTH, Plot, Theme, plot, style_axes, thousands
from imbdiff.reporting.text import NOTHING, estimate, label, labels

SINGLE = 60
"""Classes up to which each has a bar or point of its own; above, one outline or a running average."""
MOST_NAMES = 40
WIDE_RANGE = 15
"""Largest over smallest count from which the axis is logarithmic: a linear one hides the small classes."""

Layer = tuple[Sequence[int], str]
"""Heights of bars (C,), and their colour: a field of `Theme`."""


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes by size.

    Attributes:
        order: (C,) labels, largest class first.
        names, group, counts: (C,) in this order; `group` is empty where there are none.
        counted: which images the counts are of.
    """

    order: Sequence[int]
    names: Sequence[str]
    group: Sequence[str]
    counts: Sequence[int]
    counted: str = "training"


@dataclass(frozen=True, eq=False)
class Panel:
    """One number of every class.

    Attributes:
        name: with an arrow that says which way is better.
        synthetic, real: (3, C) value, low, high in the order of the plot, NaN where there is none: with (or of)
            synthetic images, and of real ones; at least one is there.
        share: from 0 to 1.
        refused: (C,) classes whose number n does not support.
    """

    name: str
    synthetic: np.ndarray | None
    real: np.ndarray | None
    share: bool = True
    refused: np.ndarray | None = None

    @property
    def series(self) -> list[np.ndarray]:
        return [series for series in (self.synthetic, self.real) if series is not None]

    def text(self, series: np.ndarray | None, i: int) -> str:
        """A value of the table behind the plot."""
        if self.refused is not None and self.refused[i] and series is self.synthetic:
            return "refused"
        if series is None or np.isnan(series[0, i]):
            return NOTHING
        middle, low, high = series[:, i].tolist()
        value, between = estimate(middle, low, high, 2 if self.share else None)
        return value if NOTHING in between else f"{value} ({between})"


def class_plot(classes: Classes, panels: Sequence[Panel] = (), layers: Sequence[Layer] = ()) -> Plot:
    """The number of images of each class, and panels below.

    Up to 60 classes each is shown with its interval; more are points, with a running average over a twentieth of the
    classes. Classes whose number was refused are hollow marks on the lower edge.

    Args:
        layers: bars in front of each other, the highest first; none: those of `classes.counts`.
    """
    few = len(classes.names) <= MOST_NAMES
    names = labels(classes.names, classes.order) if few else [""] * len(classes.names)
    log = max(classes.counts) >= WIDE_RANGE * max(1, min(classes.counts))
    floor = 0.5 if log else 0.0

    def paint(figure: Figure, theme: Theme) -> None:
        rows = len(panels) + 1
        ratios = [0.62 if panels else 1.0] + [1.0] * len(panels)
        grid: Any = figure.subplots(rows, 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        style_axes(grid[0], theme, y=f"{classes.counted}\nimages" + ", log" * log)
        for tops, colour in layers or [(classes.counts, "muted")]:
            heights = np.maximum(np.asarray(tops, float), floor)
            _bars(grid[0], heights, floor, getattr(theme, colour), 1.0 if layers else 0.55)
        if log:
            grid[0].set_yscale("log")
            grid[0].set_ylim(bottom=floor)
            grid[0].minorticks_off()
        grid[0].yaxis.set_major_formatter(FuncFormatter(thousands))
        _group_marks(grid[0], classes.group, theme)
        for axes, panel in zip(grid[1:], panels, strict=True):
            _paint_panel(axes, panel, theme)
        _class_ticks(grid[-1], names, classes.counts, theme)

    what = ", ".join(["images", *(panel.name for panel in panels)])
    alt = f"{what} of {len(names):,} classes sorted by their number of {classes.counted} images, largest first"
    turned = 22 if any(len(name) > 6 for name in names) else 0
    return plot(alt, paint, (110 + 128 * len(panels) if len(panels) > 1 else 300) + turned)


def _bars(axes: Any, tops: np.ndarray, floor: float, colour: str, alpha: float) -> None:
    """Bars of classes; of many one outline in place of a thousand rectangles."""
    c = len(tops)
    if c <= SINGLE:
        axes.bar(np.arange(c), tops - floor, 0.74, bottom=floor, color=colour, alpha=alpha)
        return
    edges = np.arange(c + 1) - 0.5
    axes.stairs(tops, edges, baseline=floor, fill=True, color=colour, alpha=alpha, linewidth=0)


def _class_ticks(axes: Any, names: Sequence[str], counts: Sequence[int], theme: Theme) -> None:
    """Names below the classes where they fit, otherwise ranks."""
    c = len(names)
    axes.set_xlim(-0.6, c - 0.4)
    if c > MOST_NAMES:
        ranks = [1, *(int(r) for r in MaxNLocator(6, integer=True).tick_values(1, c) if 1 < r <= c)]
        axes.set_xticks([r - 1 for r in ranks], [f"{r:,}" for r in ranks])
        axes.set_xlabel("class, by size (1 = largest)", fontsize=8.5, color=theme.muted)
    else:
        flat = max(len(name) for name in names) * 7 < WIDTH / c - 4
        texts = [f"{name}\n{n}" if flat and c <= 20 else name for name, n in zip(names, counts, strict=True)]
        style = {} if flat else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(c), texts, parse_math=False, **style)


def _group_marks(axes: Any, group: Sequence[str], theme: Theme) -> None:
    """Names the groups above the plot, with a line between them, where each is one stretch of the size order."""
    starts = [i for i in range(len(group)) if i == 0 or group[i] != group[i - 1]]
    if not starts or len(starts) != len(set(group)):  # explicit groups need not follow the size order
        return
    for a, b in zip(starts, [*starts[1:], len(group)], strict=True):
        if a:
            axes.axvline(a - 0.5, color=theme.muted, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.text(
            (a + b - 1) / 2, 1.015, label(group[a], "", limit=12), ha="center", va="bottom",
            transform=axes.get_xaxis_transform(), fontsize=8.5, color=theme.muted, parse_math=False,
        )  # fmt: skip


def _paint_panel(axes: Any, panel: Panel, theme: Theme) -> None:
    c = panel.series[0].shape[1]
    refused = np.flatnonzero(np.zeros(c) if panel.refused is None else panel.refused)
    few = f"  ({len(refused):,} of {c:,}: too few images)" if len(refused) else ""
    style_axes(axes, theme, title=panel.name + few)
    single = c <= SINGLE
    apart = 0.14 if single and len(panel.series) > 1 else 0.0
    for series, colour, marker, shift in (
        (panel.real, theme.real, "D", apart),
        (panel.synthetic, theme.synthetic, "o", -apart),
    ):
        if series is None:
            continue
        x = np.arange(c) + shift
        if single:
            axes.vlines(x, series[1], series[2], color=colour, linewidth=1.5, alpha=0.75)
            axes.plot(x, series[0], color=colour, linewidth=0.8, alpha=0.45, zorder=1)
            axes.plot(x, series[0], marker, color=colour, markersize=4 if marker == "D" else 5.5)
        else:
            # dashes as short as they are wide in one path: a mark each is ten times the text
            dashes = np.stack([x - 0.01, x + 0.01, np.full(c, np.nan)], axis=1).ravel()
            heights = np.repeat(series[0], 3)
            axes.plot(dashes, heights, color=colour, linewidth=2.2, alpha=0.4, solid_capstyle="round")
            # shares of few test images are coarse: their mean says more than their median
            middle = running(np.nanmean if panel.share else np.nanmedian, series[0], max(15, c // 20))
            axes.plot(x, middle, color=colour, linewidth=2.0, linestyle="-" if marker == "o" else (0, (4, 2)))
    if panel.share:
        axes.set_ylim(-0.14 if len(refused) else -0.04, 1.06)
        axes.set_yticks([0.0, 0.5, 1.0])
    else:
        _limit(axes, np.concatenate(panel.series, axis=1))
    if len(refused):
        axes.plot(
            refused, np.zeros(len(refused)), "o", color=theme.synthetic, transform=axes.get_xaxis_transform(),
            clip_on=False, markersize=5.5 if single else 3.0, markerfacecolor="none", markeredgewidth=0.7,
        )  # fmt: skip


def _limit(axes: Any, series: np.ndarray) -> None:
    """Limits by the values, so that one wide interval does not flatten all."""
    low, high = np.nanmin(series[0]), np.nanmax(series[0])
    width = max(high - low, 0.05 * abs(high), 1e-12)
    low = max(np.nanmin(series), low - width)
    high = min(np.nanmax(series), high + width)
    axes.set_ylim(low - 0.14 * width, high + 0.08 * width)


def running(average: Callable[..., Any], values: np.ndarray, window: int) -> np.ndarray:
    """`average` (such as np.nanmedian) of the values in a centred window; NaN where fewer than a third is finite."""
    half = window // 2
    padded = np.pad(values, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    enough = np.isfinite(windows).sum(axis=1) >= max(1, window // 3)
    result = np.full(len(values), np.nan)
    result[enough] = average(windows[enough], axis=1)
    return result
