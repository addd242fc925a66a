"""The section on copies: near copies among the synthetic images, by group and class, and the closest pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imbdiff.metrics.copies import LEAST
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.text import NOTHING, number, shorten

MAX_CLASSES = 100
MAX_PAIRS = 24
MAX_WARNINGS = 10
MAX_STRENGTHS = 12
COLUMNS = [
    ui.Column(text)
    for text in (
        "synthetic", "near copies", "of held-out real", "exact copies", "closeness", "median distance", "of held-out",
    )
]  # fmt: skip

Found = Mapping[str, Any]


def copies(data: ReportData) -> ui.Section | None:
    """The section of `memorisation_report(...)`; None if there is none. Caps: 100 classes, 24 pairs, 10 warnings, 12
    strengths."""
    found = data.memorisation
    if found is None:
        return None
    warnings = found["warnings"]
    blocks: list[ui.Block] = [ui.Text(headline(found), "alert" if beyond_held_out(found) else "")]
    more = len(warnings) - MAX_WARNINGS
    blocks.append(ui.Items(warnings[:MAX_WARNINGS] + [f"and {more} more warnings in metrics.json"] * (more > 0)))
    rows = [[row["scope"], *_cells(row), _percent(row["other_class_nearest"])] for row in found["summary"]]
    blocks.append(ui.Table(["scope", *COLUMNS, ui.Column("nearest is of another class")], rows))
    if found["features"]:
        row = found["features"]["summary"][0]
        blocks.append(ui.note(
            f"In the feature space of {found['features']['extractor']}: near copies {_share(row)}, of held-out real "
            f"images {_held(row)}; closeness {_closeness(row)}."))  # fmt: skip
    every = [row for row in found["classes"] if row["n_synthetic"]]
    if every:
        shown = sorted(every, key=lambda row: (row["n_train"], row["label"]))[:MAX_CLASSES]
        left = ui.of_all(len(shown), len(every), "classes")
        rows = [[ui.name(row["class"]), number(row["n_train"]), *_cells(row)] for row in shown]
        table = ui.Table(["class", ui.Column("training images"), *COLUMNS], rows)
        blocks.append(ui.Fold(f"By class, rare classes first{left}", [table], len(shown) <= 12))
    if found.get("sources"):
        blocks += _sources(data, found)
    pairs = closest_pairs(data, found["pairs"])
    if pairs:
        text = (
            "Left the synthetic image, right the training image that is most alike; of all pairs the closest, picked "
            "to show copies if there are any. Framed: a near copy."
        )
        blocks += [ui.heading("The closest pairs"), ui.note(text), ui.Shelf([ui.PictureSet(pairs)])]
    blocks.append(ui.note(
        f"Closeness: the chance that a synthetic image is nearer to the training images of its class than a held-out "
        f"real one: 0.5 as real images, 1 copies, but blurred images too; from {LEAST} images of the class on."
    ))  # fmt: skip
    rule = ui.Fold("How copies are found", [ui.note(f"{(data.metrics or {})['protocol']['memorisation']}.")])
    return ui.Section("memorisation", "Are they copies?", [*blocks, rule], "Copies")


def _sources(data: ReportData, found: Found) -> list[ui.Block]:
    """Images that began as real ones: how far from these they are, by strength."""
    held = found["summary"][0]
    every = found["sources"]["rows"]
    rows = every[:MAX_STRENGTHS]
    worst = max(rows, key=lambda row: row["near_copies"])
    text = (
        f"Of the images at strength {worst['strength']:g}, {_percent(worst['near_copies'])} are near copies of "
        "training images"
    )
    if many := worst["near_copies"] > (held["held_out_near_copy_share"] or 0.0):
        text += (
            ": they repeat what the training images show, and measures that compare with real images flatter them. "
            "A higher --sample.strength makes fewer, --curate.policy no-copies keeps none."
        )
    table = [
        [f"{row['strength']:g}", number(row["n"]), number(row["median_distance"]), _percent(row["nearest_is_source"]),
         _percent(row["near_copies"])]
        for row in rows
    ]  # fmt: skip
    heads = ("synthetic", "median distance to the source", "nearest is the source", "near copies")
    usual = number(held["median_held_out"])
    about = "Each image began as a real training image, its source, with noise up to the strength on it."
    about += "" if usual == NOTHING else f" Held-out real images are {usual} from the nearest training image."
    shelves = [
        ui.Shelf([ui.PictureSet(groups)], f"strength {row['strength']:g}")
        for row in rows
        if (groups := closest_pairs(data, [p for p in found["sources"]["pairs"] if p["strength"] == row["strength"]]))
    ]
    blocks: list[ui.Block] = [
        ui.heading("Images and their sources"),
        ui.Text(text if many else f"{text}.", "alert" if many else ""),
        ui.Table(["strength", *(ui.Column(head) for head in heads)], table),
        ui.note(f"{about}{ui.of_all(len(rows), len(every), 'strengths')}"),
    ]
    return [*blocks, ui.Fold("Synthetic images beside their sources", shelves, True)] if shelves else blocks


def beyond_held_out(found: Found) -> bool:
    """Whether more of the synthetic images are copies than of held-out real ones; without these, whether any class is
    warned of."""
    row = found["summary"][0]
    held = row["held_out_near_copy_share"]
    more = (row["near_copy_share"] or 0.0) > (held or 0.0) or row["exact_copies"] > 0
    return bool(found["warnings"]) and (held is None or more)


def headline(found: Found) -> str:
    """How many near copies there are, against held-out real images."""
    row = found["summary"][0]
    against = "no real images were held out to compare with"
    if row["held_out_near_copy_share"] is not None:
        against = f"{_held(row)} held-out real images are"
    share = _percent(row["near_copy_share"])
    shares = f"{share} of {number(row['n_synthetic'])} synthetic images are near copies; {against}"
    if beyond_held_out(found):
        return f"Copied training images: {shares}."
    if found["warnings"]:
        return f"No more copies over all classes than real images have: {shares}. Single classes stand out, see below."
    return f"No class stands out: {shares}."


def _cells(row: Found) -> list[str]:
    return [
        number(row["n_synthetic"]), _share(row), _held(row), number(row["exact_copies"]), _closeness(row),
        number(row["median_synthetic"]), number(row["median_held_out"]),
    ]  # fmt: skip


def _percent(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{100 * value:.0f} %" if value >= 0.1 or value == 0 else f"{100 * value:.1f} %"


def _share(row: Found) -> str:
    low, high = (_percent(row[key]).removesuffix(" %") for key in ("near_copy_low", "near_copy_high"))
    return NOTHING if row["near_copy_share"] is None else f"{_percent(row['near_copy_share'])} [{low}, {high}]"


def _held(row: Found) -> str:
    share = row["held_out_near_copy_share"]
    return NOTHING if share is None else f"{_percent(share)} of {number(row['n_held_out'])}"


def _closeness(row: Found) -> str:
    value, low, high = (row[key] for key in ("closeness", "closeness_low", "closeness_high"))
    return NOTHING if value is None else f"{value:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def closest_pairs(data: ReportData, rows: Sequence[Found]) -> list[ui.Group]:
    """The most alike first, as they come; none where the images are of different sizes."""
    train, synthetic = data.train, data.synthetic
    if train is None or synthetic is None or train.shape != synthetic.shape:
        return []
    groups = []
    for row in rows[:MAX_PAIRS]:
        i, j = row["synthetic"], row["train"]
        own, other = synthetic.class_names[synthetic.labels[i]], train.class_names[train.labels[j]]
        text = "exact copy" if row["exact"] else f"distance {number(row['distance'])}"
        text += ", mirrored" if row["mirrored"] else ""
        text += f", of class {shorten(other, 24)}" if other != own else ""
        both = [
            ui.Picture(synthetic.images[i], f"synthetic: {synthetic.ids[i]}, class {own}"),
            ui.Picture(train.images[j], f"training image: {train.ids[j]}, class {other}, {text}"),
        ]
        groups.append(ui.Group(both, [shorten(own, 24), text], "copied" if row["near_copy"] else ""))
    return groups
