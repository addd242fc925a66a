"""Plots as PNG data: each for light and dark pages, and where it matters for wide and narrow ones.

Figures are made without pyplot, so nothing global is created or changed. Text is set with `parse_math=False`:
a class called ``$x`` is a name, not a formula.
"""

from __future__ import annotations

import io
import math
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

DPI = 192.0  # twice the nominal 96, for sharp text on dense screens
SINGLE = 60
"""Classes up to which each has a bar or point of its own; above, one outline or a running median."""


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
    """One plot in its variants, as data: addresses; `narrow` is None where one width serves all screens."""

    alt: str
    light: str
    dark: str
    width: int
    height: int
    narrow: tuple[str, str] | None = None


def render(paint: Paint, size: tuple[int, int], theme: Theme) -> str:
    """Paints a figure of `size` CSS pixels and returns it as a data: address (PNG, at most 128 colours)."""
    figure = Figure(figsize=(size[0] / 96, size[1] / 96), dpi=DPI, facecolor=theme.paper, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    paint(figure, theme)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    picture = Image.fromarray(np.ascontiguousarray(pixels)).quantize(128, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return data_uri(out.getvalue())


def plot(alt: str, paint: Paint, size: tuple[int, int], narrow: tuple[int, int] | None = None) -> Plot:
    """All variants of one plot; sizes are (width, height) in CSS pixels."""
    slim = (render(paint, narrow, LIGHT), render(paint, narrow, DARK)) if narrow else None
    return Plot(alt, render(paint, size, LIGHT), render(paint, size, DARK), *size, narrow=slim)


def pixels_across(figure: Figure) -> float:
    return figure.get_figwidth() * 96


def is_narrow(figure: Figure) -> bool:
    return pixels_across(figure) < 600


def style_axes(axes: Any, theme: Theme, grid: str = "y", x: str = "", y: str = "", title: str = "") -> None:
    """The style of all axes: no box, quiet ticks, hair lines in the direction that is read; labels and title."""
    axes.set_facecolor(theme.paper)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.rule)
    axes.tick_params(colors=theme.muted, labelsize=8.5, length=0)
    axes.grid(axis=grid, color=theme.rule, linewidth=0.7)
    axes.set_axisbelow(True)
    if x:
        axes.set_xlabel(x, fontsize=8.5, color=theme.muted)
    if y:
        axes.set_ylabel(y, fontsize=8.5, color=theme.muted)
    if title:
        axes.set_title(title, loc="left", fontsize=9.5, color=theme.ink, fontweight="bold", parse_math=False)


def thousands(value: float, _: Any = None) -> str:
    """Axis numbers: 1500 -> 1.5k, 2000000 -> 2M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def outline(axes: Any, tops: np.ndarray, floor: float, colour: str, alpha: float = 1.0) -> None:
    """Bars of classes; of more than `SINGLE` one outline in place of a thousand rectangles."""
    c = len(tops)
    if c <= SINGLE:
        axes.bar(np.arange(c), tops - floor, 0.74, bottom=floor, color=colour, alpha=alpha)
        return
    edges = np.arange(c + 1) - 0.5
    axes.fill_between(edges, floor, np.append(tops, tops[-1]), step="post", color=colour, alpha=alpha, linewidth=0)


def class_histogram(
    names: Sequence[str],
    counts: Sequence[int],
    layers: Sequence[tuple[Sequence[int], str]],
    group: Sequence[str],
    log: bool,
    what: str = "Images per class",
) -> Plot:
    """Images per class in the order given (largest class first), layers in front of each other.

    Args:
        names, counts, group: (C,) names (or "#label"), real images, group name.
        layers: (heights (C,), colour: a field of :class:`Theme`); the highest first.
        log: logarithmic counts. Heights of stacked bars then say nothing; their tops do.
    """
    c = len(names)
    floor = 0.5 if log else 0.0

    def paint(figure: Figure, theme: Theme) -> None:
        axes: Any = figure.add_subplot()
        style_axes(axes, theme, y="images" + (", log scale" if log else ""))
        for heights, colour in layers:
            outline(axes, np.maximum(np.asarray(heights, float), floor), floor, getattr(theme, colour))
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom=floor)
            axes.minorticks_off()
        axes.set_xlim(-0.6, c - 0.4)
        axes.yaxis.set_major_formatter(FuncFormatter(thousands))
        class_ticks(axes, names, counts, pixels_across(figure), theme)
        group_marks(axes, group, theme)

    alt = f"{what}, {c} classes sorted by size, {'log' if log else 'linear'} scale"
    tall = 20 if any(len(name) > 6 for name in names) and c <= 40 else 0
    return plot(alt, paint, (1000, 300 + tall), (400, 260 + tall) if c > 1 else None)


def class_ticks(axes: Any, names: Sequence[str], counts: Sequence[int], pixels: float, theme: Theme) -> None:
    """Names below the bars where they fit, otherwise ranks."""
    c = len(names)
    if c > 40 or c * 13 > pixels:
        ranks = [1, *(int(r) for r in MaxNLocator(6, integer=True).tick_values(1, c) if 1 < r <= c)]
        axes.set_xticks([r - 1 for r in ranks], [f"{r:,}" for r in ranks])
        axes.set_xlabel("class, by size (1 = largest)", fontsize=8.5, color=theme.muted)
        return
    axes.set_xticks(range(c))
    flat = max(len(name) for name in names) * 7 < pixels / c - 4
    texts = [f"{name}\n{n}" if flat and c <= 20 else name for name, n in zip(names, counts, strict=True)]
    style = {} if flat else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticklabels(texts, parse_math=False, **style)


def group_marks(axes: Any, group: Sequence[str], theme: Theme) -> None:
    """Names the groups above the bars, with a line between them, where each is one stretch of the size order."""
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
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    parts = np.array_split(np.arange(len(x)), min(len(x), max(1, min(120, len(x) // 4)))) if len(x) > 60 else None

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
        if len(y) and y.min() > 0 and y.max() / y.min() > 30:
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))

    last = f", last value {y[-1]:.4g}" if len(y) else ""
    return plot(f"Training loss {name} against images seen{last}", paint, (350, 205))


def is_wide(counts: Sequence[int]) -> bool:
    """Whether counts span so large a range that a linear axis hides the small classes."""
    return max(counts) / max(1, min(counts)) >= 15


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
