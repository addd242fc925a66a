"""The section on quality and the table of the terminal: tables by group, reasons, answers, the plot of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rich.console import Console

from imbdiff.reporting import quality as module
from imbdiff.reporting.blocks import Cell, Definitions, Fold, Section, Table, Text
from imbdiff.reporting.class_plot import class_plot, running
from imbdiff.reporting.measured import GroupTable, Measured, counts_of, heading, numbers_table, printed, reasons
from imbdiff.reporting.quality import answers, class_panels, how_measured, quality

from . import fake
from .looking import HOSTILE, axes_of, blocks_of, check_page, page_of, plain, tables, text_of


def measured(found: dict[str, Any] | None = None) -> Measured:
    made = Measured.of(found or fake.metrics())
    assert made is not None
    return made


def record(found: dict[str, Any], metric: str, scope: str, where: str = "numbers") -> Any:
    return next(
        r for r in found[where]
        if (r["metric"], r["scope"], r["extractor"]) == (metric, scope, "judge-cnn")
        and r["reference"] in ("test", "label asked for", "labels of the test images")
    )  # fmt: skip


def section(found: dict[str, Any] | None = None) -> Section:
    return quality(found or fake.metrics(), "RUN")


def dense(shown: Section) -> tuple[Table, Table]:
    """The main numbers and the others of the first extractor."""
    first, second, *_ = (table for table in blocks_of(shown, Table) if table.kind == "dense")
    return first, second


def heads(table: Table) -> list[str]:
    return [plain(head) for head in table.columns[1:]]


def test_the_main_judge_against_the_reference_is_open_and_rankings_are_last() -> None:
    expected = [("judge-cnn", "test"), ("judge-cnn", "train"), ("random-conv", "test"), ("random-conv", "train")]
    found = fake.metrics()
    assert [(t.judge.extractor, t.reference) for t in measured(found).tables] == expected
    found["numbers"].reverse()
    assert (measured(found).main.judge.extractor, measured(found).main.reference) == expected[0]
    shown = section()
    assert "By group: judge-cnn against test" in [b.text for b in blocks_of(shown, Text) if b.kind == "heading"]
    assert [b.summary for b in blocks_of(shown, Fold) if b.kind == "folded"] == [
        "judge-cnn against train", "random-conv against test (for ranking only)",
        "random-conv against train (for ranking only)",
    ]  # fmt: skip


def test_columns_are_the_main_numbers_and_a_number_refused_throughout_is_a_note() -> None:
    found = fake.metrics()
    found["numbers"].append({**record(found, "KD", "all"), "metric": "mine", "k": None})
    shown = section(found)
    main, more = dense(shown)
    assert heads(main) == [
        "FD ↓", "FD∞ ↓", "KD ↓", "precision(k=3) ↑", "recall(k=3) ↑", "coverage(k=5) ↑", "diversity → 1",
        "agreement ↑", "CAS ↑",
    ]  # fmt: skip
    assert heads(more) == ["density(k=5) ↑", "mine ↓"]  # a user's own measure is among the lesser numbers
    assert "F8, F1/8: 200 clusters" in text_of(shown)


def test_cells_belong_to_their_scope_and_are_next_to_real_images() -> None:
    found = fake.metrics()
    record(found, "recall", "few").update(value=0.123, low=0.05, high=0.21)
    record(found, "recall", "few", "baselines").update(value=0.61, low=0.5, high=0.7)
    table, _ = dense(section(found))
    rows = {plain(row[0]).split(" ")[0]: [plain(cell) for cell in row[1:]] for row in table.rows}
    assert rows["few"][4] == "0.12 0.05 to 0.21 0.61 0.50 to 0.70"
    assert rows["all"][4] == "0.51 0.46 to 0.56 0.88 0.83 to 0.93"
    # agreement has another reference, but the same place; its baseline is that of the reference images
    assert rows["all"][7].startswith("0.91 0.89 to 0.93 0.97")
    assert rows["few"][0].startswith("refused refused")
    assert [plain(row[0]) for row in table.rows][-1] == "few 303 / 180"
    assert 'title="303 images against 180, effective n 180"' in page_of(section(found))
    few = measured(found).main.own["recall", "few"]
    assert (heading(few), printed(few)[0]) == ("recall(k=3) ↑", "0.12")
    assert counts_of(few) == "303 images against 180, effective n 180"
    assert module._cell(GroupTable(few, "test", ("few",), "", {}, {}), "KD", "few") == Cell("–")


def test_reasons_that_differ_in_their_numbers_are_one_sentence() -> None:
    table = measured().main
    clusters, distance = reasons([n for n in table.own.values() if n.refused])
    assert distance.startswith("FD: 32 features need an effective n of at least 640")
    assert distance.endswith("(many; likewise medium, few).")
    assert clusters.startswith("F8, F1/8: ")
    rows = {plain(row[0]).split(" ")[0]: [plain(cell) for cell in row[1:]] for row in dense(section())[0].rows}
    assert rows["few"][1].startswith("38.1†")
    assert rows["all"][1].startswith("20.1 ")
    assert "27.4" not in text_of(section())  # what FD of the largest group would have been


def test_notes_say_what_the_reader_must_know() -> None:
    notes = {(t.judge.extractor, t.reference): " ".join(t.notes) for t in measured().tables}
    assert "† Extrapolated" in notes["judge-cnn", "test"]
    for said, where in (("rank generators", "random-conv"), ("trained on these reference images", "judge-cnn")):
        reference = "test" if where == "random-conv" else "train"
        assert said in notes[where, reference]
        assert said not in notes["judge-cnn", "test"]


def test_answers_claim_a_difference_only_where_intervals_are_apart() -> None:
    found = fake.metrics()
    said = dict(answers(measured(found)))
    assert len(said) == 4
    asked = said["Do they show what was asked for?"]
    assert "agreement 0.91 (0.89 to 0.93)" in asked
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
    assert "coverage" in said["Are they varied?"]
    assert "too few images to say" in said["Do they look real?"]
    assert "Can a classifier learn from them?" not in said


def test_classes_are_sorted_by_training_count_with_their_own_values() -> None:
    found = fake.metrics(("a", "b", "c", "d"), (3, 40, 3, 7))
    view = class_panels(measured(found))
    assert view is not None
    classes, panels = view
    assert (classes.names, classes.counts) == (["b", "d", "a", "c"], [40, 7, 3, 3])
    assert [p.name for p in panels] == ["agreement ↑", "KD ↓", "recall(k=3) ↑"]  # FD∞ is refused for all
    columns = found["classes"]["metrics"]
    column = next(c for c in columns if c["metric"] == "agreement" and c["of"] == "synthetic")
    assert panels[0].synthetic is not None
    np.testing.assert_allclose(panels[0].synthetic[0], np.array(column["value"], float)[[1, 3, 0, 2]])
    assert panels[2].refused is not None
    assert panels[2].refused.tolist() == [False, False, True, False]
    rows = next(t for t in tables(section(found)) if t[0][0] == "b")
    value, low, high = (column[key][1] for key in ("value", "low", "high"))
    assert rows[0][3] == f"{value:.2f} ({low:.2f} to {high:.2f})"
    assert (rows[2][0], rows[2][7:]) == ("a", ["refused", "–"])


def test_without_training_images_classes_are_sorted_by_the_reference() -> None:
    found = fake.metrics(("a", "b"), (3, 40))
    found["classes"] |= {"n_train": None, "group": None, "n_reference": [9, 5]}
    view = class_panels(measured(found))
    assert view is not None
    assert (view[0].counted, view[0].names, view[0].group) == ("reference", ["a", "b"], [])
    found["classes"] |= {"names": ["a"], "metrics": []}
    assert class_panels(measured(found)) is None
    assert "from the largest to the smallest" not in text_of(section(found))


def test_the_plot_has_a_panel_for_each_number_and_hollow_marks_for_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    view = class_panels(measured())
    assert view is not None
    axes = axes_of(monkeypatch, lambda: class_plot(*view))
    assert len(axes) == 4
    hollow = [line for line in axes[3].lines if line.get_markerfacecolor() == "none"]
    assert [line.get_xdata().tolist() for line in hollow] == [[9]]
    assert "(1 of 10: too few images)" in axes[3].get_title(loc="left")
    assert not [line for line in axes[1].lines if line.get_markerfacecolor() == "none"]


def test_a_thousand_classes_are_points_with_an_average_and_capped_in_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = tuple(f"class {k}" for k in range(1100))
    found = fake.metrics(names, tuple(int(n) for n in np.maximum(1, 500 * 0.99 ** np.arange(1100))))
    view = class_panels(measured(found))
    assert view is not None
    axes = axes_of(monkeypatch, lambda: class_plot(*view))
    assert sum(line.get_linewidth() == 2.0 for line in axes[1].lines) == 2
    assert "(the 1,000 largest of 1,100 classes)" in text_of(section(found))
    assert "1,100 classes sorted by their number of training images" in class_plot(*view).alt


def test_the_running_average_is_that_of_its_window() -> None:
    x = np.arange(100.0)
    x[::7] = np.nan
    found = running(np.nanmedian, x, 15)
    for i in (7, 50, 92):
        assert found[i] == np.nanmedian(x[i - 7 : i + 8])
    assert np.isnan(running(np.nanmean, np.full(30, np.nan), 15)).all()


def test_everything_that_numbers_depend_on_is_named() -> None:
    blocks = blocks_of(Section("s", "s", how_measured(fake.metrics())), Definitions)
    rows, judge, ranking, measures = (dict(block.rows) for block in blocks)
    assert (rows["reference"], rows["n_reference"], rows["fingerprints.reference"]) == ("test", "600", "bb" * 32)
    assert (judge["fingerprint"], ranking["ranking_only"]) == (fake.EXTRACTORS[0][1], "True")
    assert measures["frechet"] == "squared Fréchet distance (Heusel et al. 2017)"
    assert "No number here is an FID" in text_of(section())


@pytest.mark.parametrize(("verified", "said"), [(None, True), (False, True), (True, False)])
def test_an_fid_that_is_not_verified_is_said_to_be(verified: bool | None, said: bool) -> None:
    found = fake.metrics()
    found["protocol"]["extractors"][0] |= {"is_fid": True, "verified": verified}
    assert ("(unverified" in text_of(section(found))) is said


def test_numbers_that_only_rank_are_said_to_on_top_and_nothing_measured_names_the_command() -> None:
    found = fake.metrics()
    found["numbers"] = [r for r in found["numbers"] if r["extractor"] == "random-conv"]
    text, said = text_of(section(found)), "There was no judge that learned from images like these."
    assert text.index(said) < text.index("Do they look real?")
    assert said not in text_of(section())
    for nothing in (None, {"numbers": []}):
        assert "imbdiff evaluate RUN" in text_of(quality(nothing, "RUN"))


def test_more_tables_than_fit_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TABLES", 2)
    assert "2 more tables of other extractors in metrics.json" in text_of(section())


def test_copies_are_said_next_to_the_numbers() -> None:
    found = fake.full().metrics
    assert found is not None
    assert "are near copies" in text_of(quality(found, "RUN"))
    quiet = {**found, "memorisation": {**found["memorisation"], "warnings": []}}
    assert "are near copies" not in text_of(quality(quiet, "RUN"))


def test_names_are_data() -> None:
    found = fake.metrics(HOSTILE, fake.COUNTS)
    for row in (*found["numbers"], *found["baselines"]):
        row["scope"] = row["scope"].replace("few", HOSTILE[0])
        row["refused"] = row["refused"] and HOSTILE[8]
    check_page(page_of(section(found)))


def on_terminal(found: dict[str, Any]) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(numbers_table(found))
    return console.export_text()


def test_the_terminal_shows_the_main_numbers_by_group() -> None:
    text = on_terminal(fake.metrics())
    assert "judge-cnn against test" in text
    assert "random-conv" not in text  # it only ranks, and there is a judge
    lines = {line.strip("│ ").split("  ")[0]: line for line in text.splitlines()}
    recall = lines["recall(k=3) ↑"]
    assert [word for word in recall.split() if word.startswith("0.")] == ["0.51", "0.39", "0.27", "0.15", "0.88"]
    assert "0.46 to 0.56" in text
    assert lines["FD ↓"].count("refused") == 3


def test_the_terminal_shows_rankings_where_there_is_nothing_else() -> None:
    found = fake.metrics()
    found["numbers"] = [r for r in found["numbers"] if r["extractor"] == "random-conv"]
    found["baselines"] = []
    text = on_terminal(found)
    assert "random-conv against test" in text
    assert "rank generators" in text
    assert "real" not in text.splitlines()[2]
    assert numbers_table({"numbers": []}) is None


def test_no_empty_table_where_all_numbers_are_refused_but_why() -> None:
    refused = [{**row, "value": None, "refused": "7 images are too few"} for row in fake.metrics()["numbers"]]
    shown = numbers_table({**fake.metrics(), "numbers": refused, "baselines": []})
    assert "7 images are too few" in str(shown)
    assert not isinstance(shown, type(numbers_table(fake.metrics())))
