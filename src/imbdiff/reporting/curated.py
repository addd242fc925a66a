"""The section on curation: how many images met the conditions, and kept and dropped ones as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imbdiff.data.names import counted
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.pictures import COLUMNS, in_turn, spread
from imbdiff.reporting.text import number, shorten
from imbdiff.runtime.streams import rng

RAREST, OTHERS = 8, 4
MAX_ROWS = 100
MAX_WARNINGS = 5
REASONS = {
    "exact copy": ("exact copies", ""),
    "near copy": ("near copies", "copy_ratio"),
    "other class": ("look like another class", "probability"),
    "low probability": ("not probable enough", "probability"),
    "out": ("too far off", "ratio"),
    "approximate": ("not near enough", "ratio"),
    "in-distribution": ("too near", "ratio"),
    "surplus": ("not needed", "ratio"),
}
"""Why images are dropped: the head of its column, and the score that decided."""

Found = Mapping[str, Any]


def curation(data: ReportData) -> ui.Section | None:
    """The section of `ReportData.curated`; None where nothing was curated.

    Caps: pictures of the 8 rarest classes and of 4 others, at most 6 kept and 6 dropped images of each; 100 classes in
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
        wanted, candidates, kept = (sum(counts[key][k] for k in classes) for key in ("wanted", "candidates", "kept"))
        missing = sum(max(0, counts["wanted"][k] - counts["kept"][k]) for k in classes)
        dropped = [sum(tally[k, reason] for k in classes) for reason in reasons]
        return [number(n) for n in (wanted, candidates, kept, missing, *dropped)]

    whole = cells(range(data.stats.num_classes))
    short = sum(wanted > kept for wanted, kept in zip(counts["wanted"], counts["kept"], strict=True))
    text = f"{whole[2]} of {whole[1]} images sampled are kept; {whole[0]} were wanted"
    if short:
        text += f": {whole[3]} are missing, in {counted(short, 'class', 'classes')}, and were not filled up"
    heads = [
        ui.Column(one) for one in ("wanted", "candidates", "kept", "missing", *(REASONS[r][0] for r in reasons))
    ]  # fmt: skip
    scopes = [["all", *whole], *([group, *cells(data.groups.classes(group))] for group in data.groups.present)]
    table = [[ui.name(data.stats.names[k]), *cells([k])] for k in sampled[:MAX_ROWS]]
    left = ui.of_all(len(table), len(sampled))
    shown = [*sampled[:RAREST], *spread(sampled[RAREST:], OTHERS)]
    chosen = "All classes that images were sampled for, rarest first."
    if len(shown) < len(sampled):
        chosen = f"The {RAREST} rarest classes that images were sampled for, and {OTHERS} of the others."
    blocks: list[ui.Block] = [
        ui.Text(f"{text}. {found['words']}"),
        ui.Items([shorten(warning, 600) for warning in found["warnings"][:MAX_WARNINGS]]),
        ui.Table(["scope", *heads], scopes),
        ui.Fold(f"By class, rare classes first{left}", [ui.Table(["class", *heads], table)]),
        ui.heading("Kept and dropped images"),
        ui.note(f"{chosen} Images are chosen at random with a fixed seed; dropped ones: every reason in turn."),
        *(_shelf(data, found, k) for k in shown),
        ui.note(_explained(found)),
    ]
    return ui.Section("curation", "Which images were kept", blocks, "Curation")


def _shelf(data: ReportData, found: Found, k: int) -> ui.Shelf:
    images, rows = found["candidates"], found["images"]
    labels = np.array([row["label"] for row in rows], dtype=np.int64)
    order = rng(0, "report", "curated", k).permutation(np.flatnonzero(labels == k)).tolist()
    kept = [i for i in order if rows[i]["kept"]]
    dropped = []
    for i in in_turn([i for i in order if not rows[i]["kept"]], lambda i: rows[i]["reason"])[:COLUMNS]:
        lines = [line for line in why(rows[i], data.stats.names, _is_diverse(found)) if line]
        picture = ui.Picture(images.images[i], f"dropped, {lines[0]}: {images.ids[i]}")
        dropped.append(ui.Group([picture], lines))
    own = [ui.Group([ui.Picture(images.images[i], f"kept: {images.ids[i]}")]) for i in sorted(kept[:COLUMNS])]
    counts = f"{number(data.stats.counts[k])} real · kept {len(kept):,} of {len(order):,}"
    sets = [ui.PictureSet(own, "kept", "real"), ui.PictureSet(dropped, "dropped", "synthetic")]
    return ui.Shelf(sets, data.stats.names[k], f"{data.group(k)} · {counts}")


def _is_diverse(found: Found) -> bool:
    return "diverse" in found["policy"].split("+")


def why(row: Found, names: Sequence[str], diverse: bool) -> tuple[str, str]:
    """The reason, and the score that decided."""
    reason = row["reason"]
    text, score = REASONS[reason]
    if reason == "other class":
        text = f"looks like {shorten(names[row['predicted']], 20)}"
    elif "copy" in reason:
        text = reason
    score = "apart" if reason == "surplus" and diverse else score
    known = row.get(score) is not None
    return text, f"{score.replace('_', ' ')} {number(row[score], 2)}" if known else ""


def _explained(found: Found) -> str:
    classifier, zones = found["classifier"], found["zones"]
    if not classifier:
        return "Images were kept without a classifier."
    text = (
        f"Scores are by {classifier['name']}, trained on {classifier['trained_on']}; it decides "
        f"{classifier['decides']}, and judges nothing on this page. Probability: of the class asked for."
    )
    if zones:
        text += (
            " Ratio: distance to the nearest real image of the class over what is usual among these; in distribution "
            f"up to {number(zones['in-distribution'], 2)}, approximately so up to {number(zones['out'], 2)}."
        )
    if found["copy_limit"] is not None:
        text += f" Near copy: copy ratio below {number(found['copy_limit'], 2)}."
    apart = " Apart: distance to the nearest kept image of the class." if _is_diverse(found) else ""
    return f"{text}{apart} Neither validation nor test images were used."
