"""The page of a study, from what study.json holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imbdiff.reporting import study as page
from imbdiff.reporting.study import Curated, Level, Line, accuracy_plot, build_study, differences, lines_of

from . import fake
from .fake import _accuracies as numbers
from .looking import HOSTILE, axes_of, check_page, words

LOOK = {"recommended": "a", "control": "b", "grid": "0" * 64, "cells": 24, "revealed": False}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is handed to the plot."""
    calls: list[Any] = []
    original = accuracy_plot
    monkeypatch.setattr(page, "accuracy_plot", lambda *given: calls.append(given) or original(*given))
    return calls


def text_of(found: dict[str, Any], curated: Any = ()) -> str:
    return words(build_study(found, curated).split("<body>")[1])


def rows_by_score(found: dict[str, Any]) -> list[Any]:
    return sorted(found["rows"], key=lambda row: -page._score(row))


def test_the_recommendation_and_its_commands_come_first() -> None:
    found = fake.study()
    html = build_study(found)
    check_page(html)
    text, best = words(html), found["recommendation"]
    assert text.index(f"Recommended: {best['name']} (") < text.index("imbdiff classify RUN") < text.index("The grid")
    assert f"against 0.660 of {best['control']}" in text
    assert "the highest of 27 compared on validation images" in text
    assert "27 compared" in text
    assert html.count("<picture") == 1


def test_the_test_images_are_shown_for_two_names_only() -> None:
    text = text_of(fake.study())
    assert "On 2000 test images, looked at after this choice and for these two only: +3.1 (+1.2 to +5.1) points" in text
    assert text.count("0.765") == text.count("0.732") == 1
    assert "fewer than 20 test images" in text
    assert "exploratory" not in text.lower()
    assert "Those of groups are corrected for their number by Holm's method" in text
    assert "grid.numbers" in text
    assert [d.tone for d in differences(fake.study()["test"])] == ["good", "same", "good", "none"]


def test_rows_are_sorted_by_validation_score_with_images_that_are_missing() -> None:
    found = fake.study()
    section = page._grid(found, rows_by_score(found))
    from .looking import tables

    (rows,) = tables(section)
    order = sorted((r["validation"]["mean"]["balanced"] for r in found["rows"]), reverse=True)
    assert [row[5] for row in rows] == [f"{v:.3f} ± 0.012" for v in order]
    assert any(row[4].endswith("of 5,400; 4 classes short") for row in rows)
    assert sum("recommended" in row[0] for row in rows) == sum("best without" in row[0] for row in rows) == 1


@pytest.mark.parametrize(("low", "high", "tone"), [(0.01, 0.05, "good"), (-0.05, -0.01, "bad"), (-0.01, 0.05, "same")])
def test_the_tone_is_that_of_the_test_images(low: float, high: float, tone: str) -> None:
    found = fake.study()
    found["test"]["scopes"]["all"] |= {"low": low, "high": high}
    assert f'class="verdict {tone}"' in build_study(found)


def test_no_synthetic_images_recommended() -> None:
    found = fake.study()
    found["recommendation"] |= {"name": "balanced softmax", "score": 0.9, "equal": ["0.5: CE"]}
    found["test"] = {"numbers": {"balanced softmax": numbers(0.7321)}, "scopes": None}
    text = text_of(found)
    assert "Recommended: no synthetic images. balanced softmax has a balanced accuracy of 0.900, against 0.7" in text
    assert "there is nothing to compare on the test images" in text
    assert "Equal to the recommended one: 0.5: CE." in text


def test_no_recommendation_names_classes_and_remedy(shown: list[Any]) -> None:
    classes = [f"{HOSTILE[0]} {i}" for i in range(1000)]
    why = {"reason": "1000 classes have no validation image.", "remedy": "A larger --data.val_fraction."}
    html = build_study(fake.study(recommendation=None, test=None, missing=classes, why_not=why, apply=[]))
    check_page(html)
    text = words(html)
    assert "No recommendation: 1000 classes have no validation image. A larger --data.val_fraction." in text
    assert text.count(HOSTILE[0]) == page.MAX_MISSING
    assert "and 950 more" in text
    assert "test images not looked at" in text
    assert 'id="test"' not in html
    assert all(not level.control for level in shown[0][1])


