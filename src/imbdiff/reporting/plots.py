"""Plots as SVG data, in the colours of light pages and of dark ones.

Figures are made without pyplot, so nothing global is created or changed. Text is set with `parse_math=False`:
a class called ``$x`` is a name, not a formula.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from imbdiff.reporting.text import label

WIDTH = 1000


@dataclass(frozen=True)
class Theme:
    """Colours of light or dark pages; the same values are in the style sheet."""

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
    """One plot as a data: address."""

    alt: str
    address: str
    width: int
    height: int


def render(paint: Paint, size: tuple[int, int]) -> str:
    """Paints a figure of `size` CSS pixels in light colours and returns it as SVG, text as outlines."""
    figure = Figure(figsize=(size[0] / 96, size[1] / 96), facecolor=LIGHT.paper, layout="constrained")
    paint(figure, LIGHT)
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "imbdiff"}):  # the same figure, the same text
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def plot(alt: str, paint: Paint, height: int, width: int = WIDTH) -> Plot:
    """One plot in CSS pixels, which on dark pages has their colours."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in zip(astuple(LIGHT), astuple(DARK), strict=True) for what in ("fill", "stroke")
    )  # fmt: skip
    style = f"<style>@media(prefers-color-scheme:dark){{{rules}}}</style></svg>"
    svg = re.sub(r' d="[^"]+"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), render(paint, (width, height)))
    svg = svg.replace("</svg>", style)
    return Plot(alt, "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode(), width, height)


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
