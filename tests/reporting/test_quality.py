"""The section on quality: tables by group, reasons, sentences, the plot of classes, the protocol box."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from imbdiff.metrics.numbers import Number
from imbdiff.reporting import class_plot, plots
from imbdiff.reporting.boards import Board, Part, boards
from imbdiff.reporting.class_plot import class_rows, class_view, running_median
from imbdiff.reporting.measured import Measured, texts
from imbdiff.reporting.measuring import protocol_box
from imbdiff.reporting.quality import quality
from imbdiff.reporting.refusals import Refusals, merged
from imbdiff.reporting.report import build_report
from imbdiff.reporting.summary import sayings

from . import fake


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "is_drawn" not in request.node.name:
        monkeypatch.setattr(plots, "render", lambda draw, size, theme: "data:image/png;base64,AA==")


def measured(found: dict[str, Any] | None = None) -> Measured:
    made = Measured.of(found or fake.metrics())
    assert made is not None
    return made


def main(board: Board) -> Part:
    assert board.main is not None
    return board.main


def record(found: dict[str, Any], metric: str, scope: str, part: str = "numbers", reference: str = "test") -> Any:
    return next(
        r
        for r in found[part]
        if (Number.from_json(r).label, r["scope"]) == (metric, scope)
        and r["reference"] in (reference, "label asked for")
    )


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_main_judge_against_the_reference_is_open_and_rankings_are_last() -> None:
    made = boards(measured())
    assert [(b.extractor, b.reference, b.open) for b in made] == [
        ("judge-cnn", "test", True), ("judge-cnn", "train", False), ("random-conv", "test", False),
        ("random-conv", "train", False),
    ]  # fmt: skip
    assert [b.headline for b in made[:2]] == ["FD 21.4 (19.4 to 23.4)", "FD∞ 20.1 (17.1 to 23.1)"]
    reversed_ = fake.metrics()
    reversed_["numbers"].reverse()
    first = boards(measured(reversed_))[0]
    assert (first.extractor, first.reference) == ("judge-cnn", "test")


def test_columns_are_the_main_numbers_and_a_number_refused_throughout_is_a_note() -> None:
    board = boards(measured())[0]
    assert [c.name for c in main(board).columns] == [
        "FD", "FD∞", "KD", "precision(k=3)", "recall(k=3)", "coverage(k=5)", "diversity", "agreement", "CAS",
    ]  # fmt: skip
    assert [c.arrow for c in main(board).columns[:2]] == ["↓", "↓"]
    assert main(board).columns[6].arrow == "→ 1"
    assert board.more is not None
    assert [c.name for c in board.more.columns] == ["density(k=5)"]
    assert any(text.startswith("F8, F1/8: 200 clusters") for text in board.more.refusals)


def test_cells_belong_to_their_scope_and_stand_beside_real_images() -> None:
    found = fake.metrics()
    record(found, "recall(k=3)[judge-cnn]", "few").update(value=0.123, low=0.05, high=0.21)
    record(found, "recall(k=3)[judge-cnn]", "few", "yardsticks").update(value=0.61, low=0.5, high=0.7)
    rows = {row.scope: row for row in main(boards(measured(found))[0]).rows}
    few = rows["few"].entries[4]
    assert (few.own.value, few.own.between) == ("0.12", "0.05 to 0.21")
    assert few.yard is not None
    assert (few.yard.value, few.yard.between) == ("0.61", "0.50 to 0.70")
    assert rows["few"].counts == "303 / 180"
    assert "303 images against 180, effective n 180" in few.own.title
    assert rows["all"].entries[4].own.value == "0.51"
    # agreement has another reference, but the same place; its yardstick is that of the reference images
    agreement = rows["all"].entries[7]
    assert agreement.own.value == "0.91"
    assert agreement.yard is not None
    assert agreement.yard.value == "0.97"


def test_a_refused_distance_points_to_its_reason_and_the_extrapolated_one_is_marked() -> None:
    board = boards(measured())[0]
    few = main(board).rows[3]
    assert few.entries[0].own.refused
    reason = main(board).refusals[int(few.entries[0].own.mark) - 1]
    assert "at least 640" in reason
    assert "180 (few" in reason
    assert few.entries[1].own.mark == "†"
    assert not few.entries[1].own.refused
    assert any(note.startswith("† A small-sample") for note in board.notes)
    assert main(board).rows[0].entries[1].own.mark == ""


def test_notes_say_what_the_reader_must_know() -> None:
    by_pair = {(b.extractor, b.reference): " ".join(b.notes) for b in boards(measured())}
    assert "rank generators" in by_pair["random-conv", "test"]
    assert "rank generators" not in by_pair["judge-cnn", "test"]
    assert "trained on these reference images" in by_pair["judge-cnn", "train"]
    assert "trained on these reference images" not in by_pair["judge-cnn", "test"]
    found = fake.metrics()
    record(found, "diversity[judge-cnn]", "few").update(n_synthetic=100)
    record(found, "KD[judge-cnn]", "many").update(classes_left_out=1)
    part = main(boards(measured(found))[0])
    assert part.fewer == "Of fewer images than the first column says: diversity 100 / 180 (few)."
    assert [row.left_out for row in part.rows] == ["", "1 class left out", "", ""]


def test_reasons_that_differ_in_numbers_are_one_sentence() -> None:
    reason = "32 features need an effective n of at least 640: here {}; use FD∞"
    rows = [("few", reason.format(180)), ("medium", reason.format(240)), ("many", reason.format(180))]
    assert (
        merged(rows) == "32 features need an effective n of at least 640: here 180 (few, many), 240 (medium); use FD∞"
    )
    assert merged(rows[:1] * 2) == reason.format(180)
    assert merged([("a", "here 12 and 40"), ("b", "here 3 and 1,200")]) == "here 12 and 40 (a), 3 and 1,200 (b)"
    long = "{} clusters (20 a class) need at least 1000 images in both sets; here {}"
    rows = [(name, long.format(n, n)) for name, n in (("all", 200), ("many", 60), ("few", 40))]
    assert merged(rows).endswith("here 200 (all; and likewise many, few)")


def test_metrics_refused_for_the_same_reason_share_a_note() -> None:
    refusals = Refusals()
    for metric in ("precision", "recall"):
        refusals.add(metric, "few", "50 images are needed; here 12")
    refusals.add("KD", "few", "20 images are needed; here 12")
    notes, places = refusals.notes()
    assert notes == ["precision, recall: 50 images are needed; here 12.", "KD: 20 images are needed; here 12."]
    assert places["recall", "# images are needed; here #"] == 1
    assert places["KD", "# images are needed; here #"] == 2


def test_numbers_have_the_digits_they_deserve() -> None:
    def of(metric: str, *values: float | None) -> tuple[str, str]:
        return texts({"metric": metric, **dict(zip(("value", "low", "high"), values, strict=True))})

    assert of("KD", 0.00213, 0.0018, 0.0031) == ("0.0021", "0.0018 to 0.0031")
    assert of("FD", 1234.6, 1200.0, 1300.0) == ("1,235", "1,200 to 1,300")
    assert of("KD", -0.0312, -0.131, 0.051) == ("−0.031", "−0.131 to 0.051")
    assert of("recall", 0.5, None, None) == ("0.50", "")
    assert of("KD", 0.0, 0.0, 0.0)[0] == "0.00"


def test_sentences_claim_a_difference_only_where_intervals_are_apart() -> None:
    found = fake.metrics()
    said = {s.question: s.answer for s in sayings(measured(found))}
    assert len(said) == 4
    asked = said["Do they show what was asked for?"]
    assert "0.91 (0.89 to 0.93) of synthetic images" in asked
    assert "lower than the 0.97 (0.95 to 0.99) of real reference images" in asked
    assert "In the few group it is 0.79" in asked
    record(found, "agreement[judge-cnn]", "all").update(low=0.8, high=0.96)
    asked = {s.question: s.answer for s in sayings(measured(found))}["Do they show what was asked for?"]
    assert asked.count("not clearly different from") == 1
    # recall of other numbers of images is shown beside, not judged
    varied = said["Are they varied?"]
    assert "265 real training images: 0.88 (0.83 to 0.93), a rough yardstick" in varied
    assert "lower than" not in varied
    for scope in ("all", "few"):
        record(found, "recall(k=3)[judge-cnn]", scope, "yardsticks").update(n_synthetic=fake.SCOPES[scope][0])
    varied = {s.question: s.answer for s in sayings(measured(found))}["Are they varied?"]
    assert varied.count("lower than the 0.88") == 2


def test_sentences_fall_back_and_say_so_where_nothing_is_known() -> None:
    found = fake.metrics()
    for entry in found["numbers"]:
        if entry["scope"] == "all" and entry["metric"].startswith("recall"):
            entry.update(value=None, low=None, high=None, refused="too few")
        if entry["metric"].startswith(("precision", "FD", "KD")):
            entry.update(value=None, low=None, high=None, refused="too few")
        if entry["metric"].startswith("CAS"):
            entry["metric"] = "other"
    said = {s.question: s.answer for s in sayings(measured(found))}
    assert "(coverage)" in said["Are they varied?"]
    assert "too few images to say" in said["Do they look real?"]
    assert "Can a classifier learn from them?" not in said


def test_the_rarest_group_is_told_by_training_counts() -> None:
    found = fake.metrics()
    assert measured(found).rarest == "few"
    found["classes"]["n_train"] = found["classes"]["n_train"][::-1]
    assert measured(found).rarest == "many"


def test_classes_are_sorted_by_training_count_with_their_own_values() -> None:
    names, counts = ("a", "b", "c", "d"), (3, 40, 3, 7)
    found = fake.metrics(names, counts)
    view = class_view(measured(found))
    assert view is not None
    assert view.names == ["b", "d", "a", "c"]
    assert view.counts == [40, 7, 3, 3]
    assert [p.name for p in view.panels] == ["agreement", "KD", "recall(k=3)"]  # FD∞ is refused for all
    column = next(c for c in found["classes"]["metrics"] if c["metric"].startswith("agreement") and c["of"] != "train")
    np.testing.assert_allclose(view.panels[0].own.value, np.array(column["value"], float)[[1, 3, 0, 2]])
    recall = view.panels[2]
    assert recall.refused.tolist() == [False, False, True, False]
    assert "(1 of 4: too few images)" in recall.title
    assert recall.yard is not None
    rows = class_rows(view)
    assert rows[2][0] == "a"
    assert rows[2][3][2] == ("refused", "–")
    assert rows[0][3][0][0] == texts({**{k: column[k][1] for k in ("value", "low", "high")}, "metric": "agreement"})[
        0
    ] + (f" ({column['low'][1]:.2f} to {column['high'][1]:.2f})")
    assert len(class_rows(view, 2)) == 2


def test_without_training_images_classes_are_sorted_by_the_reference() -> None:
    found = fake.metrics(("a", "b"), (3, 40))
    found["classes"] |= {"n_train": None, "group": None, "n_reference": [9, 5]}
    view = class_view(measured(found))
    assert view is not None
    assert (view.counted, view.names, view.group) == ("reference", ["a", "b"], [])


def test_one_class_has_no_plot() -> None:
    found = fake.metrics()
    found["classes"] |= {"names": ["a"], "metrics": []}
    assert class_view(measured(found)) is None
    assert build_report(replace(fake.full(), metrics=found))


def lines(found: dict[str, Any]) -> list[Any]:
    """The axes of the plot, drawn on a light page."""
    view = class_view(measured(found))
    assert view is not None
    kept: list[Figure] = []
    original = plots.render

    def keep(draw: Any, size: Any, theme: Any) -> str:
        figure = Figure(figsize=(10, 6))
        draw(figure, theme)
        kept.append(figure)
        return ""

    plots.render = keep  # type: ignore[assignment]
    try:
        class_plot.class_plot(view)
    finally:
        plots.render = original
    return kept[0].axes


def test_the_plot_has_a_panel_for_each_number_and_hollow_marks_for_refusals() -> None:
    axes = lines(fake.metrics())
    assert len(axes) == 4
    hollow = [line for line in axes[3].lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 1
    assert hollow[0].get_xdata().tolist() == [9]
    assert not [line for line in axes[1].lines if line.get_markerfacecolor() == "none"]


@pytest.mark.parametrize("classes", [2, 1000])
def test_the_plot_of_two_and_of_a_thousand_classes_is_drawn(classes: int) -> None:
    names = tuple(f"class {k}" for k in range(classes))
    counts = tuple(int(n) for n in np.maximum(1, 500 * 0.99 ** np.arange(classes)))
    view = class_view(measured(fake.metrics(names, counts)))
    assert view is not None
    made = class_plot.class_plot(view)
    assert made.light.startswith("data:image/png;base64,")
    assert len(made.light) + len(made.dark) < 400_000
    assert f"{classes:,} classes sorted by their number of training images" in made.alt
    assert "in the larger half" in made.alt


def test_the_running_median_is_that_of_its_window() -> None:
    x = np.arange(100.0)
    x[::7] = np.nan
    found = running_median(x, 15)
    for i in (7, 50, 92):
        assert found[i] == np.nanmedian(x[i - 7 : i + 8])
    assert np.isnan(running_median(np.full(30, np.nan), 15)).all()


def test_the_protocol_box_names_everything_that_numbers_depend_on() -> None:
    box = protocol_box(fake.metrics())
    assert box is not None
    rows = dict(box.rows)
    assert rows["Reference"] == "test: 600 images, fingerprint bbbbbbbbbbbbbbbb"
    assert rows["Training images"].startswith("305 images")
    assert [name for name, _ in box.extractors] == ["judge-cnn", "random-conv"]
    assert dict(box.extractors[1][1])["Its numbers"] == "rank generators, no more"
    assert dict(box.measures)["frechet"] == "squared Fréchet distance (Heusel et al. 2017)"
    assert box.fid.startswith("No number here is an FID")


@pytest.mark.parametrize(("verified", "said"), [(None, True), (False, True), (True, False)])
def test_an_fid_that_is_not_verified_is_said_to_be(verified: bool | None, said: bool) -> None:
    found = fake.metrics()
    found["protocol"]["extractors"][0] |= {"is_fid": True, "verified": verified}
    box = protocol_box(found)
    assert box is not None
    assert ("(unverified" in box.fid) is said


def test_numbers_that_only_rank_are_said_to_on_top() -> None:
    found = fake.metrics()
    found["numbers"] = [r for r in found["numbers"] if r["extractor"] == "random-conv"]
    html = words(build_report(replace(fake.full(), metrics=found)))
    said = "There was no judge that learned from images like these."
    assert html.index(said) < html.index("Do they look real?")
    assert said not in words(build_report(fake.full()))


def test_nothing_measured_is_no_section() -> None:
    assert quality(None) is None
    assert quality({"numbers": []}) is None