def test_revealed_numbers_are_apart() -> None:
    rows = [{"name": f"cell {i}", "numbers": numbers(0.6 + i / 1000)} for i in range(27)]
    text = text_of(fake.study(exploratory={"compared": 27, "rows": rows}))
    assert "27 compared, in the order of the grid. These numbers chose nothing" in text
    assert "cell 26 0.626" in text
    # nothing says of the finalists that they alone were looked at
    assert "for the recommended" not in text
    assert "for these two only" not in text
    assert "chosen on validation images. All others were looked at after the choice as well" in text


def test_how_often_the_test_images_were_looked_at_is_said() -> None:
    assert "The test images were looked at once in this folder." in text_of(fake.study(looks=[LOOK]))
    assert "The test images were looked at 3 times in this folder: whoever" in text_of(fake.study(looks=[LOOK] * 3))
    assert "in this folder" not in text_of(fake.study(looks=[]))


def test_what_curation_kept_is_counted_and_shown_by_policy() -> None:
    row = {"policy": "diverse", "number": "0.5", "file": "diverse-0.json", "reasons": {"kept": 6, "near copy": 42},
           "wanted": 9, "candidates": 48, "kept": 6}  # fmt: skip
    found = fake.study(curated=[{**row, "number": f"{n} {HOSTILE[0]}"} for n in range(250)])
    html = build_study(found, [Curated("diverse", "0.5", "curation/diverse-0.json", fake.curated(9, 20))])
    check_page(html)
    text = words(html)
    assert f"diverse 0 {HOSTILE[0]} 9 48 6 near copies 42" in text
    assert "50 more rows are in study.json" in text
    assert "diverse, for 0.5" in text
    assert "curation/diverse-0.json" in text
    assert html.count('class="shelf named"') == page.RAREST + page.OTHERS
    assert 'id="curation"' not in build_study(fake.study())


def test_cells_without_result_are_said_and_not_plotted(shown: list[Any]) -> None:
    found = fake.study()
    found["rows"][-1] |= {"images": 0, "validation": None, "reason": "curation left no image"}
    text = text_of(found)
    assert "curation left no image" in text
    assert "26 compared" in text
    assert sum(len(line.points) for line in shown[0][0]) == 23


def test_lines_join_the_numbers_of_one_way_of_using_them(shown: list[Any]) -> None:
    text = text_of(fake.study(weights=("weight 1",)))
    lines, levels, scopes = shown[0]
    assert scopes == ["mean over classes", "many", "medium", "few"]
    assert {line.name for line in lines} == {
        "CE", "CE, agreement+no-copies", "balanced softmax", "balanced softmax, agreement+no-copies",
    }  # fmt: skip
    (line,) = [line for line in lines if line.name == "CE, agreement+no-copies"]
    assert [point[0] for point in line.points] == [720, 1840, 4320]
    assert [level.name for level in levels] == ["balanced softmax", "CE + class-balanced resampling", "CE"]
    assert [level.control for level in levels] == [True, False, False]
    assert "Shown are" not in text


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
        "Shown are the 8 of 12 lines with the highest points", "Shown are the best 3 of 6 arms without synthetic",
        "22 more rows, with lower accuracies, are in study.json", "Shown are 5 of 12 groups",
        "4 more groups are in study.json",
    ):  # fmt: skip
        assert said in text


def test_every_line_of_the_plot_can_be_told_apart_without_colour() -> None:
    n = page.MAX_LINES
    assert len(set(page.MARKERS)) == len(page.COLOURS) == n
    assert len({light for light, _ in page.COLOURS}) == len({dark for _, dark in page.COLOURS}) == n
    assert len(page.LEVELS) == page.MAX_LEVELS


def test_the_plot_has_means_bars_and_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line("$x", ((10, {"a": 0.5, "b": None}, {"a": 0.1, "b": None}), (30, {"a": 0.7}, {"a": None})))
    level = Level("CE", {"a": 0.4, "b": 0.3}, True)
    first, second = axes_of(monkeypatch, lambda: accuracy_plot([line], [level], ["a", "b"]))
    data = [np.round(one.get_xydata(), 6).tolist() for one in first.lines if len(one.get_xydata())]
    assert [[10, 0.4], [10, 0.6]] in data
    assert [[10, 0.5], [30, 0.7]] in data
    assert any(set(np.round(one.get_ydata(), 6)) == {0.4} for one in first.lines if len(one.get_ydata()))
    assert any(set(np.round(one.get_ydata(), 6)) == {0.3} for one in second.lines if len(one.get_ydata()))
    (legend,) = first.figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["$x", "without synthetic images: CE"]
    assert not any(t.get_parse_math() for t in legend.get_texts())
    assert lines_of([]) == []
