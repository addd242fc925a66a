"""The section on curation: what was asked of images, how many met it, and what kept and dropped ones look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.pictures import fitting, spread
from imbdiff.reporting.text import number, shorten
from imbdiff.runtime.streams import rng

RAREST = 8
OTHERS = 4
MAX_ROWS = 100
MAX_WARNINGS = 5
MAX_COLUMNS = 8
BYTES_PER_KIND = 50_000  # of raw pixels of a class
REASONS = {
    "exact copy": "exact copies",
    "near copy": "near copies",
    "other class": "look like another class",
    "low probability": "not probable enough",
    "out": "too far off",
    "approximate": "not near enough",
    "in-distribution": "too near",
    "surplus": "not needed",
}
"""Why images are dropped, as heads of columns; those that occur are shown."""

Found = Mapping[str, Any]


def curation(data: ReportData, rarest: int = RAREST, others: int = OTHERS, heading: str = "") -> ui.Section | None:
    """The section of `ReportData.curated`; None where nothing was curated.

    Caps: pictures of the `rarest` classes and of `others`, at most 8 kept and 8 dropped images of each; 100 classes in
    the table, rarest first; 5 warnings.
    """
    found = data.curated
    if not found:
        return None
    counts, rows = found["counts"], found["images"]
    tally = Counter((row["label"], row["reason"]) for row in rows)
    reasons = [reason for reason in REASONS if any(r == reason for _, r in tally)]
    sampled = [k for k in reversed(data.by_size) if counts["candidates"][k]]

    def cells(classes: Sequence[int]) -> list[str]:
        numbers = [sum(counts[key][k] for k in classes) for key in ("wanted", "candidates", "kept")]
        numbers.append(sum(max(0, counts["wanted"][k] - counts["kept"][k]) for k in classes))
        return [number(n) for n in (*numbers, *(sum(tally[k, reason] for k in classes) for reason in reasons))]

    whole = cells(range(data.stats.num_classes))
    heads = [ui.Column(text) for text in ("wanted", "candidates", "kept", "missing", *(REASONS[r] for r in reasons))]
    scopes = [["all", *whole], *([group, *cells(data.groups.classes(group))] for group in data.groups.present)]
    table = [[ui.name(data.stats.names[k]), *cells([k])] for k in sampled[:MAX_ROWS]]
    blocks: list[ui.Block] = [
        ui.Text(f"{_headline(counts, whole[3])} {found['words']}"),
        ui.Items([shorten(w, 600) for w in (found.get("warnings") or ())[:MAX_WARNINGS]]),
        ui.Table(["scope", *heads], scopes),
        ui.Fold(
            f"By class, rare classes first{ui.of_all(len(table), len(sampled))}", [ui.Table(["class", *heads], table)]
        ),
    ]
    if found.get("candidates") is not None:
        blocks += _pictures(data, found["candidates"], rows, sampled, rarest, others)
    blocks.append(ui.note(_explained(found, data.memorisation is not None)))
    return ui.Section("curation", heading or "Which images were kept", blocks, "Curation")


def _headline(counts: Mapping[str, Sequence[int]], short: str) -> str:
    kept, wanted = sum(counts["kept"]), sum(counts["wanted"])
    text = f"{kept:,} of {sum(counts['candidates']):,} images sampled are kept; {wanted:,} were wanted"
    missing = [k for k, n in enumerate(counts["wanted"]) if n > counts["kept"][k]]
    if not missing:
        return text + "."
    return f"{text}: {short} are missing, in {counted(len(missing), 'class', 'classes')}, and were not filled up."


def _pictures(
    data: ReportData, images: ImageSet, rows: Sequence[Found], sampled: Sequence[int], rarest: int, others: int
) -> list[ui.Block]:
    shown = [*sampled[:rarest], *spread(sampled[rarest:], others)]
    limit = fitting(images.shape, BYTES_PER_KIND, 3, MAX_COLUMNS)
    which = "All classes that images were sampled for, rarest first."
    if len(shown) < len(sampled):
        n = max(0, len(shown) - rarest)
        spread_out = ", spread over the ranking by size" if n > 1 else ""
        rare = f"The {min(rarest, len(shown))} rarest classes that images were sampled for"
        which = f"{rare}, and {n} of the others{spread_out}."
    text = (
        f"{which} At most {limit} images of each kind, chosen at random with a fixed seed; of the dropped ones every "
        "reason in turn."
    )
    labels = np.array([row["label"] for row in rows], dtype=np.int64)
    shelves = [_shelf(data, images, rows, labels, k, limit) for k in shown]
    return [ui.Heading("Kept and dropped images"), ui.note(text), ui.Images(shelves)]


def _shelf(
    data: ReportData, images: ImageSet, rows: Sequence[Found], labels: np.ndarray, k: int, limit: int
) -> ui.Shelf:
    order = rng(0, "report", "curated", k).permutation(np.flatnonzero(labels == k)).tolist()
    kept = [i for i in order if rows[i]["kept"]]
    out = in_turn([i for i in order if not rows[i]["kept"]], rows)[:limit]
    diverse = _is_diverse(data.curated or {})
    dropped = []
    for i in out:
        reason, score = why(rows[i], data.stats.names, diverse)
        picture = ui.Picture(images.images[i], f"dropped, {reason}: {images.ids[i]}")
        dropped.append(ui.Group([picture], [line for line in (reason, score) if line]))
    own = [ui.Group([ui.Picture(images.images[i], f"kept: {images.ids[i]}")]) for i in sorted(kept[:limit])]
    real = f"{data.group(k)} · {number(data.stats.counts[k])} real"
    return ui.Shelf(
        [ui.PictureSet(own, "kept", kind="real"), ui.PictureSet(dropped, "dropped", kind="synthetic")],
        data.stats.names[k],
        f"{real} · kept {len(kept):,} of {len(order):,}",
    )


def in_turn(order: Sequence[int], rows: Sequence[Found]) -> list[int]:
    """The first of every reason before the second of any; what was merely not needed comes last."""
    seen: Counter[str] = Counter()
    turn = {}
    for i in order:
        turn[i] = seen[rows[i]["reason"]]
        seen[rows[i]["reason"]] += 1
    return sorted(order, key=lambda i: (rows[i]["reason"] == "surplus", turn[i]))


def _is_diverse(found: Found) -> bool:
    return "diverse" in str(found.get("policy", "")).split("+")


def why(row: Found, names: Sequence[str], diverse: bool) -> tuple[str, str]:
    """(reason, score) in words; the score is what decided."""
    reason = row["reason"]
    probability = f"p {number(row.get('probability'), 2)}"
    ratio = f"ratio {number(row['ratio'], 2)}" if "ratio" in row else ""
    apart = f"apart {number(row['apart'], 2)}" if "apart" in row else ""
    said = {
        "low probability": ("not probable enough", probability),
        "near copy": ("near copy", f"copy ratio {number(row.get('copy_ratio'), 2)}"),
        "exact copy": ("exact copy", "equals a training image"),
        "out": ("too far off", ratio),
        "approximate": ("not near enough", ratio),
        "in-distribution": ("too near", ratio),
    }
    if reason == "other class":
        return f"looks like {shorten(names[row['predicted']], 20)}", probability
    return said.get(reason, ("not needed", apart if diverse else ratio))


def _explained(found: Found, copies: bool) -> str:
    """`copies`: the page has the section on copies."""
    classifier, zones = found.get("classifier"), found.get("zones")
    if not classifier:
        return "No classifier looked at the images."
    text = (
        f"Scores are by {classifier['name']}, trained on {classifier['trained_on']}; it decides "
        f"{classifier['decides']}. It judges nothing on this page. p: its probability of the class asked for. "
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
    if _is_diverse(found):
        text += (
            "Apart: distance to the nearest kept image of the class (standardised features); the images are kept that "
            "are farthest from the real ones and from each other. "
        )
    return text + "Neither validation nor test images were looked at."
