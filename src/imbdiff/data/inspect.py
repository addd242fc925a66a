"""What is in a source, before anything is done with it: classes, sizes, damage, duplicates, labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data.decode import COLOUR_MODES, OFTEN, SMALLEST, Size, lose_much, resolve, suggest
from imbdiff.data.findings import Usable, copies, name_problems, suspicious, usable_images
from imbdiff.data.imageset import ImageSet, by_classes
from imbdiff.data.names import counted, display_name
from imbdiff.data.near_duplicates import CopyFinder, NearDuplicates, across, lookups, within
from imbdiff.data.source import BALANCED_WITHIN, GREY, Source
from imbdiff.data.sources import load
from imbdiff.data.splits import TINY
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.runtime.errors import DataError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

BETAS = (0.999, 0.9999)
KEPT_PAIRS = 1_000
"""Near duplicates that the report lists of each pair of splits; it counts all."""
SHOWN_CLASSES = 30
SHOWN = 10


@dataclass(frozen=True, eq=False)
class Inspection:
    """The report, and what pictures are made from.

    Attributes:
        report: as :func:`inspect` gives it.
        source: what was inspected.
        usable: {split: its usable images}.
    """

    report: dict[str, Any]
    source: Source
    usable: dict[str, Usable]


def inspect(source: str | Path | Source | ImageSet | tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Decodes every image of a source once; damaged ones are reported, not raised. Nothing is changed or written.

    Args:
        source: as for :func:`load`.

    Returns:
        A JSON-able dictionary. Unusable files are in "bad" and in no count; ids name images.

        * source: name, kind, splits, flippable (known to allow mirroring).
        * classes: name, group, counts per split, share of the usable training images, effective {"0.999", "0.9999":
          effective number of samples (1 - beta^n) / (1 - beta), Cui et al. 2019}.
        * images per split; imbalance_factor of the classes with a usable training image; balanced; group_rule;
          normalised_entropy of the class shares (1: balanced).
        * sizes [height, width, images], the most frequent first; modes; channels; suggested_size with size_reason;
          resize: policy (crop or pad), cut_much (images of which crop cuts off more than a quarter), images.
        * bad {id: why}.
        * duplicates [{images, splits, classes}]: groups of images that are equal in their own size.
        * near_duplicates, of train in each other split and inside each split: first, second, looked_up, total, near,
          beyond_chance, limit, and pairs [id in first, id in second, ratio], at most 1,000, the most alike first, exact
          duplicates left out. See :mod:`imbdiff.data.near_duplicates`.
        * labels: names [{names, why}]; suspicious, see :func:`imbdiff.data.findings.suspicious`.
        * warnings: sentences.

    Raises:
        DataError: the source cannot be opened at all.
    """
    return examine(source).report


def examine(
    source: str | Path | Source | ImageSet | tuple[np.ndarray, np.ndarray],
    size: Size | None = None,
    resize: str = "auto",
    channels: str = "auto",
) -> Inspection:
    """As :func:`inspect`, with what pictures are made from; `size`, `resize` and `channels` are those of the run."""
    opened = load(source, incomplete=True)
    usable, scan = usable_images(opened)
    names, train, sizes = opened.class_names, usable["train"], scan.sizes
    suggestions, size_notes = _suggestions(sizes, str(opened.name), size, resize)
    if channels == "auto" and scan.grey and any(mode in COLOUR_MODES for mode in scan.modes):
        size_notes.append(GREY)
    elif channels == "auto" and 0 < scan.coloured < OFTEN * sum(sizes.values()):
        size_notes.append(f"{counted(scan.coloured, 'image has', 'images have')} coloured pixels, the others are grey: "
                          "read in colour; otherwise: --data.channels grey")  # fmt: skip
    searches = {
        split: CopyFinder(images.images, images.hashes, lookups(len(images)))
        for split, images in usable.items()
        if len(images)
    }
    near = [
        across(searches["train"], train, usable[split], ("train", split))
        for split in searches
        if split != "train" and "train" in searches
    ]
    inside = [within(search, usable[split], split) for split, search in searches.items()]
    equal = copies(usable, names)
    classes = _classes(opened, usable)
    report = {
        "source": {
            "name": opened.name,
            "kind": opened.kind,
            "splits": list(opened.splits),
            "flippable": opened.flippable,
        },
        **classes,
        "sizes": [[h, w, n] for (h, w), n in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))],
        "modes": dict(scan.modes),
        "channels": 1 if channels == "grey" or (scan.grey and channels != "colour") else 3,
        **suggestions,
        "bad": scan.bad,
        "duplicates": equal,
        "near_duplicates": [_near_row(found) for found in (*near, *inside)],
        "labels": {"names": name_problems(names), "suspicious": suspicious(train, searches.get("train"), names)},
        "warnings": [
            *opened.warnings,
            *size_notes,
            *_warnings(classes["classes"], equal),
            *filter(None, (found.sentence() for found in near)),
        ],
    }
    return Inspection(report, opened, usable)


