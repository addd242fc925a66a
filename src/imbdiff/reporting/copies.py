"""The section on copies: what the numbers of memorisation say, in words, tables and the closest pairs as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from imbdiff.reporting import blocks as ui
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.pictures import fitting
from imbdiff.reporting.text import NOTHING, number, shorten

MAX_CLASSES = 100
MAX_PAIRS = 24
MAX_WARNINGS = 10
BYTES_PER_PAIR = 150_000  # of raw pixels of all left pictures
PER_CLASS = 4  # as `memorisation_report` keeps them
COLUMNS = (
    "synthetic",
    "near copies",
    "of held-out real",
    "exact copies",
    "closeness",
    "median distance",
    "of held-out",
)

Found = Mapping[str, Any]


def copies(data: ReportData) -> ui.Section | None:
    """The section of `memorisation_report(...)`; None if there is none. Caps: 100 classes, 24 pairs, 10 warnings."""
    found = data.memorisation
    if found is None:
        return None
    blocks: list[ui.Block] = [ui.Text(headline(found), "alert" if found.get("warnings") else "")]
    warnings = list(found.get("warnings") or ())
    if warnings:
        more = len(warnings) - MAX_WARNINGS
        shown = warnings[:MAX_WARNINGS] + [f"and {more} more warnings in metrics.json"] * (more > 0)
        blocks.append(ui.Items(shown))
    columns = [ui.Column(text) for text in COLUMNS]
    rows = [
        [row.get("scope", "all"), *_cells(row), _percent(row.get("other_class_nearest"))] for row in found["summary"]
    ]
    blocks.append(ui.Table(["scope", *columns, ui.Column("nearest is of another class")], rows))
    if text := _in_features(found.get("features")):
        blocks.append(ui.note(text))
    every = [row for row in found.get("classes") or () if row.get("n_synthetic")]
    if every:
        classes = chosen_classes(every)
        left = ui.of_all(len(classes), len(every))
        left = f"{left[:-1]}: those that are warned of, then the rarest)" if left else ""
        rows = [[ui.name(row["class"]), number(row.get("n_train")), *_cells(row)] for row in classes]
        table = ui.Table(["class", ui.Column("training images"), *columns], rows)
        blocks.append(ui.Fold(f"By class, rare classes first{left}", [table], len(classes) <= 12))
    pairs = closest_pairs(data, found.get("pairs") or ())
    if pairs:
        blocks += [
            ui.Heading("The closest pairs"),
            ui.note(
                "Left the synthetic image, right the training image nearest to it in looks; "
                f"{len(pairs)} of the closest, at most {PER_CLASS} of a class. They are the worst there are, picked to "
                "show copies if there are any. Framed: a near copy."
            ),
            ui.Images([ui.Shelf([ui.PictureSet(pairs)])]),
        ]
    return ui.Section("memorisation", "Are they copies?", [*blocks, ui.note(_explained(found))], "Copies")


def headline(found: Found) -> str:
    """How many near copies there are, against held-out real images."""
    row = found["summary"][0]
    share, held = _percent(row.get("near_copy_share")), _percent(row.get("held_out_near_copy_share"))
    numbers = f"{share} of {number(row.get('n_synthetic'))} synthetic images are near copies of training images"
    if row.get("held_out_near_copy_share") is None:
        against = "no real images were held out to compare with"
    else:
        against = f"{held} of {number(row.get('n_held_out'))} held-out real images are"
    lead = "Copied training images" if found.get("warnings") else "No class stands out"
    return f"{lead}: {numbers}; {against}."


def chosen_classes(rows: Sequence[Found]) -> list[Found]:
    """At most 100 classes, rarest first; where some are left out, those of clear copying are not."""
    made = sorted(rows, key=lambda r: (r.get("n_train") or 0, r["label"]))
    worst = sorted(made, key=lambda r: -(r.get("near_copy_low") or 0.0))[: MAX_CLASSES // 2]
    first = [r["label"] for r in worst if (r.get("near_copy_low") or 0) > 0.01]
    kept = set(list(dict.fromkeys([*first, *(r["label"] for r in made)]))[:MAX_CLASSES])
    return [r for r in made if r["label"] in kept]


def _cells(row: Found) -> list[str]:
    return [
        number(row.get("n_synthetic")),
        _percent(row.get("near_copy_share"), row.get("near_copy_low"), row.get("near_copy_high")),
        _held(row),
        number(row.get("exact_copies")),
        _closeness(row),
        number(row.get("median_synthetic")),
        number(row.get("median_held_out")),
    ]


def _held(row: Found) -> str:
    share = row.get("held_out_near_copy_share")
    return NOTHING if share is None else f"{_percent(share)} of {number(row.get('n_held_out'))}"


def _closeness(row: Found) -> str:
    text = number(row.get("closeness"), 2)
    if row.get("closeness") is None or row.get("closeness_low") is None:
        return text
    return f"{text} [{number(row['closeness_low'], 2)}, {number(row['closeness_high'], 2)}]"


def _percent(value: Any, low: Any = None, high: Any = None) -> str:
    def share(value: float, unit: str = "") -> str:
        x = 100 * float(value)
        return (f"{x:.0f}" if x >= 10 or x in (0.0, 100.0) else f"{x:.1f}") + unit

    if value is None:
        return NOTHING
    return share(value, " %") if low is None else f"{share(value, ' %')} [{share(low)}, {share(high)}]"


def _in_features(found: Found | None) -> str:
    if not found or not found.get("summary"):
        return ""
    row, warnings = found["summary"][0], list(found.get("warnings") or ())
    share = _percent(row.get("near_copy_share"), row.get("near_copy_low"), row.get("near_copy_high"))
    text = (
        f"In the feature space of {found.get('extractor') or 'the extractor'}: near copies {share}, of held-out "
        f"real images {_held(row)}; closeness {_closeness(row)}."
    )
    if warnings:
        text += " Warned of in that space: " + "; ".join(warnings[:3]) + ("; ..." if len(warnings) > 3 else "") + "."
    return text


def closest_pairs(data: ReportData, rows: Sequence[Found]) -> list[ui.Group]:
    """Copies first, and of these the first of every class before the second of any."""
    train, synthetic = data.train, data.synthetic
    if train is None or synthetic is None or train.shape != synthetic.shape:
        return []
    rows = [r for r in rows if 0 <= r["synthetic"] < len(synthetic) and 0 <= r["train"] < len(train)]
    seen: Counter[int] = Counter()
    ranked = []
    for i, row in enumerate(rows):
        ranked.append((not row.get("near_copy"), seen[row["label"]], i))
        seen[row["label"]] += 1
    groups = []
    for _, _, at in sorted(ranked)[: fitting(train.shape, BYTES_PER_PAIR, 6, MAX_PAIRS)]:
        row = rows[at]
        i, j = int(row["synthetic"]), int(row["train"])
        own, other = synthetic.class_names[int(synthetic.labels[i])], train.class_names[int(train.labels[j])]
        text = "exact copy" if row.get("exact") else f"distance {number(row.get('distance'))}"
        text += ", mirrored" if row.get("mirrored") else ""
        text += f", of class {shorten(other, 24)}" if train.labels[j] != synthetic.labels[i] else ""
        both = [
            ui.Picture(synthetic.images[i], f"synthetic: {synthetic.ids[i]}, class {own}"),
            ui.Picture(train.images[j], f"training image: {train.ids[j]}, class {other}, {text}"),
        ]
        groups.append(ui.Group(both, [shorten(own, 24), text], "copied" if row.get("near_copy") else ""))
    return groups


def _explained(found: Found) -> str:
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
        f"image of the same class ({found.get('space') or 'pixels'}). Intervals: 95 %, over the sampling of images; "
        "the training images are taken as given."
    )
