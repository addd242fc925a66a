"""What is in a source, before anything is done with it: classes, sizes, damage, duplicates, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data import findings
from imbdiff.data.decode import SMALLEST, Size, parse_size, resolve, suggest
from imbdiff.data.findings import Look, look, name_problems
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted, display_name
from imbdiff.data.source import BALANCED_WITHIN, Source
from imbdiff.data.sources import load
from imbdiff.data.splits import TINY
from imbdiff.data.stats import ClassStats, Groups

VERSION = 3
"""Of the report's layout."""
BETAS = (0.999, 0.9999)
NAMED = 10


@dataclass(frozen=True, eq=False)
class Inspection:
    """The report, and what it was made from, for pictures.

    Attributes:
        report: as :func:`inspect` gives it.
        source: what was inspected.
        looks: {split: its usable images}.
    """

    report: dict[str, Any]
    source: Source
    looks: dict[str, Look]


def inspect(
    source: str | Path | Source | ImageSet | tuple[np.ndarray, np.ndarray], *, size: Size | None = None
) -> dict[str, Any]:
    """Looks at every image of a source once; damaged ones are reported, not raised. Nothing is changed or written.

    Args:
        source: as for :func:`load`.
        size: the size the user has in mind; None = suggest one.

    Returns:
        A JSON-able dictionary. Unusable files are in "bad" and in no count; ids name images.

        * version: 3. source: name, kind, splits.
        * classes: name, group, counts per split, share of the usable training images, effective {"0.999", "0.9999":
          effective number of samples (1 - beta^n) / (1 - beta), Cui et al. 2019}.
        * images per split; imbalance_factor of the classes with a usable training image; balanced; group_rule;
          normalised_entropy of the class shares (1: balanced); gini of the class counts (0: balanced).
        * sizes [height, width, images], the most frequent first; modes; channels; suggested_size with size_reason;
          resize: policy (crop or pad), cut_much (images of which crop cuts off more than a quarter), images.
        * bad {id: why}.
        * duplicates: groups of images that are equal in their own size, within a split or across splits.
        * near_duplicates per split other than train, and near_duplicates_within per split: first, second, looked_up,
          total, near, beyond_chance (clearly more than 1 % of the images), limit, neighbours and pairs [id in first, id
          in second, ratio], at most 1,000, the most alike first; exact duplicates are not among them, and count once
          within a split. See :mod:`imbdiff.data.near_duplicates`.
        * labels: names [{names, why}]; duplicates and near_duplicates [{images, classes}] with more than one label;
          single, copies, flat (names of classes of one image, of mostly exact copies, of images of one flat colour);
          flat_images; suspicious, see `findings.suspicious`, with ids and class names.
        * warnings: sentences.

    Raises:
        DataError: the source cannot be opened at all.
    """
    return examine(source, size=size).report


def examine(
    source: str | Path | Source | ImageSet | tuple[np.ndarray, np.ndarray], *, size: Size | None = None
) -> Inspection:
    """As :func:`inspect`, with what pictures are made from."""
    opened = load(source)
    survey = opened.survey()
    looks, bad = look(opened)
    names, train = opened.class_names, looks["train"]
    counts = {s: np.bincount(images.labels, minlength=len(names)).tolist() for s, images in looks.items()}
    # a file may be damaged behind a sound header: the survey still counts it
    sizes, modes = Counter(survey.sizes), Counter(survey.modes)
    for name in bad:
        if name in survey.headers:
            header_size, mode = survey.headers[name]
            sizes[header_size] -= 1
            modes[mode] -= 1
    sizes, modes = +sizes, +modes
    suggested, why, notes = suggest_size(sizes, size)
    resize, more = suggest_resize(sizes, suggested)
    copies = findings.copies(looks)
    searches = {split: findings.look_finder(images) for split, images in looks.items()}
    near, said = _across(looks, searches)
    inside, pairs = {}, {}
    for split, images in looks.items():
        inside[split], pairs[split] = findings.similar_within(images, searches[split])
    search = searches["train"]
    votes = findings.suspicious(train, search.among if search else None, len(names))
    labels = {
        "names": [{"names": group, "why": reason} for group, reason in name_problems(names)],
        "duplicates": findings.conflicting(copies, names),
        "near_duplicates": _near_conflicts(train, pairs["train"], names),
        **findings.odd_classes(train, names),
        "flat_images": sum(int(images.flat.sum()) for images in looks.values()),
        "suspicious": _named(votes, train, names),
    }
    report = {
        "version": VERSION,
        "source": {"name": opened.name, "kind": opened.kind, "splits": list(opened.splits)},
        **_classes(names, counts, opened.splits, opened.defaults.groups),
        "sizes": [[h, w, n] for (h, w), n in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))],
        "modes": dict(modes),
        "channels": 1 if survey.grey else 3,
        "suggested_size": list(suggested) if suggested else None,
        "size_reason": why,
        "resize": resize,
        "bad": bad,
        "duplicates": {
            "within": [[name for _, name, _ in found] for found in copies if len({s for s, _, _ in found}) == 1],
            "across": [[name for _, name, _ in found] for found in copies if len({s for s, _, _ in found}) > 1],
        },
        "near_duplicates": near,
        "near_duplicates_within": list(inside.values()),
        "labels": labels,
    }
    report["warnings"] = [*opened.warnings, *notes, *more, *_warnings(names, counts["train"], labels), *said]
    return Inspection(report, opened, looks)


