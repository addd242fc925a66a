"""The page of a study, from what study.json holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imbdiff.reporting import study as page
from imbdiff.reporting.study import build_study, lines_of, study_plot

from . import fake
from .fake import _accuracies as numbers
from .looking import HOSTILE, axes_of, check_page, tables, words
from .looking import text_of as text_of_section


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is handed to the plot."""
    calls: list[Any] = []
    original = study_plot
    monkeypatch.setattr(page, "study_plot", lambda *given: calls.append(given) or original(*given))
    return calls


def text_of(found: dict[str, Any]) -> str:
    return words(build_study(found).split("<body>")[1])


def test_the_recommendation_and_its_commands_come_first() -> None:
    found = fake.study()
    html = build_study(found)
    check_page(html)
    text, best = words(html), found["recommendation"]
    assert text.index(f"Recommended: {best['name']} (") < text.index("imbdiff classify RUN") < text.index("The grid")
    assert f"the highest of 27 compared on validation images, against 0.660 of {best['control']}" in text
    assert 'class="verdict good"' in html
    assert html.count('class="plot"') == 1


def test_the_test_images_are_shown_for_two_arms_only() -> None:
    text = text_of(fake.study())
    assert "On 2000 test images, read after this choice and for these two only" in text
    assert "helped: +3.1 (+1.2 to +5.1)" in text
    assert text.count("0.765") == text.count("0.732") == 1
    assert "fewer than 20 test images" in text
    for found in (fake.study(recommendation=None, test=None), fake.study()):
        found["why_not"] = {"reason": "r", "remedy": "s"}
        assert ('id="test"' in build_study(found)) == (found["test"] is not None)


def test_rows_are_sorted_by_validation_score_with_images_that_are_missing() -> None:
    found = fake.study()
    (rows,) = tables(page._grid(found, sorted(found["rows"], key=lambda row: -page.score(row))))
    order = sorted((r["validation"]["mean"]["balanced"] for r in found["rows"]), reverse=True)
    assert [row[5] for row in rows] == [f"{v:.3f} ± 0.012" for v in order]
    assert any(row[4].endswith("of 5,400; 4 classes short") for row in rows)
    assert sum("recommended" in row[0] for row in rows) == sum("best without" in row[0] for row in rows) == 1


def test_the_adjustment_of_every_arm_is_shown_with_how_it_was_chosen() -> None:
    found = fake.study()
    shown = page._grid(found, found["rows"])
    (rows,) = tables(shown)
    assert {row[-1] for row in rows} == {"0.40"}  # of 0.2, 0.4 and 0.6
    assert "chosen on 107 validation images" in text_of_section(shown)
    for row in found["rows"]:  # none was trained
        row["decisions"] = []
    assert {row[-1] for row in tables(page._grid(found, found["rows"]))[0]} == {"–"}


def test_no_synthetic_images_recommended() -> None:
    found = fake.study()
    found["recommendation"] |= {"name": "balanced softmax", "score": 0.9, "equal": ["0.5: CE"]}
    found["test"] = {"numbers": {"balanced softmax": numbers(0.7321)}, "scopes": None}
    text = text_of(found)
    assert "Recommended: balanced softmax (0 synthetic images). Balanced accuracy 0.900" in text
    assert "the best with synthetic images" in text
    assert "there is nothing to compare on the test images" in text
    assert "Equal to the recommended one: 0.5: CE." in text


def test_no_recommendation_names_classes_and_remedy() -> None:
    why = {"reason": f"1000 classes have no validation image: {HOSTILE[0]}.", "remedy": "A larger --data.val_fraction."}
    html = build_study(fake.study(recommendation=None, test=None, missing=["a"] * 1000, why_not=why, apply=[]))
    check_page(html)
    assert f"No recommendation: {why['reason']} {why['remedy']}" in words(html)


@pytest.mark.parametrize(("n", "times", "warned"), [(1, "once", False), (3, "3 times", True)])
def test_how_often_results_on_test_images_were_read_is_said(n: int, times: str, warned: bool) -> None:
    text = text_of(fake.study(readings=[{}] * n))
    assert f"were read {times} in this folder" in text
    assert ("flatters the difference" in text) == warned


