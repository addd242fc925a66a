"""What is in a source, before anything is done with it: classes, sizes, damage, duplicates, labels, symmetry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.decode import Size
from imbdiff.data.findings import alike, label_problems
from imbdiff.data.findings.class_names import name_problems
from imbdiff.data.findings.look import Look, look
from imbdiff.data.findings.size_advice import suggest_resize, suggest_size
from imbdiff.data.findings.symmetry import symmetry
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted, display_name
from imbdiff.data.source import BALANCED_WITHIN, Source
from imbdiff.data.sources import load
from imbdiff.data.splits import TINY
from imbdiff.data.stats import ClassStats, Groups

VERSION = 2
"""Of the report's layout; 1 was the one without the number."""
BETAS = (0.999, 0.9999)
NAMED = 10
NEARLY_SQUARE = 1.1


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

        * version: 2. source: name, kind, splits.
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
          flat_images; suspicious, see `findings.label_problems.suspicious`, with ids and class names.
        * symmetry: see `findings.symmetry.symmetry`.
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
    copies = alike.copies(looks)
    searches = {split: alike.finder(images) for split, images in looks.items()}
    near, said = _across(looks, searches)
    inside, pairs = {}, {}
    for split, images in looks.items():
        inside[split], pairs[split] = alike.within(images, searches[split])
    search = searches["train"]
    votes = label_problems.suspicious(train, search.among if search else None, len(names))
    square = sum(n for (h, w), n in sizes.items() if max(h, w) <= NEARLY_SQUARE * min(h, w)) > sum(sizes.values()) / 2
    labels = {
        "names": [{"names": group, "why": reason} for group, reason in name_problems(names)],
        "duplicates": label_problems.conflicting(copies, names),
        "near_duplicates": _near_conflicts(train, pairs["train"], names),
        **label_problems.odd_classes(train, names),
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
        "symmetry": symmetry(train, len(names), square),
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
    looks: dict[str, Look], searches: dict[str, alike.CopyFinder | None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Images of the other splits that look like training images, and what to say about them."""
    rows, notes = [], []
    for split, images in looks.items():
        if split != "train" and len(images) and len(looks["train"]):
            row, found = alike.across(looks["train"], searches["train"], images)
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
    ][: alike.KEPT_PAIRS]


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