def _classes(
    names: Sequence[str],
    counts: dict[str, list[int]],
    splits: Sequence[str],
    rule: Callable[[ClassStats], Groups] | None,
) -> dict[str, Any]:
    """The part of the report on class sizes."""
    n = np.asarray(counts["train"], dtype=np.float64)
    present, total = n[n > 0], max(1.0, n.sum())
    factor = float(present.max() / present.min()) if len(present) else 1.0
    groups = (rule or Groups.default)(ClassStats(tuple(names), tuple(max(1, k) for k in counts["train"])))
    shares = present / total
    c = len(n)
    ranks = np.arange(1, c + 1)
    return {
        "classes": [
            {
                "name": name,
                "group": groups.names[groups.of_class[k]],
                "counts": {split: counts[split][k] for split in splits},
                "share": n[k] / total,
                "effective": {str(beta): effective(counts["train"][k], beta) for beta in BETAS},
            }
            for k, name in enumerate(names)
        ],
        "images": {split: sum(counts[split]) for split in splits},
        "imbalance_factor": factor,
        "balanced": len(present) == c and factor <= BALANCED_WITHIN,
        "group_rule": groups.rule,
        "normalised_entropy": float(-(shares * np.log(shares)).sum() / np.log(c)) if c > 1 and len(shares) else 1.0,
        "gini": float((2 * ranks - c - 1) @ np.sort(n) / (c * total)),
    }


def effective(n: int, beta: float) -> float:
    """Effective number of `n` images, (1 - beta^n) / (1 - beta): Cui et al. 2019, "Class-balanced loss"."""
    return float(-np.expm1(n * np.log(beta)) / (1 - beta))


