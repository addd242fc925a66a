"""The section on quality and the tables of the terminal: tables by group, reasons, answers, the plot of classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from imbdiff.metrics.numbers import Number
from imbdiff.reporting import quality as module
from imbdiff.reporting.blocks import Cell, Definitions, Fold, Heading, Section, Table
from imbdiff.reporting.class_plot import class_plot, class_view, running
from imbdiff.reporting.measured import (
    GroupTable,
    Measured,
    Part,
    counts_of,
    explained,
    heading,
    merged,
    numbers_table,
    printed,
    texts,
)  # fmt: skip
from imbdiff.reporting.quality import answers, how_measured, quality

from . import fake
from .looking import HOSTILE, axes_of, blocks_of, check_page, plain, section_page, tables, text_of


def measured(found: dict[str, Any] | None = None) -> Measured:
    made = Measured.of(found or fake.metrics())
    assert made is not None
    return made


def first(found: dict[str, Any] | None = None) -> GroupTable:
    return measured(found).tables()[0]


def part(table: GroupTable, main: bool = True) -> Part:
    made = table.part(main)
    assert made is not None
    return made


def record(found: dict[str, Any], metric: str, scope: str, where: str = "numbers", reference: str = "test") -> Any:
    return next(
        r for r in found[where]
        if (r["metric"], r["scope"], r["extractor"]) == (metric, scope, "judge-cnn")
        and r["reference"] in (reference, "label asked for", "labels of the test images")
    )  # fmt: skip


def section(found: dict[str, Any] | None = None) -> Section:
    return quality(found or fake.metrics(), "RUN")


def test_the_main_judge_against_the_reference_is_open_and_rankings_are_last() -> None:
    expected = [("judge-cnn", "test"), ("judge-cnn", "train"), ("random-conv", "test"), ("random-conv", "train")]
    assert [(t.judge.name, t.reference) for t in measured().tables()] == expected
    found = fake.metrics()
    found["numbers"].reverse()
    assert (first(found).judge.name, first(found).reference) == expected[0]
    shown = section()
    assert "By group: judge-cnn against test" in [b.text for b in blocks_of(shown, Heading)]
    folded = [b.summary for b in blocks_of(shown, Fold) if b.kind == "folded"]
    assert folded == [
        "judge-cnn against train: FD∞ 20.1 (17.1 to 23.1)",
        "random-conv against test (for ranking only): FD 21.4 (19.4 to 23.4)",
        "random-conv against train (for ranking only): FD∞ 20.1 (17.1 to 23.1)",
    ]


def test_columns_are_the_main_numbers_and_a_number_refused_throughout_is_a_note() -> None:
    main, more = part(first()), part(first(), main=False)
    assert [head for head, _ in main.heads] == [
        "FD ↓", "FD∞ ↓", "KD ↓", "precision(k=3) ↑", "recall(k=3) ↑", "coverage(k=5) ↑", "diversity → 1",
        "agreement ↑", "CAS ↑",
    ]  # fmt: skip
    assert [head for head, _ in more.heads] == ["density(k=5) ↑"]
    assert any(text.startswith("F8, F1/8: 200 clusters") for text in more.refusals)


def test_a_measure_that_the_table_does_not_know_is_among_the_lesser_numbers() -> None:
    found = fake.metrics()
    found["numbers"].append({**record(found, "KD", "all"), "metric": "mine", "k": None})
    assert part(first(found), main=False).metrics == ["density", "mine"]


def test_cells_belong_to_their_scope_and_are_next_to_real_images() -> None:
    found = fake.metrics()
    record(found, "recall", "few").update(value=0.123, low=0.05, high=0.21)
    record(found, "recall", "few", "baselines").update(value=0.61, low=0.5, high=0.7)
    table = next(t for t in blocks_of(section(found), Table) if t.kind == "dense")
    rows = {plain(row[0]).split(" ")[0]: [plain(cell) for cell in row[1:]] for row in table.rows}  # type: ignore[index]
    assert rows["few"][4] == "0.12 0.05 to 0.21 0.61 0.50 to 0.70"
    assert rows["all"][4] == "0.51 0.46 to 0.56 0.88 0.83 to 0.93"
    # agreement has another reference, but the same place; its baseline is that of the reference images
    assert rows["all"][7].startswith("0.91 0.89 to 0.93 0.97")
    assert rows["few"][0].startswith("refused 1 refused 1")
    few = first(found).own("recall", "few")
    assert few is not None
    assert counts_of(few) == "303 images against 180, effective n 180"
    assert first(found).counts("few") == "303 / 180"
    assert 'title="303 images against 180, effective n 180"' in section_page(section(found))


def test_a_refused_distance_points_to_its_reason_and_the_extrapolated_one_is_marked() -> None:
    table, main = first(), part(first())
    refused, extrapolated, whole = table.own("FD", "few"), table.own("FD∞", "few"), table.own("FD∞", "all")
    assert refused is not None
    assert extrapolated is not None
    assert whole is not None
    reason = main.refusals[int(main.mark(refused)) - 1]
    assert "at least 640" in reason
    assert "180 (few" in reason
    assert (main.mark(extrapolated), main.mark(whole)) == ("†", "")
    assert any(note.startswith("† A small-sample") for note in table.notes)
    assert "27.4" not in text_of(section())  # what FD of the largest group would have been


def test_notes_say_what_the_reader_must_know() -> None:
    notes = {(t.judge.name, t.reference): " ".join(t.notes) for t in measured().tables()}
    assert "rank generators" in notes["random-conv", "test"]
    assert "rank generators" not in notes["judge-cnn", "test"]
    assert "trained on these reference images" in notes["judge-cnn", "train"]
    assert "trained on these reference images" not in notes["judge-cnn", "test"]
    found = fake.metrics()
    record(found, "diversity", "few").update(n_synthetic=100)
    record(found, "KD", "many").update(classes_left_out=1)
    table = first(found)
    assert part(table).fewer == "Of fewer images than the first column says: diversity 100 / 180 (few)."
    assert [table.left_out(scope) for scope in fake.SCOPES] == ["", "1 class left out", "", ""]


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
    reason = "50 images are needed; here 12"
    rows = [("precision", "few", reason), ("recall", "few", reason), ("KD", "few", "20 images are needed; here 12")]
    notes, places = explained(rows)
    assert notes == ["precision, recall: 50 images are needed; here 12.", "KD: 20 images are needed; here 12."]
    assert places["recall", "# images are needed; here #"] == 1
    assert places["KD", "# images are needed; here #"] == 2


def test_numbers_have_the_digits_they_deserve() -> None:
    assert texts(0.00213, 0.0018, 0.0031) == ("0.0021", "0.0018 to 0.0031")
    assert texts(1234.6, 1200.0, 1300.0) == ("1,235", "1,200 to 1,300")
    assert texts(-0.0312, -0.131, 0.051) == ("−0.031", "−0.131 to 0.051")
    assert texts(0.5, None, None, 2) == ("0.50", "")
    assert texts(0.0, 0.0, 0.0)[0] == "0.00"
    assert texts(None, None, None) == ("–", "")
    n = Number.from_json(record(fake.metrics(), "recall", "all"))
    assert (heading(n), printed(n)[0]) == ("recall(k=3) ↑", "0.51")


def test_answers_claim_a_difference_only_where_intervals_are_apart() -> None:
    found = fake.metrics()
    said = dict(answers(measured(found)))
    assert len(said) == 4
    asked = said["Do they show what was asked for?"]
    assert "0.91 (0.89 to 0.93) of synthetic images" in asked
    assert "lower than the 0.97 (0.95 to 0.99) of real reference images" in asked
    assert "In the few group it is 0.79" in asked
    record(found, "agreement", "all").update(low=0.8, high=0.96)
    assert dict(answers(measured(found)))["Do they show what was asked for?"].count("not clearly different from") == 1
    # recall of other numbers of images is shown, not judged
    varied = said["Are they varied?"]
    assert "265 real training images: 0.88 (0.83 to 0.93), a rough baseline" in varied
    assert "lower than" not in varied
    for scope in ("all", "few"):
        record(found, "recall", scope, "baselines").update(n_synthetic=fake.SCOPES[scope][0])
    assert dict(answers(measured(found)))["Are they varied?"].count("lower than the 0.88") == 2


def test_answers_fall_back_and_say_so_where_nothing_is_known() -> None:
    found = fake.metrics()
    for row in found["numbers"]:
        if row["metric"] in ("precision", "FD", "FD∞", "KD") or (row["metric"], row["scope"]) == ("recall", "all"):
            row.update(value=None, low=None, high=None, refused="too few")
        if row["metric"] == "CAS":
            row["metric"] = "other"
    said = dict(answers(measured(found)))
    assert "(coverage)" in said["Are they varied?"]
    assert "too few images to say" in said["Do they look real?"]
    assert "Can a classifier learn from them?" not in said


def test_the_rarest_group_is_that_of_the_fewest_training_images() -> None:
    found = fake.metrics()
    assert measured(found).rarest == "few"
    found["classes"]["n_train"] = found["classes"]["n_train"][::-1]
    assert measured(found).rarest == "many"


def test_classes_are_sorted_by_training_count_with_their_own_values() -> None:
    names, counts = ("a", "b", "c", "d"), (3, 40, 3, 7)
    found = fake.metrics(names, counts)
    view = class_view(measured(found))
    assert view is not None
    assert (view.names, view.counts) == (["b", "d", "a", "c"], [40, 7, 3, 3])
    assert [p.name for p in view.panels] == ["agreement", "KD", "recall(k=3)"]  # FD∞ is refused for all
    columns = found["classes"]["metrics"]
    column = next(c for c in columns if c["metric"] == "agreement" and c["of"] == "synthetic")
    np.testing.assert_allclose(view.panels[0].series[0].value, np.array(column["value"], float)[[1, 3, 0, 2]])
    recall = view.panels[2]
    assert recall.refused.tolist() == [False, False, True, False]
    assert "(1 of 4: too few images)" in recall.title
    rows = next(t for t in tables(section(found)) if t[0][0] == "b")
    value, low, high = (column[key][1] for key in ("value", "low", "high"))
    assert rows[0][3] == f"{value:.2f} ({low:.2f} to {high:.2f})"
    assert rows[2][0] == "a"
    assert rows[2][7:] == ["refused", "–"]


def test_without_training_images_classes_are_sorted_by_the_reference() -> None:
    found = fake.metrics(("a", "b"), (3, 40))
    found["classes"] |= {"n_train": None, "group": None, "n_reference": [9, 5]}
    view = class_view(measured(found))
    assert view is not None
    assert (view.counted, view.names, view.group) == ("reference", ["a", "b"], [])
    found["classes"] |= {"names": ["a"], "metrics": []}
    assert class_view(measured(found)) is None
    assert "from the largest to the smallest" not in text_of(section(found))


def test_the_plot_has_a_panel_for_each_number_and_hollow_marks_for_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    view = class_view(measured())
    assert view is not None
    axes = axes_of(monkeypatch, lambda: class_plot(view))
    assert len(axes) == 4
    hollow = [line for line in axes[3].lines if line.get_markerfacecolor() == "none"]
    assert [line.get_xdata().tolist() for line in hollow] == [[9]]
    assert not [line for line in axes[1].lines if line.get_markerfacecolor() == "none"]


def test_a_thousand_classes_are_points_with_a_median_and_capped_in_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = tuple(f"class {k}" for k in range(1100))
    found = fake.metrics(names, tuple(int(n) for n in np.maximum(1, 500 * 0.99 ** np.arange(1100))))
    view = class_view(measured(found))
    assert view is not None
    axes = axes_of(monkeypatch, lambda: class_plot(view))
    assert sum(line.get_linewidth() == 2.0 for line in axes[1].lines) == 2
    text = text_of(section(found))
    assert "(the 1,000 largest of 1,100 classes)" in text
    assert "1,100 classes sorted by their number of training images" in class_plot(view).alt


def test_the_running_median_is_that_of_its_window() -> None:
    x = np.arange(100.0)
    x[::7] = np.nan
    found = running(np.nanmedian, x, 15)
    for i in (7, 50, 92):
        assert found[i] == np.nanmedian(x[i - 7 : i + 8])
    assert np.isnan(running(np.nanmean, np.full(30, np.nan), 15)).all()


def boxes(found: dict[str, Any]) -> list[dict[str, str]]:
    made = Section("s", "s", how_measured(found))
    return [dict(block.rows) for block in blocks_of(made, Definitions)]


def test_everything_that_numbers_depend_on_is_named() -> None:
    rows, judge, ranking, measures = boxes(fake.metrics())
    assert rows["Reference"] == "test: 600 images, fingerprint bbbbbbbbbbbbbbbb"
    assert rows["Training images"].startswith("305 images")
    assert judge["Fingerprint"] == fake.EXTRACTORS[0][1][:16]
    assert ranking["Its numbers"] == "rank generators, no more"
    assert measures["frechet"] == "squared Fréchet distance (Heusel et al. 2017)"
    assert "No number here is an FID" in text_of(section())
    assert how_measured({}) == []


@pytest.mark.parametrize(("verified", "said"), [(None, True), (False, True), (True, False)])
def test_an_fid_that_is_not_verified_is_said_to_be(verified: bool | None, said: bool) -> None:
    found = fake.metrics()
    found["protocol"]["extractors"][0] |= {"is_fid": True, "verified": verified}
    assert ("(unverified" in text_of(section(found))) is said


def test_numbers_that_only_rank_are_said_to_on_top_and_nothing_measured_names_the_command() -> None:
    found = fake.metrics()
    found["numbers"] = [r for r in found["numbers"] if r["extractor"] == "random-conv"]
    text = text_of(section(found))
    said = "There was no judge that learned from images like these."
    assert text.index(said) < text.index("Do they look real?")
    assert said not in text_of(section())
    for nothing in (None, {"numbers": []}):
        assert "imbdiff evaluate RUN" in text_of(quality(nothing, "RUN"))


def test_more_tables_than_fit_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TABLES", 2)
    assert "2 more tables of other extractors in metrics.json" in text_of(section())


def test_copies_are_said_next_to_the_numbers() -> None:
    found = fake.full().nearest
    assert found is not None
    assert "near copies of training images" in text_of(
        replace_anchor(quality(fake.metrics(), "RUN", found))
    )  # fmt: skip
    assert "near copies" not in text_of(quality(fake.metrics(), "RUN", {**found, "warnings": []}))


def replace_anchor(section: Section) -> Section:
    return replace(section, anchor="memorisation")


def test_names_are_data() -> None:
    found = fake.metrics(HOSTILE, fake.COUNTS)
    for row in (*found["numbers"], *found["baselines"]):
        row["scope"] = row["scope"].replace("few", HOSTILE[0])
        row["refused"] = row["refused"] and HOSTILE[8]
    check_page(section_page(section(found)))


def on_terminal(found: dict[str, Any]) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in numbers_table(found):
        console.print(table)
    return console.export_text()


def test_the_terminal_shows_the_main_numbers_by_group() -> None:
    text = on_terminal(fake.metrics())
    assert "judge-cnn against test" in text
    assert "random-conv" not in text  # it only ranks, and there is a judge
    lines = {line.strip("│ ").split("  ")[0]: line for line in text.splitlines()}
    recall = lines["recall(k=3) ↑"]
    assert [word for word in recall.split() if word.startswith("0.")] == ["0.51", "0.88", "0.39", "0.27", "0.15"]
    assert "0.46 to 0.56" in text
    assert lines["FD ↓"].count("refused 1") == 3
    assert "1 FD: 32 features need an effective n of at least 640" in text


def test_the_terminal_shows_rankings_where_there_is_nothing_else() -> None:
    found = fake.metrics()
    found["numbers"] = [r for r in found["numbers"] if r["extractor"] == "random-conv"]
    found["baselines"] = []
    text = on_terminal(found)
    assert "random-conv against test" in text
    assert "rank generators" in text
    assert "real" not in text.splitlines()[2]
    assert numbers_table({"numbers": []}) == []


def test_a_cell_without_number_is_a_dash() -> None:
    assert module._cell(part(first()), None, None) == Cell("–")
