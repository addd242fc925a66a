"""The pictures of `toy_world`: the few group's numbers by method, and the samples of the rarest class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from toy_mixture import NEAR, SHARE, World

OWN, NONE, SEEN, BORROWED, OUTSIDE = "#1f4e9c", "#9db4d8", "#1f4e9c", "#2a9d4a", "#d1402f"
PANELS = (
    ("covered", "modes covered (higher is better)"),
    ("borrowed", "of unseen ones: borrowed (higher)"),
    ("precision", "precision (higher is better)"),
    ("distance", "distance (lower is better)"),
)

Values = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


def overview(values: Values, interval: Callable[[Sequence[float]], tuple[float, float]], out: Path) -> None:
    """One row per method, one panel per measure: mean and 95 % interval over seeds, with its own guidance and without.

    Args:
        values: values[method]["own" or "none"][measure] is one number per seed.
        interval: (mean, half width) of such numbers.
    """
    names = list(values)
    y = np.arange(len(names))[::-1]
    size = (13, 1.5 + 0.27 * len(names))
    figure, axes = plt.subplots(1, len(PANELS), figsize=size, dpi=110, sharey=True, layout="constrained")
    for panel, (measure, title) in zip(axes, PANELS, strict=True):
        for guidance, offset, colour, label in (
            ("own", 0.14, OWN, "the method's own guidance"),
            ("none", -0.14, NONE, "no guidance"),
        ):
            given = [values[name][guidance].get(measure) for name in names]
            found = np.array([interval(v) if v else (np.nan, np.nan) for v in given])
            panel.errorbar(
                found[:, 0],
                y + offset,
                xerr=found[:, 1],
                fmt="o",
                color=colour,
                markersize=4,
                elinewidth=1.2,
                label=label,
            )
            if "ddpm" in values:
                at = interval(values["ddpm"][guidance][measure])[0]
                panel.axvline(at, color=colour, linewidth=0.8, linestyle=":", zorder=0)
        panel.set_title(title, fontsize=10)
        panel.set_yticks(y, names, fontsize=8.5)
        panel.tick_params(axis="x", labelsize=8)
        for row in y[::2]:
            panel.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", zorder=-1)
        panel.set_ylim(-0.6, len(names) - 0.4)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.tick_params(axis="y", length=0)
    axes[0].set_xlim(-0.03, 1.03)
    axes[1].set_xlim(-0.03, 1.03)
    axes[2].set_xlim(left=0)
    dots = " Dotted: ddpm." if "ddpm" in values else ""
    figure.suptitle(f"The three smallest classes. Mean over seeds and 95 % interval.{dots}", fontsize=10)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5, frameon=False
    )
    figure.savefig(out, facecolor="white")
    plt.close(figure)


def rarest(world: World, k: int, shown: np.ndarray, drawn: Mapping[str, np.ndarray], seed: int, out: Path) -> None:
    """One panel per method: class `k`'s modes, those with training points drawn solid, and what was drawn for it.

    Args:
        shown: (m, 2) its training points.
        drawn: drawn[method] (n, 2) samples.
    """
    columns = min(6, max(3, len(drawn)))
    rows = -(-len(drawn) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.9 * columns, 2.15 * rows + 0.8), dpi=110, squeeze=False, layout="constrained"
    )
    seen = np.unique(world.mode(k, shown))
    size = NEAR * world.sd
    for panel, (name, x) in zip(axes.flat, drawn.items(), strict=False):
        for centre in np.delete(world.modes, k, axis=0).reshape(-1, 2):
            panel.add_patch(plt.Circle(centre, size, color="#ececec", linewidth=0))
        for m, centre in enumerate(world.modes[k]):
            edge = "black" if m in seen else BORROWED
            panel.add_patch(plt.Circle(centre, size, fill=False, color=edge, linewidth=0.8))
        mode = world.mode(k, x)
        known = np.isin(mode, seen[seen >= 0])
        for chosen, colour in ((mode < 0, OUTSIDE), ((mode >= 0) & ~known, BORROWED), (known & (mode >= 0), SEEN)):
            panel.plot(*x[chosen].T, ".", color=colour, markersize=3.2, alpha=0.6, markeredgewidth=0)
        counts = np.bincount(mode[mode >= 0], minlength=world.modes.shape[1])
        full = int((counts >= SHARE * len(x) / len(counts)).sum())
        panel.set_title(f"{name}\n{full} of {len(counts)} modes, precision {(mode >= 0).mean():.2f}", fontsize=7.5)
        panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=[], yticks=[])
        for spine in panel.spines.values():
            spine.set_color("#bbbbbb")
    for panel in list(axes.flat)[len(drawn) :]:
        panel.axis("off")
    marks = [
        _mark("mode of the class that its training points show", markerfacecolor="none", color="black"),
        _mark("sample in such a mode", color=SEEN),
        _mark("mode that they do not show", markerfacecolor="none", color=BORROWED),
        _mark("sample in such a mode (borrowed)", color=BORROWED),
        _mark("mode of another class", color="#dddddd"),
        _mark("sample in no mode of the class", color=OUTSIDE),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=min(3, columns - 1), fontsize=8, frameon=False)
    figure.suptitle(
        f"Samples of the smallest class ({len(shown)} training points), seed {seed}, own guidance", fontsize=10
    )
    figure.savefig(out, facecolor="white")
    plt.close(figure)


def _mark(label: str, **style: object) -> plt.Line2D:
    return plt.Line2D([], [], marker="o", linestyle="", markersize=6, label=label, **style)
