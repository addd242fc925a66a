"""The section on copies: what the numbers of memorisation say, in words, tables and the closest pairs as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.reporting.content import ReportData
from imbdiff.reporting.sprites import Sprite, pack, page_size
from imbdiff.reporting.strips import Tile
from imbdiff.reporting.text import NOTHING, clean, number, shorten

MAX_CLASSES = 100
MAX_PAIRS = 24
MAX_WARNINGS = 10
BYTES = 300_000  # of raw pixels of the pairs' pictures
COLUMNS = 12  # of their sprite
PER_CLASS = 4  # as `memorisation_report` keeps them


@dataclass(frozen=True)
class Row:
    """A scope or a class with its printed cells."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Closest:
    """A synthetic image beside its training image."""

    synthetic: Tile
    training: Tile
    name: str
    said: str
    near_copy: bool


@dataclass(frozen=True)
class Section:
    """What the template shows; width and height of a tile in CSS pixels, scale in CSS pixels per image pixel."""

    alarm: bool
    headline: str
    warnings: tuple[str, ...]
    scopes: tuple[Row, ...]
    in_features: str
    classes: tuple[Row, ...]
    left_out: int
    pairs: tuple[Closest, ...]
    per_class: int
    sprite: Sprite | None
    width: int
    height: int
    scale: int
    explained: str


def section(data: ReportData, found: Mapping[str, Any] | None) -> Section | None:
    """The section of `memorisation_report(...)`; None if there is none. Caps: 100 classes, 24 pairs, 10 warnings."""
    if not found or not found.get("summary"):
        return None
    said = [clean(w) for w in found.get("warnings") or ()]
    more = [f"and {len(said) - MAX_WARNINGS} more warnings in metrics.json"] if len(said) > MAX_WARNINGS else []
    rows = list(found.get("classes") or ())
    shown = _chosen(rows)
    h, w = page_size(data.train.shape) if data.train is not None else (1, 1)
    scale = max(1, round(48 / max(h, w)))
    pairs, sprite = _pairs(data, found.get("pairs") or ())
    return Section(
        alarm=bool(said),
        headline=_headline(found["summary"][0], said),
        warnings=(*said[:MAX_WARNINGS], *more),
        scopes=tuple(Row(clean(r.get("scope", "all")), _cells(r, other=True)) for r in found["summary"]),
        in_features=_in_features(found.get("features")),
        classes=tuple(
            Row(clean(r["class"]), (number(r.get("n_train")), *_cells(r)))
            for r in shown
        ),
        left_out=len(rows) - len(shown),
        pairs=pairs,
        per_class=PER_CLASS,
        sprite=sprite,
        width=w * scale,
        height=h * scale,
        scale=scale,
        explained=_explained(found),
    )  # fmt: skip


