"""Plots of what classifiers recognise: recall of each class against its training images, and reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from imbdiff.reporting.plots import Plot, Theme, dress, plot, thousands
from imbdiff.reporting.text import label, number

STRETCHES = 20
"""Stretches of the size order, equally many classes in each, where classes are too many to be drawn one by one."""


@dataclass(frozen=True, eq=False)
class Recalls:
    """Recall of each class in one arm: (C,) mean and standard deviation over seeds, NaN where there is none."""

    name: str
    synthetic: bool
    value: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True, eq=False)
class Calibration:
    """Bins of confidence of one arm, all seeds together, its calibration error and what chance alone would give."""

    name: str
    synthetic: bool
    bins: Sequence[Mapping[str, Any]]
    error: float
    chance: float | None


def recall_plot(arms: Sequence[Recalls], counts: np.ndarray, group: Sequence[str], binned: bool) -> Plot:
    """Recall per class against its training images on a log axis, one colour per arm.

    Args:
        arms: at most one without and one with synthetic images; classes from the largest to the smallest.
        counts, group: (C,) training images and group name, in this order.
        binned: mean and 10th to 90th percentile of stretches of the size order in place of single classes.
    """
    c = len(counts)

    def draw(figure: Figure, theme: Theme) -> None:
        axes: Any = figure.add_subplot()
        dress(axes, theme)
        axes.set_xscale("log")
        low, high = max(0.5, counts.min() * 0.8), counts.max() * 1.25
        wide = (high / low) ** (0.004 if len(arms) > 1 else 0.0)  # apart, so that neither hides the other
        for arm, shift in zip(arms, (1 / wide, wide), strict=False):
            colour = theme.synthetic if arm.synthetic else theme.real
            x = counts * shift
            if binned:
                axes.plot(x, arm.value, ".", color=colour, markersize=2.2, alpha=0.35, markeredgewidth=0)
                at, mean, ends = stretches(counts, arm.value)
                axes.fill_between(at, *ends, color=colour, alpha=0.14, linewidth=0)
                axes.plot(at, mean, color=colour, linewidth=2.0)
            else:
                low_end, high_end = np.clip((arm.value - arm.sd, arm.value + arm.sd), 0, 1)
                axes.vlines(x, low_end, high_end, color=colour, linewidth=1.4, alpha=0.6)
                size = 5.5 if c <= 60 else 3.6
                axes.plot(x, arm.value, "o" if arm.synthetic else "D", color=colour, markersize=size, alpha=0.85)
        axes.set_xlim(low, high)
        axes.set_ylim(-0.04, 1.06)
        axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
        few = high / low < 5  # then 1, 2, 5, 10 would be a mark or two
        axes.xaxis.set_major_locator(MaxNLocator(5) if few else LogLocator(subs=_marks(high / low)))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.minorticks_off()
        axes.set_xlabel("training images of the class, log scale", fontsize=8.5, color=theme.muted)
        axes.set_ylabel("recall of the class", fontsize=8.5, color=theme.muted)
        _groups(axes, counts, group, theme)

    said = "; ".join(f"{label(arm.name, 'arm', 60)}: {_halves(arm.value)}" for arm in arms)
    alt = f"Recall of {c:,} classes against their training images, mean over seeds: {said}"
    return plot(alt, draw, (1000, 320), (400, 280))


def _marks(ratio: float) -> tuple[float, ...]:
    return (1.0, 2.0, 5.0) if ratio < 3000 else (1.0,)


def stretches(counts: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Per stretch of the size order: middle of the counts (geometric), mean of the values, 10th and 90th percentile.

    Classes without a value are left out before the stretches are made.
    """
    known = np.isfinite(values)
    n, v = np.log(np.maximum(counts[known], 0.5)), values[known]
    parts = np.array_split(np.arange(len(v)), max(1, min(STRETCHES, len(v))))
    ends = tuple(np.array([np.quantile(v[part], q) for part in parts]) for q in (0.1, 0.9))
    return np.exp([n[part].mean() for part in parts]), np.array([v[part].mean() for part in parts]), (ends[0], ends[1])


