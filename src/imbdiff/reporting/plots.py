"""Plots as PNG data: each drawn for light and dark pages, and where it matters for wide and narrow ones.

Figures are made without pyplot, so nothing global is created or changed. Text is drawn with `parse_math=False`:
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

from imbdiff.reporting.sprites import data_uri
from imbdiff.reporting.text import label

DPI = 192.0  # twice the nominal 96, for sharp text on dense screens


@dataclass(frozen=True)
class Theme:
    """Colours of one look of the page; the same values stand in the style sheet."""

    paper: str
    ink: str
    muted: str
    rule: str
    real: str
    synthetic: str


LIGHT = Theme("#ffffff", "#1b2430", "#5b6675", "#dfe3e8", "#3d6fb4", "#e08a2c")
DARK = Theme("#1b2027", "#e6e9ee", "#9aa5b3", "#333b46", "#7fabe6", "#f0a85a")

Draw = Callable[[Figure, Theme], None]


@dataclass(frozen=True)
class Plot:
    """One plot in its variants, as data: addresses; `narrow` is None where one width serves all screens."""

    alt: str
    light: str
    dark: str
    width: int
    height: int
    narrow: tuple[str, str] | None = None


def render(draw: Draw, size: tuple[int, int], theme: Theme) -> str:
    """Draws a figure of `size` CSS pixels and gives it back as a data: address (PNG, at most 128 colours)."""
    figure = Figure(figsize=(size[0] / 96, size[1] / 96), dpi=DPI, facecolor=theme.paper, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    draw(figure, theme)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    picture = Image.fromarray(np.ascontiguousarray(pixels)).quantize(128, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return data_uri(out.getvalue())


def plot(alt: str, draw: Draw, size: tuple[int, int], narrow: tuple[int, int] | None = None) -> Plot:
    """All variants of one plot; sizes are (width, height) in CSS pixels."""
    slim = (render(draw, narrow, LIGHT), render(draw, narrow, DARK)) if narrow else None
    return Plot(alt, render(draw, size, LIGHT), render(draw, size, DARK), *size, narrow=slim)


def dress(axes: Any, theme: Theme, grid: str = "y") -> None:
    """The house style of an axes: no box, quiet ticks, hair lines in the direction that is read."""
    axes.set_facecolor(theme.paper)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.rule)
    axes.tick_params(colors=theme.muted, labelsize=8.5, length=0)
    axes.grid(axis=grid, color=theme.rule, linewidth=0.7)
    axes.set_axisbelow(True)


def thousands(value: float, _: Any = None) -> str:
    """Axis numbers: 1500 -> 1.5k, 2000000 -> 2M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def class_histogram(
    names: Sequence[str], real: Sequence[int], drawn: Sequence[int], group: Sequence[str], log: bool
) -> Plot:
    """Images per class, real below and synthetic on top, in the order given (largest class first).

    Args:
        names, real, drawn, group: (C,) names (or "#label"), training images, synthetic images, group name.
        log: logarithmic counts. Heights of stacked bars then say nothing; their tops do.
    """
    c = len(names)

    def draw(figure: Figure, theme: Theme) -> None:
        axes: Any = figure.add_subplot()
        dress(axes, theme)
        x = np.arange(c)
        low, high = np.asarray(real, float), np.asarray(real, float) + np.asarray(drawn, float)
        floor = 0.5 if log else 0.0
        for tops, colour in ((high, theme.synthetic), (low, theme.real)):
            if c <= 60:
                axes.bar(x, tops - floor, 0.74, bottom=floor, color=colour)
            else:  # one outline instead of a thousand rectangles
                edges = np.arange(c + 1) - 0.5
                axes.fill_between(edges, floor, np.append(tops, tops[-1]), step="post", color=colour, linewidth=0)
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom=floor)
        axes.set_xlim(-0.6, c - 0.4)
        axes.yaxis.set_major_formatter(FuncFormatter(thousands))
        axes.set_ylabel("images" + (", log scale" if log else ""), color=theme.muted, fontsize=8.5)
        class_ticks(axes, names, real, figure.get_figwidth() * 96, theme)
        group_marks(axes, group, theme)

    what = "log" if log else "linear"
    alt = f"Images per class, real and synthetic stacked, {c} classes sorted by size, {what} scale"
    tall = 20 if any(len(name) > 6 for name in names) and c <= 40 else 0
    return plot(alt, draw, (1000, 300 + tall), (400, 260 + tall) if c > 1 else None)


def class_ticks(axes: Any, names: Sequence[str], real: Sequence[int], pixels: float, theme: Theme) -> None:
    """Names below the bars where they fit, otherwise ranks."""
    c = len(names)
    if c > 40 or c * 13 > pixels:
        ranks = [1, *(int(r) for r in MaxNLocator(6, integer=True).tick_values(1, c) if 1 < r <= c)]
        axes.set_xticks([r - 1 for r in ranks], [f"{r:,}" for r in ranks])
        axes.set_xlabel("class, by size (1 = largest)", fontsize=8.5, color=theme.muted)
        return
    axes.set_xticks(range(c))
    flat = max(len(name) for name in names) * 7 < pixels / c - 4
    texts = [f"{name}\n{n}" if flat and c <= 20 else name for name, n in zip(names, real, strict=True)]
    style = {} if flat else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticklabels(texts, parse_math=False, **style)