def _across(
    looks: dict[str, Look], searches: dict[str, findings.CopyFinder | None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Images of the other splits that look like training images, and what to say about them."""
    rows, notes = [], []
    for split, images in looks.items():
        if split != "train" and len(images) and len(looks["train"]):
            row, found = findings.similar_across(looks["train"], searches["train"], images)
            rows.append(row)
            sentence = found.sentence("train", split)
            notes += [sentence] if sentence else []
    return rows, notes


def _near_conflicts(train: Look, pairs: list[tuple[int, int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Near duplicates inside train that carry different labels, the most alike first; as many as pairs are listed."""
    return [
        {"images": [train.ids[a], train.ids[b]], "classes": [names[train.labels[a]], names[train.labels[b]]]}
        for a, b in pairs
        if train.labels[a] != train.labels[b]
    ][: findings.KEPT_PAIRS]


def _named(votes: dict[str, Any], train: Look, names: Sequence[str]) -> dict[str, Any]:
    """`votes` with names in place of numbers."""
    return votes | {
        "not_judged": [names[k] for k in votes["not_judged"]],
        "images": [
            {
                "image": train.ids[row["row"]],
                "label": names[row["label"]],
                "other": names[row["other"]],
                "votes": row["votes"],
                "neighbours": [train.ids[j] for j in row["neighbours"]],
            }
            for row in votes["images"]
        ],
    }


def _warnings(names: Sequence[str], train: list[int], labels: dict[str, Any]) -> list[str]:
    tiny = [name for name, n in zip(names, train, strict=True) if 0 < n <= TINY]
    lost = [name for name, n in zip(names, train, strict=True) if not n]
    notes = []
    if lost:
        notes.append(f"no usable training image of {listed(lost)}")
    if tiny:
        have, images = counted(len(tiny), "class has", "classes have"), counted(TINY, "image")
        notes.append(f"{have} at most {images}: kept in training, left out of tests and claims")
    if labels["duplicates"]:
        notes.append("some images occur under more than one class: at least one of the labels is wrong")
    if labels["copies"]:
        notes.append(f"mostly exact copies of few images: {listed(labels['copies'])}")
    if labels["flat"]:
        notes.append(f"only images of one flat colour: {listed(labels['flat'])}")
    return notes


def listed(names: Sequence[str]) -> str:
    """At most 10 names on one line."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(display_name(name) for name in names[:NAMED]) + more


MUCH = 0.25
"""Share of an image's area that is much to cut off."""
OFTEN = 0.05
"""Share of images that lose much from which padding is suggested."""


def suggest_size(
    sizes: Mapping[tuple[int, int], int], asked: Size | None
) -> tuple[tuple[int, int] | None, str, list[str]]:
    """(height, width) or None, why, and notes.

    Args:
        sizes: {(height, width): images}.
        asked: what the user has in mind.
    """
    if asked is not None:
        height, width = parse_size(asked)
        smaller = sum(n for (h, w), n in sizes.items() if h < height or w < width)
        are = counted(smaller, "image is", "images are")
        notes = [f"{are} smaller than {height} x {width} and would be enlarged"] if smaller else []
        return (height, width), "as asked for", notes
    if not sizes:
        return None, "no image could be read", []
    side = suggest(sizes)
    if side in sizes and len(sizes) == 1:
        return side, "all images have it", []
    choose = f"choose one with --data.size {side[0]} (--data.resize crop|pad|stretch)"
    if len(sizes) > 1:
        why = "few images need to be enlarged to it, and time grows with the pixels"
        return side, why, [f"{len(sizes)} different sizes: {choose}"]
    if min(only := next(iter(sizes))) < SMALLEST:
        note = f"images of {only[0]} x {only[1]} pixels are too small: {choose}"
        return side, f"each side needs at least {SMALLEST} pixels", [note]
    unasked, _ = resolve(sizes, None, "crop", "")
    note = f"images larger than 64 pixels: {choose}; unasked they become {unasked.height} x {unasked.width}"
    return side, "a first run at a small size takes hours less; time grows with the pixels", [note]


def suggest_resize(
    sizes: Mapping[tuple[int, int], int], target: tuple[int, int] | None
) -> tuple[dict[str, Any], list[str]]:
    """{"policy": crop or pad, "cut_much": images that crop would cut more than a quarter of, "images"}, and notes."""
    total = sum(sizes.values())
    much = 0 if target is None else sum(n for size, n in sizes.items() if cropped(size, target) > MUCH)
    policy = "pad" if much and much >= OFTEN * total else "crop"
    notes = []
    if target is not None and policy == "pad":
        lose = counted(much, "image", "images")
        notes.append(
            f"cropping to the proportions of {target[0]} x {target[1]} would cut off more than a quarter of {lose} of "
            f"{total}: look at --data.resize pad"
        )
    return {"policy": policy, "cut_much": much, "images": total}, notes


def cropped(size: tuple[int, int], target: tuple[int, int]) -> float:
    """Share of an image's area that is lost where it is scaled to cover `target` and cut; both (height, width)."""
    (h, w), (height, width) = size, target
    a, b = h * width, w * height
    return 1 - min(a, b) / max(a, b)


if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SHOWN_CLASSES = 30
SHOWN_ROWS = 10


def format_inspection(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal: of more than 30 classes the 20 largest and 10 smallest, 10 rows of any list."""
    from rich.console import Group
    from rich.text import Text

    splits = report["source"]["splits"]
    if len(splits) > 1:
        images = ", ".join(f"{n} {split}" for split, n in report["images"].items()) + " images"
    else:
        images = counted(sum(report["images"].values()), "image")
    if report["bad"]:
        images += f"; not counted: {counted(len(report['bad']), 'unusable file')}"
    head = [
        f"{display_name(report['source']['name'], 200)} ({report['source']['kind']}): "
        f"{counted(len(report['classes']), 'class', 'classes')}, {images}",
        f"imbalance factor {report['imbalance_factor']:.1f}; normalised entropy {report['normalised_entropy']:.3f} "
        f"(1 = balanced); groups: {report['group_rule']}",
    ]
    tail = [*_sizes(report), *_bad(report), *_duplicates(report), *_labels(report["labels"])]
    tail += [f"note: {note}" for note in report["warnings"]]
    return Group(*[Text(line) for line in head], _class_table(report), *[Text(line) for line in tail])


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
    hidden = max(0, len(classes) - SHOWN_CLASSES)
    for i, row in enumerate(classes):
        if hidden and i == SHOWN_CLASSES - SHOWN_ROWS:
            table.add_row(Text(f"... {counted(hidden, 'more class', 'more classes')}"), *[""] * (len(columns) + 1))
        if hidden and SHOWN_CLASSES - SHOWN_ROWS <= i < len(classes) - SHOWN_ROWS:
            continue
        numbers = [str(row["counts"][s]) for s in splits]
        numbers += [f"{100 * row['share']:.3g} %", f"{row['effective']['0.999']:.1f}"]
        # Text, not str: rich would read markup in a class called "[red]"
        table.add_row(Text(display_name(row["name"], 40)), row["group"], *numbers)
    return table


def _sizes(report: dict[str, Any]) -> list[str]:
    if not report["sizes"]:
        return []
    lines = [
        "sizes (height x width): "
        + _capped([f"{h} x {w} ({n})" for h, w, n in report["sizes"]], ", ")
        + f"; {'grey' if report['channels'] == 1 else 'colour'}; modes "
        + ", ".join(f"{mode} ({n})" for mode, n in sorted(report["modes"].items())),
    ]
    if report["suggested_size"]:
        height, width = report["suggested_size"]
        lines.append(
            f"suggested size: {height} x {width} ({report['size_reason']}); larger sizes cost time in proportion to "
            f"the pixels: {2 * height} x {2 * width} takes 4 times as long"
        )
    return lines


def _bad(report: dict[str, Any]) -> list[str]:
    if not report["bad"]:
        return []
    rows = [f"{display_name(name, 120)}: {display_name(why, 200)}" for name, why in sorted(report["bad"].items())]
    return [f"{counted(len(rows), 'unusable file')}:\n  " + _capped(rows, "\n  ")]


def _duplicates(report: dict[str, Any]) -> list[str]:
    lines = []
    for kind, where in (("within", "within a split"), ("across", "across splits")):
        rows = [_equal(found) for found in report["duplicates"][kind]]
        if rows:
            lines.append(f"{counted(len(rows), 'group')} of exact duplicates {where}:\n  " + _capped(rows, "\n  "))
    for row in (*report["near_duplicates_within"], *report["near_duplicates"]):
        if not row["near"]:
            continue
        alike = [f"{display_name(a, 120)} ~ {display_name(b, 120)} ({ratio:.2f})" for a, b, ratio in row["pairs"]]
        alike += ["..."] * (row["near"] - len(alike))
        part = "" if row["looked_up"] == row["total"] else f" (looked up: {row['looked_up']:,} of {row['total']:,})"
        if row["first"] == row["second"]:
            what = f"{counted(row['near'], 'pair')} of near duplicates inside {row['first']}"
        else:
            what = f"{counted(row['near'], 'near duplicate')} of {row['first']} in {row['second']}"
        part += "" if row["beyond_chance"] else ", no more than chance may give"
        lines.append(f"{what}{part}, the most alike first:\n  " + _capped(alike, "\n  "))
    return lines


def _equal(names: list[str]) -> str:
    more = f" = and {len(names) - 4} more" if len(names) > 4 else ""
    return " = ".join(display_name(name, 120) for name in names[:4]) + more


def _labels(labels: dict[str, Any]) -> list[str]:
    lines = []
    names = [f"{', '.join(display_name(n, 60) for n in row['names'][:6])}: {row['why']}" for row in labels["names"]]
    if names:
        lines.append("class names to look at:\n  " + _capped(names, "\n  "))
    for kind, what, sign in (("duplicates", "exact copies", " = "), ("near_duplicates", "near duplicates", " ~ ")):
        rows = [
            sign.join(f"{display_name(image, 120)} [{display_name(name, 30)}]" for image, name in one_of_each(row)[:4])
            for row in labels[kind]
        ]
        if rows:
            lines.append(f"{what} with different labels ({len(rows)}):\n  " + _capped(rows, "\n  "))
    if labels["single"]:
        single = _capped([display_name(name, 40) for name in labels["single"]], ", ")
        lines.append(f"{counted(len(labels['single']), 'class', 'classes')} of a single image: {single}")
    found = labels["suspicious"]
    rows = [
        f"{display_name(row['image'], 120)} [{display_name(row['label'], 30)}]: {row['votes']} of its {found['k']} "
        f"nearest are {display_name(row['other'], 30)}"
        for row in found["images"]
    ]
    if rows:
        rows += ["..."] * (found["found"] - len(rows))
        looked = f"{found['looked_up']:,} of {found['total']:,} images looked up"
        head = f"labels to look at, not necessarily wrong ({found['found']}; {looked}), the most suspicious first"
        lines.append(f"{head}:\n  " + _capped(rows, "\n  "))
    if found["not_judged"] and found["looked_up"]:
        some = counted(len(found["not_judged"]), "class", "classes")
        lines.append(
            f"labels of {some} cannot be judged by neighbours: too few images, or in small they look like other classes"
        )
    return lines


def one_of_each(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(id, class) of the first image of every class: of many copies most may agree."""
    first: dict[str, str] = {}
    for image, name in zip(row["images"], row["classes"], strict=True):
        first.setdefault(name, image)
    return [(image, name) for name, image in first.items()]


def _capped(rows: list[str], separator: str) -> str:
    more = len(rows) - SHOWN_ROWS
    return separator.join(rows[:SHOWN_ROWS]) + (f"{separator}... and {more} more" if more > 0 else "")
