"""What ensembles with synthetic images are worth, over the data sets of benefit.py: the README's second picture.

python benchmarks/benefit_picture.py docs/images/benefit.png benchmarks/results/benefit_*.json
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from imbdiff.runtime.files import read_json

NAMES = {
    "digits_50": "digits, factor 50",
    "digits_20": "digits, factor 20",
    "mnist": "MNIST, factor 100",
    "mnist_2": "MNIST, second generator",
    "fashion": "Fashion-MNIST, factor 100",
    "cifar10": "CIFAR-10, factor 100",
    "lesions_16": "skin lesions, in colour",
    "lesions_16_folds": "skin lesions, five folds",
}
AGAINST = {"4 without": "four networks without", "2 without + 2 placebo": "two + two with repeated real images",
           "2 without + 2 strong": "two + two with strong augmentation"}  # fmt: skip
COLOURS = {"4 without": "#1f4e8c", "2 without + 2 placebo": "#7a8aa0", "2 without + 2 strong": "#b0703c"}
LIMITS = {"all": (-4.0, 5.7), "few": (-9.0, 17.0)}
"""In points; the widest intervals go on beyond them."""
NUMBERS = re.compile(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)")


def intervals(path: Path) -> dict[str, dict[str, tuple[float, ...]]]:
    """Of two networks without and two with, against each of `AGAINST`: {scope: (difference, low, high)}."""
    tables = read_json(path)["result"]
    rows = next(table for name, table in tables.items() if name.startswith("difference"))  # adjusted, the first
    found = {}
    for row in rows:
        if row["arm"] == "2 without + 2 with" and row["against"] in AGAINST:
            numbers = {scope: NUMBERS.fullmatch(row[scope]) for scope in ("all", "few")}
            found[row["against"]] = {s: tuple(map(float, m.groups())) for s, m in numbers.items() if m}
    return found


def draw(results: list[Path], out: Path) -> None:
    sets = {}
    for path in results:
        key = re.fullmatch(r"benefit_(\w+?)_\d+x-.*", path.name)
        name = NAMES.get(key.group(1)) if key else None
        if name is None or name in sets:
            raise SystemExit(f"{path.name}: " + ("twice" if name else f"none of {', '.join(NAMES)}"))
        sets[name] = intervals(path)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 0.95 + 0.8 * len(sets)), dpi=110, sharey=True)
    for axis, scope, title in zip(axes, ("all", "few"), ("all classes", "rarest classes"), strict=True):
        for i, found in enumerate(sets.values()):
            for j, against in enumerate(AGAINST):
                value, low, high = found[against][scope]
                y = -i - 0.22 * (j - 1)
                axis.plot(
                    [low, high], [y, y], color=COLOURS[against], lw=2.4 if j == 0 else 1.6, solid_capstyle="round"
                )
                axis.plot([value], [y], "o", color=COLOURS[against], ms=6 if j == 0 else 4.5)
        axis.set_xlim(*LIMITS[scope])
        axis.axvline(0, color="#999999", lw=1)
        axis.set_title(title, loc="left", fontsize=10, weight="bold")
        axis.set_xlabel("gain in mean class accuracy, points")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks([-i for i in range(len(sets))], list(sets))
    axes[0].set_ylim(-len(sets) + 0.5, 0.5)
    handles = [plt.Line2D([], [], color=COLOURS[a], marker="o", lw=2, label=f"against {AGAINST[a]}") for a in AGAINST]
    figure.legend(handles=handles, loc="upper center", ncols=3, frameon=False, fontsize=8.5)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("results", type=Path, nargs="+")
    given = parser.parse_args()
    draw(given.results, given.out)


if __name__ == "__main__":
    main()