def _groups(axes: Any, counts: np.ndarray, group: Sequence[str], theme: Theme) -> None:
    """Lines between groups with their names, where each group is one stretch of the counts."""
    starts = [i for i in range(len(group)) if i == 0 or group[i] != group[i - 1]]
    if len(starts) != len(set(group)) or any(i and counts[i] == counts[i - 1] for i in starts):
        return
    right, left = axes.get_xlim()[::-1]
    edges = [right, *(float(np.sqrt(float(counts[i]) * counts[i - 1])) for i in starts[1:]), left]
    for i, start in enumerate(starts):
        if i:
            axes.axvline(edges[i], color=theme.muted, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.text(
            float(np.sqrt(edges[i] * edges[i + 1])), 1.015, label(group[start], "", limit=12), ha="center", va="bottom",
            transform=axes.get_xaxis_transform(), fontsize=8.5, color=theme.muted, parse_math=False,
        )  # fmt: skip


def _halves(values: np.ndarray) -> str:
    """Means of the larger and the smaller half of the classes, in words."""
    half = (len(values) + 1) // 2
    means = [part[np.isfinite(part)] for part in (values[:half], values[half:])]
    texts = [number(float(part.mean())) if len(part) else "none" for part in means]
    return f"{texts[0]} in the larger half, {texts[1]} in the smaller half"


def reliability_plot(panels: Sequence[Calibration]) -> Plot:
    """How often each arm was right against how sure it was, and below it the share of images in each bin."""

    def draw(figure: Figure, theme: Theme) -> None:
        slim = figure.get_figwidth() * 96 < 600
        rows, columns = (2 * len(panels), 1) if slim else (2, len(panels))
        heights = [3.0, 1.0] * (len(panels) if slim else 1)
        grid: Any = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
        for i, panel in enumerate(panels):
            above, below = (grid[2 * i, 0], grid[2 * i + 1, 0]) if slim else (grid[0, i], grid[1, i])
            _reliability(above, below, panel, theme)

    said = "; ".join(f"{label(p.name, 'arm', 60)}: calibration error {number(p.error)}" for p in panels)
    tall = 345
    return plot(f"Accuracy against confidence: {said}", draw, (1000, tall), (400, tall * len(panels)))


def _reliability(above: Any, below: Any, panel: Calibration, theme: Theme) -> None:
    colour = theme.synthetic if panel.synthetic else theme.real
    used = [(b, row) for b, row in enumerate(panel.bins) if row["n"]]
    width = 1 / len(panel.bins)
    total = sum(row["n"] for _, row in used)
    for axes in (above, below):
        dress(axes, theme)
        axes.set_xlim(-0.01, 1.01)
    above.plot([0, 1], [0, 1], color=theme.muted, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
    middle = [(b + 0.5) * width for b, _ in used]
    share = [row["n"] / total for _, row in used]
    hits = [row["accuracy"] for _, row in used]
    sure = [row["confidence"] for _, row in used]
    above.bar(middle, hits, 0.86 * width, color=colour, alpha=0.22)
    above.vlines(sure, hits, sure, color=colour, linewidth=1.2)
    above.scatter(sure, hits, s=[14 + 120 * s for s in share], color=colour, linewidths=0, zorder=3)
    above.set_ylim(-0.03, 1.06)
    above.set_yticks([0.0, 0.5, 1.0])
    above.set_xticklabels([])
    above.set_ylabel("share right", fontsize=8.5, color=theme.muted)
    chance = "" if panel.chance is None else f" (by chance alone {number(panel.chance)})"
    name = label(panel.name, "arm", 48)
    above.set_title(
        f"{name}\nECE {number(panel.error)}{chance}", loc="left", fontsize=9.5, color=theme.ink, fontweight="bold",
        parse_math=False,
    )  # fmt: skip
    below.bar(middle, share, 0.86 * width, color=colour, alpha=0.55)
    below.yaxis.set_major_locator(MaxNLocator(2))
    below.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
    below.set_ylabel("images", fontsize=8.5, color=theme.muted)
    below.set_xlabel("confidence: softmax probability of the class predicted", fontsize=8.5, color=theme.muted)