def test_what_curation_kept_is_counted() -> None:
    row = {"policy": "diverse", "file": "diverse-0.json", "reasons": {"kept": 6, "near copy": 42},
           "wanted": 9, "candidates": 48, "kept": 6}  # fmt: skip
    html = build_study(fake.study(curated=[{**row, "number": f"{n} {HOSTILE[0]}"} for n in range(250)]))
    check_page(html)
    text = words(html)
    assert f"diverse 0 {HOSTILE[0]} 9 48 6 near copies 42 diverse-0.json" in text
    assert "50 more rows are in study.json" in text
    assert 'id="curation"' not in build_study(fake.study())


def test_cells_without_result_are_said_and_not_plotted(shown: list[Any]) -> None:
    found = fake.study()
    found["rows"][-1] |= {"images": 0, "validation": None, "reason": "curation left no image"}
    text = text_of(found)
    assert "curation left no image" in text
    assert "26 compared" in text
    assert sum(len(own) for own in shown[0][0].values()) == 23


def test_lines_join_the_numbers_of_one_way_of_using_them(shown: list[Any]) -> None:
    assert "Shown are" not in text_of(fake.study(weights=("weight 1",)))
    lines, without, scopes = shown[0]
    assert scopes == ["balanced accuracy", "many", "medium", "few"]
    assert set(lines) == {
        "CE", "CE, agreement+no-copies", "balanced softmax", "balanced softmax, agreement+no-copies",
    }  # fmt: skip
    assert [row["images"] for row in lines["CE, agreement+no-copies"]] == [720, 1840, 4320]
    assert [row["name"] for row in without] == ["balanced softmax", "CE + class-balanced resampling", "CE"]
    assert lines_of([]) == {}


def test_more_lines_rows_and_groups_than_fit_are_left_out_and_said(
    shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MAX_ROWS", 20)
    found = fake.study(weights=("weight 1", "weight 0.5", "weight 0.2"))
    found["rows"] += [fake._arm(f"recipe {i}", 0.3) for i in range(3)]
    found["groups"] = [*fake.GROUPS, *(f"g{i}" for i in range(9))]
    text = text_of(found)
    assert [len(part) for part in shown[0]] == [8, 3, 6]
    for said in (
        "Shown are 8 of 12 lines", "Shown are 3 of 6 arms without synthetic images", "22 more rows", "4 more groups",
    ):  # fmt: skip
        assert said in text


def test_every_line_of_the_plot_can_be_told_apart_without_colour() -> None:
    for values in zip(*page.STYLES, strict=True):
        assert len(set(values)) == len(page.STYLES)
    assert len(set(map(str, page.DASHES))) == page.MAX_LEVELS


def test_the_plot_has_means_bars_and_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(images: int, mean: dict[str, Any], sd: dict[str, Any]) -> dict[str, Any]:
        blocks = {what: {"balanced": 0.0, "groups": values} for what, values in (("mean", mean), ("sd", sd))}
        return {"name": "CE", "images": images, "validation": blocks}

    line = [row(10, {"a": 0.5, "b": None}, {"a": 0.1, "b": None}), row(30, {"a": 0.7}, {"a": None})]
    level = row(0, {"a": 0.4, "b": 0.3}, {})
    first, second = axes_of(monkeypatch, lambda: study_plot({"$x": line}, [level], ["a", "b"]))
    drawn = [np.round(one.get_xydata(), 6).tolist() for one in first.lines if len(one.get_xydata())]
    assert [[10, 0.5], [30, 0.7]] in drawn
    (bars,) = first.collections
    assert np.round(bars.get_segments()[0], 6).tolist() == [[10, 0.4], [10, 0.6]]
    for axes, value in ((first, 0.4), (second, 0.3)):
        assert any(set(np.round(one.get_ydata(), 6)) == {value} for one in axes.lines if len(one.get_ydata()))
    (legend,) = first.figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["$x", "without synthetic images: CE"]
    assert not any(t.get_parse_math() for t in legend.get_texts())
