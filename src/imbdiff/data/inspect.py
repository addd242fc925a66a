"""What is in a source, before anything is done with it: classes, sizes, damaged files, duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data.folders import display_name
from imbdiff.data.holdout import TINY
from imbdiff.data.imageset import ImageSet
from imbdiff.data.near_duplicates import across
from imbdiff.data.resize import SMALLEST, Size, Target, parse_size, resolve, suggest
from imbdiff.data.source import BALANCED_WITHIN, Source
from imbdiff.data.sources import load
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.data.words import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN_CLASSES = 30
SHOWN_ROWS = 10
LARGEST_SEARCH = 100_000
"""Images of all splits together up to which near duplicates are looked for: half a minute at 60,000 on one core."""
KEPT_PAIRS = 1_000
"""Near duplicates that the report lists, the most alike; it counts all."""
_SEARCH_SIDE = 32


def inspect(
    source: str | Path | Source | ImageSet | tuple[np.ndarray, np.ndarray], *, size: Size | None = None
) -> dict[str, Any]:
    """Looks at every image of a source; damaged ones are reported, not raised.

    Args:
        source: as for :func:`load`.
        size: the size the user has in mind; None = suggest one.

    Returns:
        A JSON-able dictionary: source, classes (name, group, counts per split), images (per split), imbalance_factor,
        balanced, group_rule, sizes [height, width, images] with the most frequent first, modes, channels, bad
        {id: why}, duplicates (groups of equal images within a split or across splits, compared in their own size),
        near_duplicates (per split other than train: first, second, looked_up, total, near, limit and the pairs, [id in
        first, id in second, ratio]; exact duplicates are not among them; None where the source is too large),
        suggested_size, warnings. Unusable files are in "bad" and in no count; the imbalance factor is that of the
        classes with a usable training image.

    Raises:
        DataError: the source cannot be opened at all.
    """
    opened = load(source)
    survey = opened.survey()
    names = opened.class_names
    counts: dict[str, list[int]] = {}
    bad = dict(survey.bad)
    same: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for split in opened.splits:
        scan = opened.scan(split)
        hashes = scan.hashes
        bad |= scan.bad
        usable = [label for label, key in zip(opened.labels(split).tolist(), hashes, strict=True) if key is not None]
        counts[split] = np.bincount(np.array(usable, dtype=np.int64), minlength=len(names)).tolist()
        for key, name, label in zip(hashes, opened.ids(split), opened.labels(split).tolist(), strict=True):
            if key is not None:
                same[key].append((split, name, label))
    copies = [found for found in same.values() if len(found) > 1]
    # a file may be damaged behind a sound header: the survey still counts it
    sizes, modes = Counter(survey.sizes), Counter(survey.modes)
    for name in bad:
        if name in survey.headers:
            header_size, mode = survey.headers[name]
            sizes[header_size] -= 1
            modes[mode] -= 1
    sizes, modes = +sizes, +modes
    present = [n for n in counts["train"] if n]
    factor = max(present) / min(present) if present else 1.0
    groups = Groups.default(ClassStats(tuple(names), tuple(max(1, n) for n in counts["train"])))
    suggested, size_notes = _suggest(sizes, size)
    tiny = [name for name, n in zip(names, counts["train"], strict=True) if 0 < n <= TINY]
    lost = [name for name, n in zip(names, counts["train"], strict=True) if not n]
    warnings = [*opened.warnings, *size_notes]
    if lost:
        warnings.append(f"no usable training image of {', '.join(display_name(name) for name in lost[:SHOWN_ROWS])}")
    if tiny:
        have, images = counted(len(tiny), "class has", "classes have"), counted(TINY, "image")
        warnings.append(f"{have} at most {images}: kept in training, left out of tests and claims")
    if any(len({label for _, _, label in found}) > 1 for found in copies):
        warnings.append("some images occur under more than one class: at least one of the labels is wrong")
    near, said = _near_duplicates(opened, bad, survey.grey, sizes)
    warnings += said
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
        "imbalance_factor": factor,
        "balanced": not lost and factor <= BALANCED_WITHIN,
        "group_rule": groups.rule,
        "sizes": [[h, w, n] for (h, w), n in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))],
        "modes": dict(modes),
        "channels": 1 if survey.grey else 3,
        "bad": bad,
        "duplicates": {
            "within": [[name for _, name, _ in found] for found in copies if len({s for s, _, _ in found}) == 1],
            "across": [[name for _, name, _ in found] for found in copies if len({s for s, _, _ in found}) > 1],
        },
        "near_duplicates": near,
        "suggested_size": list(suggested) if suggested else None,
        "warnings": warnings,
    }


def _near_duplicates(
    opened: Source, bad: dict[str, str], grey: bool, sizes: dict[tuple[int, int], int]
) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """Images of the other splits that look like training images, and what to say about them."""
    others = [split for split in opened.splits if split != "train"]
    if not others or not sizes:
        return [], []
    total = sum(len(opened.ids(split)) for split in opened.splits)
    if total > LARGEST_SEARCH:
        return None, [f"near duplicates were not looked for: more than {LARGEST_SEARCH:,} images"]
    h, w = max(sizes, key=lambda size: (sizes[size], size))
    alike = len(sizes) == 1 and max(h, w) <= 2 * _SEARCH_SIDE
    # the search looks at 8 x 8 blocks, so that little is lost in small pictures, and proportions do not matter
    target = Target(h, w, "stretch") if alike else Target(_SEARCH_SIDE, _SEARCH_SIDE, "stretch")

    def read(split: str) -> ImageSet:
        images, _ = opened._decode(split, target, grey)
        usable = np.array([i for i, name in enumerate(opened.ids(split)) if name not in bad], dtype=np.int64)
        return ImageSet(images, opened.labels(split), opened.class_names, opened.ids(split)).select(usable)

    train, rows, notes = read("train"), [], []
    for split in others:
        found = across(train, read(split))
        pairs = [[pair.first, pair.second, round(pair.ratio, 4)] for pair in found.pairs if not pair.exact]
        rows.append(
            {
                "first": "train",
                "second": split,
                "looked_up": found.looked_up,
                "total": found.total,
                "near": len(pairs),
                "limit": found.limit,
                "pairs": pairs[:KEPT_PAIRS],
            }
        )
        sentence = found.sentence("train", split)
        notes += [sentence] if sentence else []
    return rows, notes


def _suggest(sizes: dict[tuple[int, int], int], asked: Size | None) -> tuple[tuple[int, int] | None, list[str]]:
    """(height, width), and what to say about it."""
    if asked is not None:
        height, width = parse_size(asked)
        smaller = sum(n for (h, w), n in sizes.items() if h < height or w < width)
        are = counted(smaller, "image is", "images are")
        return (height, width), [f"{are} smaller than {height} x {width} and would be enlarged"] if smaller else []
    if not sizes:
        return None, []
    side = suggest(sizes)
    if side in sizes and len(sizes) == 1:
        return side, []
    choose = f"choose one with --data.size {side[0]} (--data.resize crop|pad|stretch)"
    if len(sizes) > 1:
        return side, [f"{len(sizes)} different sizes: {choose}"]
    if min(only := next(iter(sizes))) < SMALLEST:
        return side, [f"images of {only[0]} x {only[1]} pixels are too small: {choose}"]
    unasked, _ = resolve(sizes, None, "crop", "")
    return side, [f"images larger than 64 pixels: {choose}; unasked they become {unasked.height} x {unasked.width}"]


def format_inspection(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal: at most 30 classes (the 20 largest, the 10 smallest) and 10 rows of any list."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    splits = report["source"]["splits"]
    table = Table("class", "group", *(splits if len(splits) > 1 else ["images"]), title_justify="left")
    classes = sorted(report["classes"], key=lambda row: -row["counts"]["train"])
    hidden = max(0, len(classes) - SHOWN_CLASSES)
    for i, row in enumerate(classes):
        if hidden and i == SHOWN_CLASSES - SHOWN_ROWS:
            table.add_row(Text(f"... {counted(hidden, 'more class', 'more classes')}"), *[""] * (len(splits) + 1))
        if hidden and SHOWN_CLASSES - SHOWN_ROWS <= i < len(classes) - SHOWN_ROWS:
            continue
        # Text, not str: rich would read markup in a class called "[red]"
        table.add_row(Text(display_name(row["name"], 40)), row["group"], *[str(row["counts"][s]) for s in splits])
    if len(splits) > 1:
        images = ", ".join(f"{n} {split}" for split, n in report["images"].items()) + " images"
    else:
        images = counted(sum(report["images"].values()), "image")
    if report["bad"]:
        images += f"; not counted: {counted(len(report['bad']), 'unusable file')}"
    head = [
        f"{display_name(report['source']['name'], 200)} ({report['source']['kind']}): "
        f"{counted(len(classes), 'class', 'classes')}, {images}",
        f"imbalance factor {report['imbalance_factor']:.1f}; groups: {report['group_rule']}",
    ]
    tail = [
        "sizes (height x width): "
        + _capped([f"{h} x {w} ({n})" for h, w, n in report["sizes"]], ", ")
        + f"; {'grey' if report['channels'] == 1 else 'colour'}; modes "
        + ", ".join(f"{mode} ({n})" for mode, n in sorted(report["modes"].items())),
    ]
    if report["suggested_size"]:
        height, width = report["suggested_size"]
        tail.append(
            f"suggested size: {height} x {width}; larger sizes cost time in proportion to the pixels: "
            f"{2 * height} x {2 * width} takes 4 times as long"
        )
    if report["bad"]:
        rows = [f"{display_name(name, 120)}: {display_name(why, 200)}" for name, why in sorted(report["bad"].items())]
        tail.append(f"{counted(len(rows), 'unusable file')}:\n  " + _capped(rows, "\n  "))
    for kind, where in (("within", "within a split"), ("across", "across splits")):
        rows = [" = ".join(display_name(name, 120) for name in found[:4]) for found in report["duplicates"][kind]]
        if rows:
            tail.append(f"{counted(len(rows), 'group')} of exact duplicates {where}:\n  " + _capped(rows, "\n  "))
    for row in report.get("near_duplicates") or ():
        if row["near"]:
            alike = [f"{display_name(a, 120)} ~ {display_name(b, 120)} ({ratio:.2f})" for a, b, ratio in row["pairs"]]
            alike += ["..."] * (row["near"] - len(alike))
            part = "" if row["looked_up"] == row["total"] else f" (looked up: {row['looked_up']:,} of {row['total']:,})"
            head_line = f"{counted(row['near'], 'near duplicate')} of {row['first']} in {row['second']}{part}"
            tail.append(f"{head_line}, the most alike first:\n  " + _capped(alike, "\n  "))
    tail += [f"note: {note}" for note in report["warnings"]]
    return Group(*[Text(line) for line in head], table, *[Text(line) for line in tail])


def _capped(rows: list[str], separator: str) -> str:
    more = len(rows) - SHOWN_ROWS
    return separator.join(rows[:SHOWN_ROWS]) + (f"{separator}... and {more} more" if more > 0 else "")