def _chosen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most 100 classes with synthetic images, rarest first; where some are left out, clear copying is not."""
    made = sorted((r for r in rows if r.get("n_synthetic")), key=lambda r: (r.get("n_train") or 0, r["label"]))
    if len(made) <= MAX_CLASSES:
        return made
    worst = sorted(made, key=lambda r: -(r.get("near_copy_low") or 0.0))
    kept = {r["label"] for r in worst[: MAX_CLASSES // 2] if (r.get("near_copy_low") or 0) > 0.01}
    for r in made:
        if len(kept) == MAX_CLASSES:
            break
        kept.add(r["label"])
    return [r for r in made if r["label"] in kept]


def _headline(row: Mapping[str, Any], said: Sequence[str]) -> str:
    share, held = _percent(row.get("near_copy_share")), _percent(row.get("held_out_near_copy_share"))
    numbers = f"{share} of {number(row.get('n_synthetic'))} synthetic images are near copies of training images"
    if row.get("held_out_near_copy_share") is None:
        against = "no real images were held out to compare with"
    else:
        against = f"{held} of {number(row.get('n_held_out'))} held-out real images are"
    if said:
        return f"Copied training images: {numbers}; {against}."
    return f"No class stands out: {numbers}; {against}."


def _cells(row: Mapping[str, Any], other: bool = False) -> tuple[str, ...]:
    cells = [
        number(row.get("n_synthetic")),
        _percent(row.get("near_copy_share"), row.get("near_copy_low"), row.get("near_copy_high")),
        _held(row),
        number(row.get("exact_copies")),
        _interval(row),
        number(row.get("median_synthetic")),
        number(row.get("median_held_out")),
    ]
    return (*cells, _percent(row.get("other_class_nearest"))) if other else tuple(cells)


def _held(row: Mapping[str, Any]) -> str:
    share = row.get("held_out_near_copy_share")
    return NOTHING if share is None else f"{_percent(share)} of {number(row.get('n_held_out'))}"


def _interval(row: Mapping[str, Any]) -> str:
    if row.get("closeness") is None:
        return NOTHING
    if row.get("closeness_low") is None:
        return number(row["closeness"], 2)
    return f"{number(row['closeness'], 2)} [{number(row['closeness_low'], 2)}, {number(row['closeness_high'], 2)}]"


def _percent(value: Any, low: Any = None, high: Any = None) -> str:
    if value is None:
        return NOTHING
    text = _share(value)
    return text if low is None else f"{text} [{_share(low, '')}, {_share(high, '')}]"


def _share(value: float, unit: str = " %") -> str:
    x = 100 * float(value)
    return (f"{x:.0f}" if x >= 10 or x in (0.0, 100.0) else f"{x:.1f}") + unit


def _in_features(found: Mapping[str, Any] | None) -> str:
    if not found or not found.get("summary"):
        return ""
    row = found["summary"][0]
    text = (
        f"In the feature space of {clean(found.get('extractor') or 'the extractor')}: near copies "
        f"{_percent(row.get('near_copy_share'), row.get('near_copy_low'), row.get('near_copy_high'))}, of held-out "
        f"real images {_held(row)}; closeness {_interval(row)}."
    )
    said = [clean(w) for w in found.get("warnings") or ()]
    if said:
        text += " Warned of in that space: " + "; ".join(said[:3]) + ("; ..." if len(said) > 3 else "") + "."
    return text


def _pairs(data: ReportData, rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[Closest, ...], Sprite | None]:
    train, synthetic = data.train, data.synthetic
    if train is None or synthetic is None or train.shape != synthetic.shape:
        return (), None
    h, w = page_size(train.shape)
    limit = int(np.clip(BYTES // (2 * h * w * train.shape[-1]), 6, MAX_PAIRS))
    rows = [r for r in rows if 0 <= r["synthetic"] < len(synthetic) and 0 <= r["train"] < len(train)]
    seen: Counter[int] = Counter()
    turn = []
    for row in rows:
        turn.append(seen[row["label"]])
        seen[row["label"]] += 1
    # copies first, and of these the first of every class before the second of any
    order = sorted(range(len(rows)), key=lambda i: (not rows[i].get("near_copy"), turn[i], i))
    rows = [rows[i] for i in order[:limit]]
    images: list[np.ndarray] = []

    def tile(image: np.ndarray, title: str) -> Tile:
        images.append(image)
        return Tile((len(images) - 1) % COLUMNS, (len(images) - 1) // COLUMNS, clean(title))

    pairs = []
    for row in rows:
        i, j = int(row["synthetic"]), int(row["train"])
        name = clean(synthetic.class_names[int(synthetic.labels[i])])
        other = clean(train.class_names[int(train.labels[j])])
        said = "exact copy" if row.get("exact") else f"distance {number(row.get('distance'))}"
        said += ", mirrored" if row.get("mirrored") else ""
        said += f", of class {shorten(other, 24)}" if train.labels[j] != synthetic.labels[i] else ""
        head = tile(synthetic.images[i], f"synthetic: {synthetic.ids[i]}, class {name}")
        foot = tile(train.images[j], f"training image: {train.ids[j]}, class {other}, {said}")
        pairs.append(Closest(head, foot, shorten(name, 24), said, bool(row.get("near_copy"))))
    return tuple(pairs), pack(images, COLUMNS) if images else None


def _explained(found: Mapping[str, Any]) -> str:
    looked = (
        f"Looked up were {number(found.get('n'))} of {number(found.get('n_synthetic'))} synthetic images. "
        if found.get("n") != found.get("n_synthetic")
        else ""
    )
    if found.get("limit") is None:
        near = "There are too few different training images to say what a near copy is: only exact copies count. "
    else:
        near = (
            "Near copy: as a small picture (8 × 8 blocks, equal brightness and contrast, mirrored or not) its distance "
            f"to the nearest training image is below {number(found['limit'], 2)} of the mean distance to the next of "
            f"its {number(found.get('neighbours'))} nearest. Of real images that nobody copied about 1 % or less are "
            "below, unless the data hold duplicates: hence the column of held-out images. "
        )
    return (
        f"{looked}{near}Closeness: probability that a synthetic image is nearer to a training image of its class than "
        "a held-out real image is; 0.5: as new as real ones, 1: copies. Distances are medians to the nearest training "
        f"image of the same class ({clean(found.get('space') or 'pixels')}). Intervals: 95 %, over the draw of images; "
        "the training images are taken as given."
    )
