"""The sections on copies and on curation: numbers, reasons, pictures, caps, names that are data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.reporting.blocks import Items, Shelf, Text
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.copies import MAX_CLASSES, MAX_PAIRS, MAX_WARNINGS, beyond_held_out, copies
from imbdiff.reporting.curated import MAX_ROWS, OTHERS, RAREST, curation

from . import fake
from .looking import blocks_of, check_page, groups_of, page_of, tables, text_of

HOSTILE = fake.HOSTILE


def noise(n: int, classes: int, seed: int, size: int = 8) -> ImageSet:
    g = np.random.default_rng(seed)
    names = tuple(f"{HOSTILE} {k}" for k in range(classes))
    return ImageSet(g.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % classes, names)


def copied(train: ImageSet, synthetic: ImageSet, held: ImageSet | None = None, **more: Any) -> ReportData:
    metrics = fake.measured(train, synthetic, held, **more)
    groups = Groups.default(train.stats)
    return replace(fake.minimal(train.stats), groups=groups, train=train, synthetic=synthetic, metrics=metrics)


def test_copies_are_said_tabled_and_shown() -> None:
    train, held, fresh = noise(60, 3, 0), noise(30, 3, 1), noise(60, 3, 2)
    mixed = np.where((fresh.labels == 2)[:, None, None, None], train.images, fresh.images)
    section = copies(copied(train, ImageSet(mixed, fresh.labels, fresh.class_names), held))
    text = text_of(section)
    assert "Copied training images: 33 % of 60 synthetic images are near copies; 0 % of 30 held-out real" in text
    assert len(blocks_of(section, Items)[0].items) == 1
    rows = {row[0]: row for row in tables(section)[1]}
    assert rows[f"{HOSTILE} 2"][3] == "100 % [84, 100]"
    groups = groups_of(section)
    assert [group.frame for group in groups] == ["copied"] * 4 + [""] * (len(groups) - 4)
    assert all("exact copy" in group.caption[1] for group in groups[:4])
    check_page(page_of(section))


def test_real_images_give_no_alarm_and_missing_numbers_no_section() -> None:
    train, held, fresh = noise(60, 3, 0), noise(30, 3, 1), noise(60, 3, 2)
    html = page_of(copies(copied(train, fresh, held)))
    assert "No class stands out: 0 % of 60 synthetic images" in html
    assert 'class="alert"' not in html
    assert "no real images were held out to compare with" in text_of(copies(copied(train, fresh)))
    assert copies(fake.minimal()) is None
    g = np.random.default_rng(0)
    table = {"extractor": "judge <b>", "synthetic": g.normal(size=(60, 4)), "train": g.normal(size=(60, 4)),
             "held_out": g.normal(size=(30, 4))}  # fmt: skip
    assert "In the feature space of judge <b>: near copies" in text_of(
        copies(copied(train, fresh, held, features=table))
    )


@pytest.mark.parametrize("size", [8, 64])
def test_caps_of_copies_are_kept_and_stated(size: int) -> None:
    train = noise(300, 150, 0, size)
    section = copies(copied(train, train))
    assert len(tables(section)[1]) == MAX_CLASSES
    assert "(100 of 150 classes)" in text_of(section)
    warnings = blocks_of(section, Items)[0].items
    assert len(warnings) == MAX_WARNINGS + 1
    assert "11 more warnings" in str(warnings[-1])
    groups = groups_of(section)
    assert len(groups) == MAX_PAIRS
    assert len({group.pictures[0].title for group in groups}) == len(groups)
    assert len(page_of(section)) < 1_200_000


def test_the_pictures_are_those_of_the_pair() -> None:
    train, fresh = noise(30, 3, 0), noise(12, 3, 2)
    own = np.concatenate([fresh.images, train.images[7:8, :, ::-1]])
    synthetic = ImageSet(own, np.append(fresh.labels, 1), fresh.class_names)
    first = groups_of(copies(copied(train, synthetic)))[0]
    assert first.frame == "copied"
    left, right = first.pictures
    np.testing.assert_array_equal(left.image, own[12])
    np.testing.assert_array_equal(right.image, train.images[7])
    assert "mirrored" in first.caption[1]


def reasons(shelf: Shelf) -> list[tuple[str, ...]]:
    return [tuple(group.caption) for group in shelf.sets[1].groups]


def test_counts_of_curation_add_up_by_group_and_class() -> None:
    section = curation(fake.curated())
    assert "6 of 48 images sampled are kept; 9 were wanted: 3 are missing, in 3 classes" in text_of(section)
    scopes, classes = tables(section)
    every = [int(cell) for cell in scopes[0][1:]]
    assert every[:4] == [9, 48, 6, 3]
    assert len(every) == 4 + len(fake.REASONS) - 1
    assert sum(every[4:]) + every[2] == every[1]
    for column in range(len(every)):
        assert sum(int(row[column + 1]) for row in scopes[1:]) == every[column]
        assert sum(int(row[column + 1]) for row in classes) == every[column]
    assert [row[0][-1] for row in classes] == ["1", "2", "3"]  # rarest first, none for whom nothing was sampled


def test_dropped_images_have_their_reason_and_score_and_every_reason_in_turn() -> None:
    data = fake.curated()
    shelf = blocks_of(curation(data), Shelf)[0]
    said = dict(found for found in reasons(shelf) if len(found) == 2)
    assert said["not probable enough"] == "probability 0.12"
    assert said["near copy"] == "copy ratio 0.79"
    assert said["too far off"] == said["not near enough"] == "ratio 4.56"
    assert (
        next(score for reason, score in said.items() if reason.startswith("looks like <script>")) == "probability 0.12"
    )
    assert len({found[0] for found in reasons(shelf)}) == len(reasons(shelf)) == 6
    assert len(shelf.sets[0].groups) == 2
    assert data.curated is not None
    for one in shelf.sets:
        for picture in (p for group in one.groups for p in group.pictures):
            i = [row["file"] for row in data.curated["images"]].index(picture.title.split(": ")[1])
            assert data.curated["images"][i]["kept"] == (one.heading == "kept")
            np.testing.assert_array_equal(picture.image, data.curated["candidates"].images[i])


def test_curation_is_explained_and_names_are_data() -> None:
    html = page_of(curation(fake.curated()))
    check_page(html)
    for part in ("working-x", "in distribution up to 1.11", "below 0.33"):
        assert part in html
    assert html.count("<figcaption>") == 3 * 6
    assert curation(replace(fake.curated(), curated=None)) is None


def test_curation_of_a_thousand_classes_stays_small() -> None:
    section = curation(fake.curated(classes=1001, per_class=8, size=32))
    names = [int(shelf.name.split()[-1]) for shelf in blocks_of(section, Shelf)]
    assert (len(names), names[:RAREST], names[-1]) == (RAREST + OTHERS, list(range(1, 9)), 1000)
    assert len(tables(section)[1]) == MAX_ROWS
    text = text_of(section)
    assert "(100 of 1,000)" in text
    assert "The 8 rarest classes" in text
    assert len(page_of(section)) < 2_000_000


def test_under_diverse_what_was_not_needed_has_the_distance_that_it_was_chosen_by() -> None:
    data = fake.curated(per_class=3)
    assert data.curated is not None
    rows = [{**row, "reason": "surplus", "kept": False, "apart": 0.77} for row in data.curated["images"]]
    for policy, score, said in (("no-copies+diverse", "apart 0.77", True), ("no-copies", "ratio 4.56", False)):
        section = curation(replace(data, curated={**data.curated, "images": rows, "policy": policy}))
        assert {found[1] for found in reasons(blocks_of(section, Shelf)[0])} == {score}
        assert ("Apart: distance to the nearest kept image" in text_of(section)) == said


def test_a_choice_without_a_classifier_says_so() -> None:
    data = fake.curated()
    assert data.curated is not None
    bare = [{"file": r["file"], "label": r["label"], "kept": r["kept"],
             "reason": "kept" if r["kept"] else "surplus"} for r in data.curated["images"]]  # fmt: skip
    plain = {**data.curated, "images": bare, "classifier": None, "zones": None, "copy_limit": None, "warnings": []}
    section = curation(replace(data, curated=plain))
    assert "Images were kept without a classifier." in text_of(section)
    assert set(reasons(blocks_of(section, Shelf)[0])) == {("not needed",)}


def test_it_is_an_alert_only_where_there_are_more_copies_than_among_held_out_images() -> None:
    data = copied(noise(60, 3, 0), noise(60, 3, 1), noise(60, 3, 2))
    assert data.memorisation is not None
    for own, held, alert in ((0.01, 0.013, False), (0.02, 0.013, True), (0.02, None, True), (0.0, 0.013, False)):
        summary = [{**row, "near_copy_share": own, "held_out_near_copy_share": held, "exact_copies": 0}
                   for row in data.memorisation["summary"]]  # fmt: skip
        found = {**data.memorisation, "summary": summary, "warnings": ["class 7 has many"]}
        assert beyond_held_out(found) == alert
        section = copies(replace(data, metrics={**(data.metrics or {}), "memorisation": found}))
        assert blocks_of(section, Text)[0].kind == ("alert" if alert else "")
        assert ("Copied training images" in text_of(section)) == alert
        assert "class 7 has many" in text_of(section)
