"""The README's picture, from a finished run: counts, real images and synthetic images of each class.

python benchmarks/picture.py runs/demo docs/images/demo.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from imbdiff.pipeline.run import open_run

REAL, SYNTHETIC = "#3b6db3", "#e08a2b"


def draw(run: Path, out: Path, real_shown: int = 6, synthetic_shown: int = 14, classes: int = 10) -> None:
    """Rows are classes from the largest to the smallest; images are the first ones, not picked."""
    opened, prepared = open_run(run)
    synthetic = opened.synthetic(prepared)
    assert synthetic is not None, "the run has no synthetic images"
    order = np.argsort(-np.asarray(prepared.stats.counts), kind="stable")[:classes]
    figure = plt.figure(figsize=(9.6, 0.40 * len(order) + 0.7), dpi=110)
    columns = real_shown + synthetic_shown
    largest = (
        np.asarray(prepared.stats.counts) + np.bincount(synthetic.labels, minlength=len(prepared.stats.counts))
    ).max()
    grid = figure.add_gridspec(
        len(order), columns + 7, left=0.06, right=0.99, top=0.9, bottom=0.02, wspace=0.08, hspace=0.12
    )
    for row, k in enumerate(order):
        bar = figure.add_subplot(grid[row, :5])
        n, added = prepared.stats.counts[k], int((synthetic.labels == k).sum())
        bar.barh([0], [n], color=REAL)
        bar.barh([0], [added], left=[n], color=SYNTHETIC)
        bar.set_xlim(0, 1.02 * largest)
        bar.set_ylim(-0.55, 0.55)
        bar.axis("off")
        bar.text(-0.02, 0.5, f"{prepared.stats.names[k]}", transform=bar.transAxes, ha="right", va="center", fontsize=9)
        bar.text(n + 0.97 * added, 0, f"{n} + {added}", ha="right", va="center", fontsize=7.5, color="white")
        real = prepared.train.images[prepared.train.labels == k][:real_shown]
        drawn = synthetic.images[synthetic.labels == k][:synthetic_shown]
        for offset, images in ((6, real), (7 + real_shown, drawn)):
            for i, image in enumerate(images):
                axes = figure.add_subplot(grid[row, offset + i])
                axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axes.axis("off")
    for x, text, colour in (
        (0.06, "images per class", "black"),
        (0.275, "real", REAL),
        (0.525, "synthetic", SYNTHETIC),
    ):
        figure.text(x, 0.93, text, fontsize=10, color=colour, weight="bold")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, facecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    draw(given.run, given.out)