def _classes(source: Source, usable: Mapping[str, Usable]) -> dict[str, Any]:
    """The part of the report on class sizes."""
    names, c = source.class_names, len(source.class_names)
    counts = {split: np.bincount(images.labels, minlength=c).tolist() for split, images in usable.items()}
    n = np.array(counts["train"], dtype=np.float64)
    present, total = n[n > 0], max(1.0, n.sum())
    factor = float(present.max() / present.min()) if len(present) else 1.0
    groups = (source.defaults.groups or Groups.default)(
        ClassStats(tuple(names), tuple(max(1, k) for k in counts["train"]))
    )
    shares = present / total
    return {
        "classes": [
            {
                "name": name,
                "group": groups.names[groups.of_class[k]],
                "counts": {split: counts[split][k] for split in source.splits},
                "share": n[k] / total,
                "effective": {str(beta): effective(counts["train"][k], beta) for beta in BETAS},
            }
            for k, name in enumerate(names)
        ],
        "images": {split: sum(counts[split]) for split in source.splits},
        "imbalance_factor": factor,
        "balanced": len(present) == c and factor <= BALANCED_WITHIN,
        "group_rule": groups.rule,
        "normalised_entropy": float(-(shares * np.log(shares)).sum() / np.log(c)) if c > 1 and len(shares) else 1.0,
    }


def effective(n: int, beta: float) -> float:
    """Effective number of `n` images, (1 - beta^n) / (1 - beta): Cui et al. 2019, "Class-balanced loss"."""
    return float(-np.expm1(n * np.log(beta)) / (1 - beta))


def _near_row(found: NearDuplicates) -> dict[str, Any]:
    pairs = [list(pair) for pair in found.pairs[:KEPT_PAIRS]]
    return vars(found) | {"near": len(found.pairs), "pairs": pairs}


def _warnings(classes: Sequence[Mapping[str, Any]], equal: Sequence[Mapping[str, Any]]) -> list[str]:
    tiny = sum(0 < row["counts"]["train"] <= TINY for row in classes)
    lost = [row["name"] for row in classes if not row["counts"]["train"]]
    notes = [f"no usable training image of {listed(lost)}"] if lost else []
    if tiny:
        have, images = counted(tiny, "class has", "classes have"), counted(TINY, "image")
        notes.append(f"{have} at most {images}: kept in training, left out of tests and claims")
    if any(len(set(group["classes"])) > 1 for group in equal):
        notes.append("some images occur under more than one class: at least one of the labels is wrong")
    return notes


def listed(names: Sequence[str]) -> str:
    """At most 10 names on one line."""
    return _capped([display_name(name) for name in names], ", ")


def _suggestions(
    sizes: Mapping[tuple[int, int], int], where: str, size: Size | None, resize: str
) -> tuple[dict[str, Any], list[str]]:
    """The part of the report on the size that a run takes, and notes as the run has them."""
    shape: list[int] | None = None
    policy, why = "crop", "no image could be read"
    notes: tuple[str, ...] = ()
    if sizes:
        try:
            target, notes = resolve(sizes, size, resize, where)
            shape, policy = list(target.shape), target.policy
            why = "few images need to be enlarged to it" if len(sizes) > 1 else "the longer side is 64"
            why = "all images have it" if target.shape in sizes and len(sizes) == 1 else why
            why = "asked for" if size is not None else why
        except DataError as error:  # too small
            shape, why = list(suggest(sizes)), f"each side needs at least {SMALLEST} pixels"
            notes = (f"{error.message}: {error.remedy}",)
    much = lose_much(sizes, (shape[0], shape[1])) if shape else 0
    found = {"policy": policy, "cut_much": much, "images": sum(sizes.values())}
    return {"suggested_size": shape, "size_reason": why, "resize": found}, list(notes)


