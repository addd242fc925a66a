"""Accuracy against the number of synthetic images: one panel per group, one line per way of using them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from imbdiff.reporting.plots import Plot, Theme, dress, plot, thousands
from imbdiff.reporting.text import label

MAX_LINES = 8
MAX_LEVELS = 3
MAX_PANELS = 6
COLOURS = (
    ("#c46a10", "#f0a85a"), ("#7b4fb5", "#b493ea"), ("#1f7a4d", "#62c791"), ("#b23a2e", "#f08a7d"),
    ("#0f7f93", "#5cc5d6"), ("#a0478c", "#e08fce"), ("#7d7200", "#d9cc5a"), ("#5b6675", "#c3cbd5"),
)  # fmt: skip
"""Of the lines, on light and dark pages; markers and dashes tell them apart as well."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)))
LEVELS: tuple[Any, ...] = ((0, (6, 3)), (0, (1, 2)), (0, (6, 2, 1, 2)))


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


def sweep_plot(lines: Sequence[Line], levels: Sequence[Level], scopes: Sequence[str]) -> Plot:
    """Lines with bars of one standard deviation, and dashed levels of the arms without synthetic images.

    Args:
        lines: at most 8; levels: at most 3; scopes: at most 6, in the order of the panels.
    """
    names = [label(line.name, f"line {i + 1}", 60) for i, line in enumerate(lines)]
    names += [label(f"without synthetic images: {v.name}", f"arm {i + 1}", 60) for i, v in enumerate(levels)]
    widest = max((point[0] for line in lines for point in line.points), default=1)

    def panel(axes: Any, scope: str, theme: Theme, dark: bool) -> list[Any]:
        dress(axes, theme)
        handles = []
        for i, line in enumerate(lines):
            colour = COLOURS[i % len(COLOURS)][dark]
            # a little apart, so that bars of equal numbers do not hide each other
            shift = (i - (len(lines) - 1) / 2) * 0.004 * widest
            points = [(n + shift, m.get(scope), s.get(scope)) for n, m, s in line.points]
            known = [(x, mean, sd or 0.0) for x, mean, sd in points if mean is not None]
            for x, mean, sd in known:
                axes.plot([x, x], [mean - sd, mean + sd], color=colour, linewidth=1.2, alpha=0.55)
            style = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
            handles += axes.plot(
                [x for x, _, _ in known], [y for _, y, _ in known], linewidth=1.6, markersize=5.5, **style
            )
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
        axes.set_xlabel("synthetic images", fontsize=8.5, color=theme.muted)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        title = label(scope, "group", 24)
        axes.set_title(title, loc="left", fontsize=9.5, color=theme.ink, fontweight="bold", parse_math=False)
        return handles

    def draw(figure: Figure, theme: Theme) -> None:
        slim = figure.get_figwidth() * 96 < 600
        across = 1 if slim else min(len(scopes), 4 if len(scopes) != 5 else 3)
        down = -(-len(scopes) // across)
        grid: Any = figure.subplots(down, across, squeeze=False)
        dark = theme.paper != "#ffffff"
        handles: list[Any] = []
        for axes, scope in zip(grid.ravel(), scopes, strict=False):
            handles = panel(axes, scope, theme, dark)
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

    entries, panels = len(names), len(scopes)
    rows = -(-panels // (4 if panels != 5 else 3))
    size = (1000, 270 * rows + 18 * -(-entries // 2) + 20)
    narrow = (400, 210 * panels + 18 * entries + 20)
    alt = (
        f"Validation accuracy against the number of synthetic images, {len(lines)} ways of using them, for "
        f"{', '.join(scopes)}; bars one standard deviation over seeds, dashed lines the arms without synthetic images"
    )
    return plot(alt, draw, size, narrow)
