"""Images per class of an inspected set, sorted, coloured by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from imbdiff.reporting.plots import Plot, Theme, class_ticks, dress, group_marks, is_wide, plot, thousands

SINGLE = 60
"""Classes up to which each has a bar; above, one outline."""


def counts_plot(names: Sequence[str], counts: Sequence[int], group: Sequence[str]) -> Plot:
    """Training images per class, the largest class first, on a logarithmic axis where the range is wide.

    Args:
        names, counts, group: (C,) names (or "#label"), images and group of each class, in this order.
    """
    c = len(names)
    log = is_wide([max(1, n) for n in counts])
    known = list(dict.fromkeys(group))

    def draw(figure: Figure, theme: Theme) -> None:
        axes: Any = figure.add_subplot()
        dress(axes, theme)
        floor = 0.5 if log else 0.0
        tops = np.maximum(np.asarray(counts, float), floor)
        for g, name in enumerate(known):
            colour = (theme.real, theme.muted, theme.synthetic)[min(g, 2)]
            here = np.flatnonzero(np.array(group) == name)
            if c <= SINGLE:
                axes.bar(here, tops[here] - floor, 0.74, bottom=floor, color=colour)
            else:
                shown = np.where(np.array(group) == name, tops, floor)
                axes.fill_between(
                    np.arange(c + 1) - 0.5, floor, np.append(shown, shown[-1]), step="post", color=colour, lw=0
                )
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom=floor)
            axes.minorticks_off()
        axes.set_xlim(-0.6, c - 0.4)
        axes.yaxis.set_major_formatter(FuncFormatter(thousands))
        axes.set_ylabel("images" + (", log scale" if log else ""), color=theme.muted, fontsize=8.5)
        class_ticks(axes, names, counts, figure.get_figwidth() * 96, theme)
        group_marks(axes, group, theme)

    alt = (
        f"Images per class, {c} classes sorted by size, from {max(counts):,} to {min(counts):,}, "
        f"{'log' if log else 'linear'} scale"
    )
    tall = 20 if any(len(name) > 6 for name in names) and c <= 40 else 0
    return plot(alt, draw, (1000, 270 + tall), (400, 240 + tall) if c > 1 else None)
