"""What is in a source, before anything is done with it: classes, sizes, damaged files, duplicates."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data.folders import display_name
from imbdiff.data.holdout import TINY
from imbdiff.data.imageset import ImageSet
from imbdiff.data.resize import LARGEST_UNASKED, Size, parse_size
from imbdiff.data.source import Source
from imbdiff.data.sources import load
from imbdiff.data.stats import Groups

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN_CLASSES = 30
SHOWN_ROWS = 10


def inspect(
    source: str | Path | Source | ImageSet | tuple[np.ndarray, np.ndarray], *, size: Size | None = None
) -> dict[str, Any]:
    """Looks at every image of a source; damaged ones are reported, not raised.

    Args:
        source: as for :func:`load`.
        size: the size the user has in mind; None = suggest one.

    Returns:
        A JSON-able dictionary: source, classes (name, group, counts per split), imbalance_factor, balanced, group_rule,
        sizes [height, width, images] with the most frequent first, modes, channels, bad {id: why}, duplicates
        (groups of equal images within a split or across splits, compared in their own size), suggested_size, warnings.

    Raises:
        DataError: the source cannot be opened at all.
    """
    opened = load(source)
    survey = opened.survey()
    names = opened.class_names
    counts = {split: np.bincount(opened.labels(split), minlength=len(names)).tolist() for split in opened.splits}
    groups = Groups.default(opened.stats)
    bad = dict(survey.bad)
    same: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for split in opened.splits:
        hashes, bad_here = opened.hashes(split)
        bad |= bad_here
        for key, name, label in zip(hashes, opened.ids(split), opened.labels(split).tolist(), strict=True):
            if key is not None:
                same[key].append((split, name, label))
    copies = [found for found in same.values() if len(found) > 1]
    suggested, size_notes = _suggest(survey.sizes, size)
    tiny = [name for name, n in zip(names, opened.stats.counts, strict=True) if n <= TINY]
    warnings = [*opened.warnings, *size_notes]
    if tiny:
        warnings.append(
            f"{len(tiny)} classes have at most {TINY} images: kept in training, left out of tests and claims"
        )
    if any(len({label for _, _, label in found}) > 1 for found in copies):
        warnings.append("some images occur under more than one class: at least one of the labels is wrong")
    return {
        "source": {"name": opened.name, "kind": opened.kind, "splits": list(opened.splits)},
        "classes": [
            {
                "name": name,
                "group": groups.names[groups.of_class[k]],
                "counts": {split: counts[split][k] for split in opened.splits},
            }
            for k, name in enumerate(names)
        ],
        "images": {split: sum(counts[split]) for split in opened.splits},
        "imbalance_factor": opened.stats.imbalance_factor,
        "balanced": opened.balanced,
        "group_rule": groups.rule,
        "sizes": [[h, w, n] for (h, w), n in sorted(survey.sizes.items(), key=lambda item: (-item[1], item[0]))],
        "modes": survey.modes,
        "channels": 1 if survey.grey else 3,
        "bad": bad,
        "duplicates": {
            "within": [[name for _, name, _ in found] for found in copies if len({s for s, _, _ in found}) == 1],
            "across": [[name for _, name, _ in found] for found in copies if len({s for s, _, _ in found}) > 1],
        },
        "suggested_size": list(suggested) if suggested else None,
        "warnings": warnings,
    }


def _suggest(sizes: dict[tuple[int, int], int], asked: Size | None) -> tuple[tuple[int, int] | None, list[str]]:
    """(height, width), and what to say about it: one common small size as it is, otherwise a square of 16, 32 or 64."""
    if asked is not None:
        height, width = parse_size(asked)
        smaller = sum(n for (h, w), n in sizes.items() if h < height or w < width)
        return (height, width), [f"{smaller} images are smaller than {height} x {width} and would be enlarged"] if (
            smaller
        ) else []
    if not sizes:
        return None, []
    if len(sizes) == 1 and max(next(iter(sizes))) <= LARGEST_UNASKED:
        return next(iter(sizes)), []
    short = np.repeat([min(size) for size in sizes], list(sizes.values()))
    side = max((s for s in (16, 32, 64) if s <= np.median(short)), default=16)
    mixed = f"{len(sizes)} different sizes" if len(sizes) > 1 else "images larger than 64 pixels"
    return (side, side), [f"{mixed}: choose one with --data.size {side} (--data.resize crop|pad|stretch)"]


def format_inspection(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal: at most 30 classes (the 20 largest, the 10 smallest) and 10 rows of any list."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    splits = report["source"]["splits"]
    table = Table("class", "group", *splits, title_justify="left")
    classes = sorted(report["classes"], key=lambda row: -row["counts"]["train"])
    hidden = max(0, len(classes) - SHOWN_CLASSES)
    for i, row in enumerate(classes):
        if hidden and i == SHOWN_CLASSES - SHOWN_ROWS:
            table.add_row(Text(f"... {hidden} more classes"), *[""] * (len(splits) + 1))
        if hidden and SHOWN_CLASSES - SHOWN_ROWS <= i < len(classes) - SHOWN_ROWS:
            continue
        # Text, not str: rich would read markup in a class called "[red]"
        table.add_row(Text(display_name(row["name"], 40)), row["group"], *[str(row["counts"][s]) for s in splits])
    images = ", ".join(f"{n} {split}" for split, n in report["images"].items())
    head = [
        f"{display_name(report['source']['name'], 200)} ({report['source']['kind']}): {len(classes)} classes, {images}",
        f"imbalance factor {report['imbalance_factor']:.1f}; groups: {report['group_rule']}",
    ]
    tail = [
        "sizes (height x width): "
        + _capped([f"{h} x {w} ({n})" for h, w, n in report["sizes"]], ", ")
        + f"; {'grey' if report['channels'] == 1 else 'colour'}; modes "
        + ", ".join(f"{mode} ({n})" for mode, n in sorted(report["modes"].items())),
    ]
    if report["suggested_size"]:
        tail.append("suggested size: {} x {}".format(*report["suggested_size"]))
    if report["bad"]:
        rows = [f"{display_name(name, 120)}: {display_name(why, 200)}" for name, why in sorted(report["bad"].items())]
        tail.append(f"{len(rows)} unusable files:\n  " + _capped(rows, "\n  "))
    for kind, where in (("within", "within a split"), ("across", "across splits")):
        rows = [" = ".join(display_name(name, 120) for name in found[:4]) for found in report["duplicates"][kind]]
        if rows:
            tail.append(f"{len(rows)} groups of exact duplicates {where}:\n  " + _capped(rows, "\n  "))
    tail += [f"note: {note}" for note in report["warnings"]]
    return Group(*[Text(line) for line in head], table, *[Text(line) for line in tail])


def _capped(rows: list[str], separator: str) -> str:
    more = len(rows) - SHOWN_ROWS
    return separator.join(rows[:SHOWN_ROWS]) + (f"{separator}... and {more} more" if more > 0 else "")
