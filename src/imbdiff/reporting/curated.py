"""The section on curation: what was asked of images, how many met it, and what kept and dropped ones look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted
from imbdiff.reporting.content import ReportData, spread
from imbdiff.reporting.sprites import Sprite, pack, page_size
from imbdiff.reporting.strips import MAX_COLUMNS, Tile
from imbdiff.reporting.text import clean, number, shorten
from imbdiff.runtime.streams import rng

RAREST = 8
OTHERS = 4
MAX_ROWS = 100
MAX_WARNINGS = 5
BYTES_PER_CLASS = 100_000  # of raw pixels
HEADS = {
    "exact copy": "exact copies",
    "near copy": "near copies",
    "other class": "look like another class",
    "low probability": "not probable enough",
    "out": "too far off",
    "approximate": "not near enough",
    "in-distribution": "too near",
    "surplus": "not needed",
}
"""Heads of the columns of reasons; those that occur are shown."""


@dataclass(frozen=True)
class Row:
    """A scope or a class with its printed cells."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Dropped:
    """A dropped image with the reason and the score that it was dropped for."""

    tile: Tile
    reason: str
    score: str


@dataclass(frozen=True)
class Strip:
    """One class; width and height of a tile in CSS pixels, scale in CSS pixels per image pixel."""

    name: str
    group: str
    said: str
    sprite: Sprite
    width: int
    height: int
    scale: int
    kept: tuple[Tile, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class Section:
    """What the template shows."""

    headline: str
    words: str
    warnings: tuple[str, ...]
    heads: tuple[str, ...]
    scopes: tuple[Row, ...]
    classes: tuple[Row, ...]
    left_out: int
    strips: tuple[Strip, ...]
    rarest: int
    others: int
    not_shown: int
    tiles: int
    explained: str


def section(data: ReportData, rarest: int = RAREST, others: int = OTHERS) -> Section | None:
    """The section of `ReportData.curated`; None where nothing was curated.

    Caps: pictures of the `rarest` classes and of `others`, at most 8 kept and 8 dropped images of each; 100 classes in
    the table, rarest first; 5 warnings.
    """
    found = data.curated
    if not found:
        return None
    counts, rows = found["counts"], found["images"]
    labels = np.array([row["label"] for row in rows], dtype=np.int64)
    tally = Counter((row["label"], row["reason"]) for row in rows)
    heads = [reason for reason in HEADS if any(r == reason for _, r in tally)]
    drawn = [k for k in reversed(data.by_size) if counts["candidates"][k]]

    def cells(classes: Sequence[int]) -> tuple[str, ...]:
        wanted, candidates, kept = (sum(counts[name][k] for k in classes) for name in ("wanted", "candidates", "kept"))
        short = sum(max(0, counts["wanted"][k] - counts["kept"][k]) for k in classes)
        why = [sum(tally[k, reason] for k in classes) for reason in heads]
        return tuple(number(n) for n in (wanted, candidates, kept, short, *why))

    everything = range(data.stats.num_classes)
    scopes = [Row("all", cells(everything))]
    scopes += [Row(clean(name), cells(data.groups.classes(name))) for name in data.groups.present]
    warnings = [shorten(w, 600) for w in found.get("warnings") or ()]
    shown = [*drawn[:rarest], *spread(drawn[rarest:], others)]
    candidates: ImageSet | None = found.get("candidates")
    limit = _columns(candidates)
    strips = [] if candidates is None else [_strip(data, candidates, rows, labels, k, limit) for k in shown]
    return Section(
        headline=_headline(counts, scopes[0].cells[3]),
        words=clean(found["words"]),
        warnings=tuple(warnings[:MAX_WARNINGS]),
        heads=tuple(HEADS[reason] for reason in heads),
        scopes=tuple(scopes),
        classes=tuple(Row(clean(data.stats.names[k]), cells([k])) for k in drawn[:MAX_ROWS]),
        left_out=max(0, len(drawn) - MAX_ROWS),
        strips=tuple(strips),
        rarest=min(rarest, len(shown)),
        others=max(0, len(shown) - rarest),
        not_shown=len(drawn) - len(shown),
        tiles=limit,
        explained=_explained(found, _has_copies(data)),
    )


def _has_copies(data: ReportData) -> bool:
    """Whether the page has the section on copies."""
    return bool((data.nearest or (data.metrics or {}).get("memorisation") or {}).get("summary"))


def _headline(counts: Mapping[str, Sequence[int]], short: str) -> str:
    kept, wanted = sum(counts["kept"]), sum(counts["wanted"])
    text = f"{kept:,} of {sum(counts['candidates']):,} images drawn are kept; {wanted:,} were wanted"
    missing = [k for k, n in enumerate(counts["wanted"]) if n > counts["kept"][k]]
    if not missing:
        return text + "."
    return f"{text}: {short} are missing, in {counted(len(missing), 'class', 'classes')}, and were not filled up."


def _columns(images: ImageSet | None) -> int:
    if images is None:
        return 0
    h, w = page_size(images.shape)
    return int(np.clip(BYTES_PER_CLASS // (2 * h * w * images.shape[-1]), 3, MAX_COLUMNS))


def _strip(
    data: ReportData, images: ImageSet, rows: Sequence[Mapping[str, Any]], labels: np.ndarray, k: int, limit: int
) -> Strip:
    pictures: list[np.ndarray] = []
    diverse = _diverse(data.curated or {})

    def tile(i: int, what: str) -> Tile:
        pictures.append(images.images[i])
        title = f"{what}: {images.ids[i]}"
        return Tile((len(pictures) - 1) % MAX_COLUMNS, (len(pictures) - 1) // MAX_COLUMNS, clean(title))

    order = rng(0, "report", "curated", k).permutation(np.flatnonzero(labels == k)).tolist()
    kept = sorted([i for i in order if rows[i]["kept"]][:limit])
    out = _in_turn([i for i in order if not rows[i]["kept"]], rows)[:limit]
    kept_tiles = tuple(tile(i, "kept") for i in kept)
    dropped = []
    for i in out:
        reason, score = _why(rows[i], data.stats.names, diverse)
        dropped.append(Dropped(tile(i, f"dropped, {reason}"), reason, score))
    h, w = page_size(images.shape)
    scale = max(1, round(48 / max(h, w)))
    n, m = int((labels == k).sum()), sum(bool(rows[i]["kept"]) for i in order)
    return Strip(
        name=clean(data.stats.names[k]),
        group=clean(data.groups.names[data.groups.of_class[k]]),
        said=f"{number(data.stats.counts[k])} real · kept {m:,} of {n:,}",
        sprite=pack(pictures, MAX_COLUMNS),
        width=w * scale,
        height=h * scale,
        scale=scale,
        kept=kept_tiles,
        dropped=tuple(dropped),
    )


def _in_turn(order: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The first of every reason before the second of any; what was merely not needed comes last."""
    seen: Counter[str] = Counter()
    turn = {}
    for i in order:
        turn[i] = seen[rows[i]["reason"]]
        seen[rows[i]["reason"]] += 1
    return sorted(order, key=lambda i: (rows[i]["reason"] == "surplus", turn[i]))


def _diverse(found: Mapping[str, Any]) -> bool:
    return "diverse" in str(found.get("policy", "")).split("+")


def _why(row: Mapping[str, Any], names: Sequence[str], diverse: bool) -> tuple[str, str]:
    """(reason, score) in words; the score is what decided."""
    reason = row["reason"]
    probability, ratio = f"p {number(row.get('probability'), 2)}", f"ratio {number(row.get('ratio'), 2)}"
    if reason == "other class":
        return f"looks like {shorten(names[row['predicted']], 20)}", probability
    if reason == "low probability":
        return "not probable enough", probability
    if reason == "near copy":
        return "near copy", f"copy ratio {number(row.get('copy_ratio'), 2)}"
    if reason == "exact copy":
        return "exact copy", "equals a training image"
    if reason == "surplus" and diverse:
        return "not needed", f"apart {number(row.get('apart'), 2)}" if "apart" in row else ""
    said = {"out": "too far off", "approximate": "not near enough", "in-distribution": "too near"}
    return said.get(reason, "not needed"), ratio if "ratio" in row else ""


def _explained(found: Mapping[str, Any], copies: bool) -> str:
    """`copies`: the page has the section on copies."""
    classifier, zones = found.get("classifier"), found.get("zones")
    if not classifier:
        return "No classifier looked at the images."
    text = (
        f"Scores are by {clean(classifier['name'])}, trained on {clean(classifier['trained_on'])}; it decides "
        f"{clean(classifier['decides'])}. It judges nothing on this page. p: its probability of the class asked for. "
    )
    if zones:
        text += (
            "Ratio: distance to the nearest real image of the class over what is usual among these (standardised "
            f"features); in distribution up to {number(zones['in-distribution'], 2)}, approximately so up to "
            f"{number(zones['out'], 2)}, out above. "
        )
    if found.get("copy_limit") is not None:
        where = " (see the section on copies)" if copies else ""
        text += f"Near copy: copy ratio below {number(found['copy_limit'], 2)}{where}. "
    if _diverse(found):
        text += (
            "Apart: distance to the nearest kept image of the class (standardised features); the images are kept that "
            "lie farthest from the real ones and from each other. "
        )
    return text + "Neither validation nor test images were looked at."