def group_marks(axes: Any, group: Sequence[str], theme: Theme) -> None:
    """Names the groups above the bars, where each is one stretch of the size order."""
    starts = [i for i in range(len(group)) if i == 0 or group[i] != group[i - 1]]
    if len(starts) != len(set(group)):  # explicit groups need not follow the size order
        return
    for a, b in zip(starts, [*starts[1:], len(group)], strict=True):
        if a:
            axes.axvline(a - 0.5, color=theme.muted, linewidth=0.8, linestyle=(0, (2, 3)))
        text = label(group[a], "", limit=12)
        axes.text(
            (a + b - 1) / 2, 1.015, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
            fontsize=8.5, color=theme.muted, parse_math=False,
        )  # fmt: skip


def loss_curve(name: str, images: Sequence[float], values: Sequence[float]) -> Plot:
    """One named loss against images seen: median of short stretches, with their 10th to 90th percentile behind it."""
    x, y = np.asarray(images, float), np.asarray(values, float)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    stretches = np.array_split(np.arange(len(x)), min(len(x), max(1, min(120, len(x) // 4)))) if len(x) > 60 else None

    def draw(figure: Figure, theme: Theme) -> None:
        axes: Any = figure.add_subplot()
        dress(axes, theme)
        if stretches is None:
            axes.plot(x, y, color=theme.real, linewidth=1.6, marker="o" if len(x) < 12 else None, markersize=3)
        else:
            middle = [float(x[s].mean()) for s in stretches]
            low, mid, high = (np.array([np.quantile(y[s], q) for s in stretches]) for q in (0.1, 0.5, 0.9))
            axes.fill_between(middle, low, high, color=theme.real, alpha=0.2, linewidth=0)
            axes.plot(middle, mid, color=theme.real, linewidth=1.5)
        if len(y) and y.min() > 0 and y.max() / y.min() > 30:
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.set_xlabel("images seen", fontsize=8.5, color=theme.muted)
        axes.set_title(
            label(name, "term", 40), loc="left", fontsize=9.5, color=theme.ink, fontweight="bold", parse_math=False
        )

    last = f", last value {y[-1]:.4g}" if len(y) else ""
    return plot(f"Training loss {name} against images seen{last}", draw, (350, 205))


def accuracy_by_group(arms: Sequence[dict[str, Any]], scopes: Sequence[str]) -> Plot:
    """Accuracy of each arm, one panel per scope, arms as rows: mean, standard deviation over seeds, single seeds.

    Args:
        arms: {"name", "synthetic": bool, "control": bool, "mean": {scope: value}, "sd": {scope: value},
            "seeds": {scope: [value of each seed]}}.
        scopes: "all" and the groups, in the order of the panels.
    """
    rows = list(range(len(arms)))[::-1]
    names = [label(arm["name"], f"arm {i + 1}", 30) for i, arm in enumerate(arms)]

    def panel(axes: Any, scope: str, theme: Theme, named: bool) -> None:
        dress(axes, theme, grid="x")
        for y, arm in zip(rows, arms, strict=True):
            colour = theme.synthetic if arm["synthetic"] else theme.real
            mean, sd = arm["mean"].get(scope), arm["sd"].get(scope) or 0.0
            if mean is None:
                continue
            seeds = [v for v in arm["seeds"].get(scope, ()) if v is not None]
            axes.plot(seeds, [y] * len(seeds), "o", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
            axes.plot([mean - sd, mean + sd], [y, y], color=colour, linewidth=1.6, solid_capstyle="round")
            axes.plot([mean], [y], "D" if arm["control"] else "o", color=colour, markersize=6)
            if arm["control"]:
                axes.axvline(mean, color=theme.real, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.set_yticks(rows)
        axes.set_yticklabels(names if named else [""] * len(names), parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.12)
        axes.set_title(
            label(scope, "group", 24), loc="left", fontsize=9.5, color=theme.ink, fontweight="bold", parse_math=False
        )

    def draw(figure: Figure, theme: Theme) -> None:
        slim = figure.get_figwidth() * 96 < 600
        shape = (len(scopes), 1) if slim else (1, len(scopes))
        grid: Any = figure.subplots(*shape, squeeze=False)
        for i, (axes, scope) in enumerate(zip(grid.ravel(), scopes, strict=True)):
            panel(axes, scope, theme, slim or i == 0)

    alt = "Accuracy per group and arm: mean over seeds, bar one standard deviation, dashed line the best control"
    tall = 26 * len(arms) + 60
    return plot(alt, draw, (1000, tall), (400, tall * len(scopes)))


def is_wide(counts: Sequence[int]) -> bool:
    """Whether counts span so large a range that a linear axis hides the small classes."""
    return max(counts) / max(1, min(counts)) >= 15


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
