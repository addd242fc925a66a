"""The section on curation: counts that add up, reasons with their scores, caps, and names that are data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.curated import MAX_ROWS, OTHERS, RAREST, section
from imbdiff.reporting.report import build_report, environment
from imbdiff.runtime.streams import rng
from tests.reporting import fake

HOSTILE = "<script>alert(1)</script>"
REASONS = ("kept", "other class", "low probability", "near copy", "exact copy", "out", "approximate", "surplus")


def _data(classes: int = 4, per_class: int = 16, size: int = 8) -> ReportData:
    """Class k has 3 + k real images and `per_class` candidates, of the reasons in turn; class 0 has none."""
    names = tuple(f"{HOSTILE} {k}" for k in range(classes))
    stats = ClassStats(names, tuple(3 + k for k in range(classes)))
    labels = np.repeat(np.arange(1, classes), per_class).astype(np.int64)
    images = rng(0, "test").integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    candidates = ImageSet(images, labels, names, tuple(f"{k}/{i:06d}.png" for i, k in enumerate(labels)))
    rows: list[dict[str, Any]] = []
    for i, k in enumerate(labels.tolist()):
        reason = REASONS[i % len(REASONS)]
        rows.append({
            "file": candidates.ids[i], "label": k, "kept": reason == "kept", "reason": reason, "predicted": 0,
            "agrees": False, "probability": 0.123, "distance": 1.0, "ratio": 4.56, "zone": "out", "copy_ratio": 0.789,
            "near_copy": False, "exact_copy": False, "apart": None,
        })  # fmt: skip
    kept = np.bincount(labels[[row["kept"] for row in rows]], minlength=classes)
    manifest = {
        "policy": "agreement", "words": f"Kept are images {HOSTILE}.", "images": rows, "class_names": list(names),
        "classifier": {"name": "working-x", "trained_on": "the training split", "decides": "as if flat", "plan": {}},
        "zones": {"in-distribution": 1.11, "out": 2.22}, "copy_limit": 0.33, "warnings": [f"short:\n  {HOSTILE}"],
        "counts": {
            "wanted": [0, *[3] * (classes - 1)], "candidates": [0, *[per_class] * (classes - 1)], "kept": kept.tolist(),
        },
    }  # fmt: skip
    return replace(
        fake.minimal(stats), groups=Groups.by_quantile(stats), curated={**manifest, "candidates": candidates}
    )  # fmt: skip


def _html(data: ReportData) -> str:
    return environment().get_template("curated.html.j2").render(curated=section(data))


def test_counts_add_up_by_group_and_class() -> None:
    data = _data()
    shown = section(data)
    assert shown is not None
    assert shown.headline.startswith("6 of 48 images drawn are kept; 9 were wanted: 3 are missing, in 3 classes")
    assert len(shown.heads) == len(REASONS) - 1
    every = [int(cell) for cell in shown.scopes[0].cells]
    assert every[:4] == [9, 48, 6, 3]
    assert sum(every[4:]) + every[2] == every[1]
    for column in range(len(every)):
        assert sum(int(row.cells[column]) for row in shown.scopes[1:]) == every[column]
        assert sum(int(row.cells[column]) for row in shown.classes) == every[column]
    assert [row.name[-1] for row in shown.classes] == ["1", "2", "3"]  # rarest first, none for whom nothing was drawn


def test_dropped_images_stand_with_their_reason_and_score_and_every_reason_in_turn() -> None:
    shown = section(_data())
    assert shown is not None
    strip = shown.strips[0]
    said = {d.reason: d.score for d in strip.dropped}
    assert said["not probable enough"] == "p 0.12"
    assert said["near copy"] == "copy ratio 0.79"
    assert said["exact copy"] == "equals a training image"
    assert said["too far off"] == said["not near enough"] == "ratio 4.56"
    assert next(score for reason, score in said.items() if reason.startswith("looks like <script>")) == "p 0.12"
    assert len(strip.dropped) == 8
    assert len({d.reason for d in strip.dropped[:6]}) == 6
    assert "not needed" not in {d.reason for d in strip.dropped}  # it comes last, behind seconds of the others
    assert len(strip.kept) == 2
    assert section(_data()) == shown  # the same each time


def test_names_are_escaped_and_the_words_are_there() -> None:
    html = _html(_data())
    assert HOSTILE not in html
    assert "&lt;script&gt;" in html
    assert "working-x" in html
    assert "in distribution up to 1.11" in html
    assert "below 0.33" in html
    assert html.count("<figcaption>") == 3 * 8


def test_a_thousand_classes_stay_small() -> None:
    data = _data(classes=1001, per_class=8, size=32)
    shown = section(data)
    assert shown is not None
    assert len(shown.strips) == RAREST + OTHERS
    assert [int(s.name.split()[-1]) for s in shown.strips[:RAREST]] == list(range(1, 9))
    assert int(shown.strips[-1].name.split()[-1]) == 1000
    assert len(shown.classes) == MAX_ROWS
    assert shown.left_out == 900
    assert shown.not_shown == 988
    html = _html(data)
    assert "The 8 rarest classes" in html
    assert "100 of 1,000" in html
    assert len(html) < 2_000_000


def test_nothing_is_shown_where_nothing_was_curated() -> None:
    data = _data()
    assert section(replace(data, curated=None)) is None
    assert 'id="curation"' not in build_report(replace(data, curated=None))
    page = build_report(data)
    assert '<section id="curation">' in page
    assert '<a href="#curation">' in page
    assert HOSTILE not in page


def test_under_diverse_what_was_not_needed_stands_with_the_distance_that_it_was_chosen_by() -> None:
    data = _data(per_class=3)
    assert data.curated is not None
    rows = [{**row, "reason": "surplus", "kept": False, "apart": 0.77} for row in data.curated["images"]]
    for policy, score, said in (("no-copies+diverse", "apart 0.77", True), ("no-copies", "ratio 4.56", False)):
        shown = section(replace(data, curated={**data.curated, "images": rows, "policy": policy}))
        assert shown is not None
        assert {d.score for d in shown.strips[0].dropped} == {score}
        assert ("Apart: distance to the nearest kept image" in shown.explained) == said


def test_the_section_on_copies_is_named_where_the_page_has_it() -> None:
    data = _data()
    for metrics, there in ((None, False), ({"memorisation": None}, False), ({"memorisation": {"summary": [1]}}, True)):
        shown = section(replace(data, metrics=metrics))
        assert shown is not None
        assert "copy ratio below 0.33" in shown.explained
        assert ("see the section on copies" in shown.explained) == there


def test_a_choice_without_a_classifier_says_so() -> None:
    data = _data()
    assert data.curated is not None
    bare = [{"file": r["file"], "label": r["label"], "kept": r["kept"],
             "reason": "kept" if r["kept"] else "surplus"} for r in data.curated["images"]]  # fmt: skip
    plain = {**data.curated, "images": bare, "classifier": None, "zones": None, "copy_limit": None, "warnings": []}
    shown = section(replace(data, curated=plain))
    assert shown is not None
    assert shown.heads == ("not needed",)
    assert shown.explained == "No classifier looked at the images."
    assert {d.score for d in shown.strips[0].dropped} == {""}
