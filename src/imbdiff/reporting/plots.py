"""Plots as PNG data, each for light and dark pages.

Figures are made without pyplot, so nothing global is created or changed. Text is set with `parse_math=False`:
a class called ``$x`` is a name, not a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from imbdiff.reporting.pictures import data_uri
from imbdiff.reporting.text import label

WIDTH = 1000
DPI = 192.0  # twice the nominal 96, for sharp text on dense screens
SINGLE = 60
"""Classes up to which each has a bar or point of its own; above, one outline or a running median."""
WIDE_RANGE = 15
"""Largest over smallest count from which the axis is logarithmic: a linear one hides the small classes."""


@dataclass(frozen=True)
class Theme:
    """Colours of one look of the page; the same values are in the style sheet."""

    paper: str
    ink: str
    muted: str
    rule: str
    real: str
    synthetic: str


LIGHT = Theme("#ffffff", "#1b2430", "#5b6675", "#dfe3e8", "#3d6fb4", "#e08a2c")
DARK = Theme("#1b2027", "#e6e9ee", "#9aa5b3", "#333b46", "#7fabe6", "#f0a85a")

Paint = Callable[[Figure, Theme], None]


@dataclass(frozen=True)
class Plot:
    """One plot for light and dark pages, as data: addresses."""

    alt: str
    light: str
    dark: str
    width: int
    height: int


def render(paint: Paint, size: tuple[int, int], theme: Theme) -> str:
    """Paints a figure of `size` CSS pixels and returns it as a data: address (PNG, at most 128 colours)."""
    figure = Figure(figsize=(size[0] / 96, size[1] / 96), dpi=DPI, facecolor=theme.paper, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    paint(figure, theme)
    canvas.draw()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    return data_uri(Image.fromarray(pixels).quantize(128, dither=Image.Dither.NONE))


def plot(alt: str, paint: Paint, height: int, width: int = WIDTH) -> Plot:
    """Both variants of one plot, in CSS pixels."""
    return Plot(alt, render(paint, (width, height), LIGHT), render(paint, (width, height), DARK), width, height)


def style_axes(axes: Any, theme: Theme, grid: str = "y", x: str = "", y: str = "", title: str = "") -> None:
    """The style of all axes: no box, quiet ticks, hair lines in the direction that is read; labels and title."""
    axes.set_facecolor(theme.paper)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.rule)
    axes.tick_params(colors=theme.muted, labelsize=8.5, length=0)
    axes.grid(axis=grid, color=theme.rule, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, fontsize=8.5, color=theme.muted)
    axes.set_ylabel(y, fontsize=8.5, color=theme.muted)
    axes.set_title(title, loc="left", fontsize=9.5, color=theme.ink, fontweight="bold", parse_math=False)


def thousands(value: float, _: Any = None) -> str:
    """Axis numbers: 1500 -> 1.5k, 2000000 -> 2M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def log_counts(axes: Any) -> None:
    """A logarithmic axis of counts, on which 0 is the lower edge."""
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(thousands))


def outline(axes: Any, tops: np.ndarray, floor: float, colour: str, alpha: float = 1.0) -> None:
    """Bars of classes; of more than `SINGLE` one outline in place of a thousand rectangles."""
    c, tops = len(tops), np.maximum(tops, floor)
    if c <= SINGLE:
        axes.bar(np.arange(c), tops - floor, 0.74, bottom=floor, color=colour, alpha=alpha)
        return
    edges = np.arange(c + 1) - 0.5
    axes.fill_between(edges, floor, np.append(tops, tops[-1]), step="post", color=colour, alpha=alpha, linewidth=0)


def class_histogram(
    names: Sequence[str], counts: Sequence[int], layers: Sequence[tuple[Sequence[int], str]], group: Sequence[str]
) -> Plot:
    """Images per class in the order given (largest class first), layers in front of each other.

    Args:
        names, counts, group: (C,) names (or "#label"), real images, group name.
        layers: (heights (C,), colour: a field of :class:`Theme`); the highest first.
    """
    c = len(names)
    log = max(counts) / max(1, min(counts)) >= WIDE_RANGE

    def paint(figure: Figure, theme: Theme) -> None:
        axes: Any = figure.add_subplot()
        style_axes(axes, theme, y="images" + (", log scale" if log else ""))
        for heights, colour in layers:
            outline(axes, np.asarray(heights, float), 0.5 if log else 0.0, getattr(theme, colour))
        axes.yaxis.set_major_formatter(FuncFormatter(thousands))
        if log:
            log_counts(axes)
        class_axis(axes, names, counts, theme)
        group_marks(axes, group, theme)

    alt = f"Images per class, {c} classes sorted by size, {'log' if log else 'linear'} scale"
    return plot(alt, paint, 300 + extra_height(names))


def extra_height(names: Sequence[str]) -> int:
    """CSS pixels that class names below a plot take where they are turned."""
    return 22 if len(names) <= 40 and any(len(name) > 6 for name in names) else 0


def class_axis(axes: Any, names: Sequence[str], counts: Sequence[int], theme: Theme) -> None:
    """Names below the classes where they fit, otherwise ranks."""
    c = len(names)
    axes.set_xlim(-0.6, c - 0.4)
    if c > 40:
        ranks = [1, *(int(r) for r in MaxNLocator(6, integer=True).tick_values(1, c) if 1 < r <= c)]
        axes.set_xticks([r - 1 for r in ranks], [f"{r:,}" for r in ranks])
        axes.set_xlabel("class, by size (1 = largest)", fontsize=8.5, color=theme.muted)
    else:
        flat = max(len(name) for name in names) * 7 < WIDTH / c - 4
        texts = [f"{name}\n{n}" if flat and c <= 20 else name for name, n in zip(names, counts, strict=True)]
        style = {} if flat else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(c), texts, parse_math=False, **style)


def group_marks(axes: Any, group: Sequence[str], theme: Theme) -> None:
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


def loss_curve(name: str, images: Sequence[float], values: Sequence[float]) -> Plot:
    """One named loss against images seen: median of short stretches, with their 10th to 90th percentile behind it."""
    x, y = np.asarray(images, float), np.asarray(values, float)
    parts = np.array_split(np.arange(len(x)), min(120, len(x) // 4)) if len(x) > 60 else None

    def paint(figure: Figure, theme: Theme) -> None:
        axes: Any = figure.add_subplot()
        style_axes(axes, theme, x="images seen", title=label(name, "term", 40))
        if parts is None:
            axes.plot(x, y, color=theme.real, linewidth=1.6, marker="o" if len(x) < 12 else None, markersize=3)
        else:
            middle = [float(x[s].mean()) for s in parts]
            low, mid, high = (np.array([np.quantile(y[s], q) for s in parts]) for q in (0.1, 0.5, 0.9))
            axes.fill_between(middle, low, high, color=theme.real, alpha=0.2, linewidth=0)
            axes.plot(middle, mid, color=theme.real, linewidth=1.5)
        if y.min() > 0 and y.max() / y.min() > 30:
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))

    return plot(f"Training loss {name} against images seen, last value {y[-1]:.4g}", paint, 205, 350)