def format_inspection(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal: of more than 30 classes the 20 largest and 10 smallest, 10 rows of any list."""
    from rich.console import Group
    from rich.text import Text

    splits, images = report["source"]["splits"], report["images"]
    number = counted(images["train"], "image")
    if len(splits) > 1:
        number = ", ".join(f"{n} {split}" for split, n in images.items()) + " images"
    if report["bad"]:
        number += f"; not counted: {counted(len(report['bad']), 'unusable file')}"
    head = [
        f"{display_name(report['source']['name'], 200)} ({report['source']['kind']}): "
        f"{counted(len(report['classes']), 'class', 'classes')}, {number}",
        f"imbalance factor {report['imbalance_factor']:.1f}; normalised entropy {report['normalised_entropy']:.3f} "
        f"(1 = balanced); groups: {report['group_rule']}",
    ]
    tail = _sizes(report)
    for what, rows in _lists(report):
        if rows:
            tail.append(f"{what}:\n  " + _capped(rows, "\n  "))
    tail += [f"note: {note}" for note in report["warnings"]]
    return Group(*map(Text, head), _class_table(report), *map(Text, tail))


def _class_table(report: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    splits = report["source"]["splits"]
    columns = [*(splits if len(splits) > 1 else ["images"]), "share", "effective*"]
    table = Table("class", "group", title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    table.caption = "* effective number of images, beta = 0.999 (Cui et al. 2019)"
    classes = sorted(report["classes"], key=lambda row: -row["counts"]["train"])
    hidden = len(classes) - SHOWN_CLASSES
    for i, row in enumerate(classes):
        if hidden > 0 and i == SHOWN_CLASSES - SHOWN:
            table.add_row(Text(f"... {counted(hidden, 'more class', 'more classes')}"))
        if hidden > 0 and SHOWN_CLASSES - SHOWN <= i < len(classes) - SHOWN:
            continue
        numbers = [str(row["counts"][s]) for s in splits]
        numbers += [f"{100 * row['share']:.3g} %", f"{row['effective']['0.999']:.1f}"]
        # Text, not str: rich would read markup in a class called "[red]"
        table.add_row(Text(display_name(row["name"], 40)), row["group"], *numbers)
    return table


def _sizes(report: dict[str, Any]) -> list[str]:
    if not report["sizes"]:
        return []
    sizes = _capped([f"{h} x {w} ({n})" for h, w, n in report["sizes"]], ", ")
    colour = "grey" if report["channels"] == 1 else "colour"
    modes = ", ".join(f"{mode} ({n})" for mode, n in sorted(report["modes"].items()))
    height, width = report["suggested_size"]
    return [
        f"sizes (height x width): {sizes}; {colour}; modes {modes}",
        f"size of a run: {height} x {width} ({report['size_reason']}); another: --data.size N or HxW; twice the side "
        "takes 4 times as long",
    ]


def _lists(report: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Unusable files, duplicates and labels to check, as (heading, rows)."""
    bad = [f"{display_name(name, 120)}: {display_name(why, 200)}" for name, why in sorted(report["bad"].items())]
    yield counted(len(bad), "unusable file"), bad
    sizes = {row["name"]: sum(row["counts"].values()) for row in report["classes"]}
    for several, where in ((False, "within a split"), (True, "across splits")):
        groups = [group for group in report["duplicates"] if (len(set(group["splits"])) > 1) == several]
        rows = by_classes((list(zip(g["images"], g["classes"], strict=True)) for g in groups), sizes)
        yield f"{counted(len(groups), 'group')} of exact duplicates {where}", rows
    for row in report["near_duplicates"]:
        what = f"{counted(row['near'], 'near duplicate')} of {row['first']} in {row['second']}"
        if row["first"] == row["second"]:
            what = f"{counted(row['near'], 'pair')} of near duplicates inside {row['first']}"
        if row["looked_up"] < row["total"]:
            what += f" (looked up: {row['looked_up']:,} of {row['total']:,})"
        what += "" if row["beyond_chance"] else ", no more than chance may give"
        pairs = [f"{display_name(a, 120)} ~ {display_name(b, 120)} ({ratio:.2f})" for a, b, ratio in row["pairs"]]
        yield f"{what}, the most alike first", pairs
    names, votes = report["labels"]["names"], report["labels"]["suspicious"]
    yield "class names to check", [f"{listed(row['names'])}: {row['why']}" for row in names]
    rows = [
        f"{display_name(row['image'], 120)} [{display_name(row['label'], 30)}]: {row['votes']} of its {votes['k']} "
        f"nearest are {display_name(row['other'], 30)}"
        for row in votes["images"]
    ]
    number = f"{votes['found']}; {votes['looked_up']:,} of {votes['total']:,} images looked up"
    if votes["not_judged"]:
        number += f"; {counted(len(votes['not_judged']), 'class', 'classes')} cannot be judged by neighbours"
    yield f"labels to check, not necessarily wrong ({number}), the most suspicious first", rows


def _capped(rows: Sequence[str], separator: str) -> str:
    more = len(rows) - SHOWN
    return separator.join(rows[:SHOWN]) + (f"{separator}... and {more} more" if more > 0 else "")
