"""The page of a study, from what study.json holds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from imbdiff.reporting import study as page
from imbdiff.reporting import study_plot
from imbdiff.reporting.curated import section
from imbdiff.reporting.plots import LIGHT, Plot
from imbdiff.reporting.study import Board, build_study
from tests.reporting.test_curated import HOSTILE, _data

GROUPS = ("many", "medium", "few")


def numbers(base: float, seeds: int = 3, sd: float = 0.012) -> dict[str, Any]:
    values = [round(base + sd * (i - 1), 4) for i in range(seeds)]
    by_group = {g: round(base + d, 4) for g, d in zip(GROUPS, (0.13, 0.02, -0.16), strict=True)}
    return {
        "mean": {"balanced": base, "accuracy": base + 0.01, "groups": by_group},
        "sd": {"balanced": sd, "accuracy": sd, "groups": dict.fromkeys(GROUPS, 2 * sd)},
        "seeds": values,
    }


def arm(name: str, base: float) -> dict[str, Any]:
    return {
        "name": name, "number": None, "wanted": 0, "images": 0, "short": 0, "curation": None, "recipe": name,
        "label": name, "use": None, "reason": None, "validation": numbers(base),
    }  # fmt: skip


def cell(number: str, wanted: int, images: int, curation: str, label: str, base: float, use: str) -> dict[str, Any]:
    return {
        "name": f"{number}, {curation}: {label}, {use}", "number": number, "wanted": wanted, "images": images,
        "short": 4 if images < wanted else 0, "curation": curation, "recipe": label, "label": label,
        "use": {"words": use}, "reason": None, "validation": numbers(base),
    }  # fmt: skip


def fake_study(weights: tuple[str, ...] = ("weight 1", "weight 0.5"), **changes: Any) -> dict[str, Any]:
    """A grid of 3 numbers, 2 curations, 2 recipes and the weights; the best cell adds 4,200 images."""
    rows = [arm("CE", 0.61), arm("CE + class-balanced resampling", 0.63), arm("balanced softmax", 0.66)]
    random = np.random.default_rng(0)
    for number, wanted in (("0.25", 900), ("0.5", 2300), ("1.0", 5400)):
        for curation, share in (("none", 1.0), ("agreement+no-copies", 0.8)):
            for label, gain in (("CE", 0.0), ("balanced softmax", 0.03)):
                for use in weights:
                    base = 0.62 + gain + wanted / 5400 * 0.05 + 0.01 * (share < 1) + random.normal(0, 0.004)
                    rows.append(cell(number, wanted, int(share * wanted), curation, label, round(base, 4), use))
    best = max(rows, key=lambda r: r["validation"]["mean"]["balanced"])
    scopes = {
        "all": {"n": 2000, "difference": 0.031, "low": 0.012, "high": 0.051, "reason": None},
        "many": {"n": 700, "difference": -0.004, "low": -0.018, "high": 0.009, "reason": None},
        "medium": {"n": 700, "difference": 0.021, "low": 0.001, "high": 0.04, "reason": None},
        "few": {"n": 12, "difference": None, "low": None, "high": None, "reason": "fewer than 20 test images"},
    }
    found = {
        "schema": "imbdiff-study/1",
        "run": "runs/digits-ddpm-0",
        "source": "digits",
        "grid": {"numbers": ["0.25", "0.5", "1.0"], "seeds": 3},
        "protocol": {"network": "resnet-small", "steps": 500, "seeds": [0, 1, 2], "n_val": 110, "n_test": 2000},
        "groups": list(GROUPS),
        "rows": rows,
        "missing": [],
        "recommendation": {
            "name": best["name"], "score": best["validation"]["mean"]["balanced"], "control": "balanced softmax",
            "control_score": 0.66, "compared": len(rows), "equal": [], "rule": "the highest",
        },
        "test": {"numbers": {best["name"]: numbers(0.7654), "balanced softmax": numbers(0.7321)}, "scopes": scopes},
        "exploratory": None,
        "why_not": None,
        "apply": ["imbdiff sample RUN --sample.strategy 1.0", "imbdiff classify RUN --classify.synthetic ce"],
        "command": "imbdiff study runs/digits-ddpm-0 --numbers 0.25 0.5 1.0",
        "seconds": 1234.5,
    }  # fmt: skip
    return {**found, **changes}


@pytest.fixture(scope="module")
def whole() -> str:
    return build_study(fake_study())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is handed to the plot, in place of drawing it."""
    calls: list[tuple[Any, ...]] = []

    def keep(*arguments: Any) -> Plot:
        calls.append(arguments)
        return Plot("alt", "data:,", "data:,", 1, 1)

    monkeypatch.setattr(page, "sweep_plot", keep)
    return calls


LOOK = {"recommended": "a", "control": "b", "grid": "0" * 64, "cells": 24, "revealed": False}


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("<body>")[1])).replace("&#39;", "'")


def test_the_recommendation_and_its_commands_come_first_and_nothing_is_loaded(whole: str) -> None:
    text = text_of(whole)
    best = fake_study()["recommendation"]
    assert text.index(f"Recommended: {best['name']} (") < text.index("imbdiff classify RUN") < text.index("The grid")
    assert f"against 0.660 of {best['control']}" in text
    assert "the highest of 27 compared on validation images" in text
    assert "27 compared" in text
    assert not re.search(r"https?://|url\((?!data:)", whole)
    assert whole.count("<picture") == 1
    assert "prefers-color-scheme: dark" in whole


def test_the_test_images_are_shown_for_two_names_only(whole: str) -> None:
    text = text_of(whole)
    assert "On 2000 test images, looked at after this choice and for these two only: +3.1 (+1.2 to +5.1) points" in text
    assert text.count("0.765") == 1
    assert text.count("0.732") == 1
    assert "fewer than 20 test images" in text
    assert "exploratory" not in text.lower()


def test_rows_are_sorted_by_validation_score_with_images_that_are_missing(whole: str) -> None:
    found = fake_study()
    order = sorted((r["validation"]["mean"]["balanced"] for r in found["rows"]), reverse=True)
    table = whole[whole.index('<section id="grid">') :].split("</table>")[0]
    shown = re.findall(r'title="seeds: [^"]*">([\d.]+) <small>± 0.012', table)
    assert [float(v) for v in shown] == pytest.approx([round(v, 3) for v in order], abs=1e-9)
    assert "of 5,400; 4 classes short" in text_of(whole)
    assert table.count("recommended</span>") == table.count("best without</span>") == 1


@pytest.mark.parametrize(("low", "high", "tone"), [(0.01, 0.05, "good"), (-0.05, -0.01, "bad"), (-0.01, 0.05, "same")])
def test_the_tone_is_that_of_the_test_images(drawn: list[Any], low: float, high: float, tone: str) -> None:
    found = fake_study()
    found["test"]["scopes"]["all"] |= {"low": low, "high": high}
    assert f'class="verdict {tone}"' in build_study(found)


def test_no_synthetic_images_recommended(drawn: list[Any]) -> None:
    found = fake_study()
    found["recommendation"] |= {"name": "balanced softmax", "score": 0.9, "equal": ["0.5: CE"]}
    found["test"] = {"numbers": {"balanced softmax": numbers(0.7321)}, "scopes": None}
    text = text_of(build_study(found))
    assert "Recommended: no synthetic images. balanced softmax has a balanced accuracy of 0.900, against 0.7" in text
    assert "there is nothing to compare on the test images" in text
    assert "Equal to the recommended one: 0.5: CE." in text


def test_no_recommendation_names_classes_and_remedy(drawn: list[Any]) -> None:
    classes = [f"<script>{i}</script>" for i in range(1000)]
    why = {"reason": "1000 classes have no validation image.", "remedy": "A larger --data.val_fraction."}
    found = fake_study(recommendation=None, test=None, missing=classes, why_not=why, apply=[])
    html = build_study(found)
    text = text_of(html)
    assert "No recommendation: 1000 classes have no validation image. A larger --data.val_fraction." in text
    assert html.count("&lt;script&gt;") == 2 * page.MAX_MISSING  # as text and as title
    assert "<script>0" not in html
    assert "and 950 more" in text
    assert "test images not looked at" in text
    assert 'id="test"' not in html
    assert all(not level.control for level in drawn[0][1])


def test_revealed_numbers_stand_apart(drawn: list[Any]) -> None:
    rows = [{"name": f"cell {i}", "numbers": numbers(0.6 + i / 1000)} for i in range(27)]
    text = text_of(build_study(fake_study(exploratory={"compared": 27, "rows": rows})))
    assert "Exploratory: all of them on the test images" in text
    assert "27 compared, in the order of the grid. These numbers chose nothing" in text
    assert "cell 26 0.626" in text
    # nothing says of the finalists that they alone were looked at
    assert "for the recommended" not in text
    assert "for these two only" not in text
    assert "chosen on validation images. All others were looked at after the choice as well" in text
    assert "test images looked at after the choice" in text


def test_how_often_the_test_images_were_looked_at_is_said(drawn: list[Any]) -> None:
    one = text_of(build_study(fake_study(looks=[LOOK])))
    assert "The test images were looked at once in this folder." in one
    three = text_of(build_study(fake_study(looks=[LOOK] * 3)))
    assert "The test images were looked at 3 times in this folder: whoever saw" in three
    assert "in this folder" not in text_of(build_study(fake_study(looks=[])))


def test_corrected_groups_are_said_to_be_and_options_have_their_names(whole: str) -> None:
    text = text_of(whole)
    assert "Those of groups are corrected for their number by Holm's method" in text
    assert "grid.numbers" in text
    assert "grid.." not in text


def test_what_curation_kept_is_counted_and_shown_by_policy(drawn: list[Any]) -> None:
    data = _data()
    shown = section(data, rarest=2, others=1)
    assert shown is not None
    assert (shown.rarest, shown.others, len(shown.strips)) == (2, 1, 3)
    row = {"policy": "diverse", "number": "0.5", "file": "diverse-0.json", "reasons": {"kept": 6, "near copy": 42},
           "wanted": 9, "candidates": 48, "kept": 6}  # fmt: skip
    rows = [{**row, "number": f"{n} {HOSTILE}"} for n in range(250)]
    html = build_study(fake_study(curated=rows), [Board("diverse", "0.5", "curation/diverse-0.json", shown)])
    text = text_of(html)
    assert "diverse 0 &lt;script&gt;alert(1)&lt;/script&gt; 9 48 6 near copies 42" in text
    assert "50 more rows are in study.json" in text
    assert "diverse, for 0.5" in text
    assert "curation/diverse-0.json" in text
    assert html.count('id="curation"') == html.count('id="curation-1"') == 1
    assert HOSTILE not in html
    assert 'id="curation"' not in build_study(fake_study())


def test_cells_without_result_are_told_and_not_drawn(drawn: list[Any]) -> None:
    found = fake_study()
    empty = {**found["rows"][-1], "images": 0, "validation": None, "reason": "curation left no image"}
    found["rows"][-1] = empty
    text = text_of(build_study(found))
    assert "curation left no image" in text
    assert "26 compared" in text
    assert sum(len(line.points) for line in drawn[0][0]) == 23


def test_lines_join_the_numbers_of_one_way_of_using_them(drawn: list[Any]) -> None:
    text = text_of(build_study(fake_study(weights=("weight 1",))))
    lines, levels, scopes = drawn[0]
    assert scopes == ["mean over classes", "many", "medium", "few"]
    assert {line.name for line in lines} == {
        "CE", "CE, agreement+no-copies", "balanced softmax", "balanced softmax, agreement+no-copies",
    }  # fmt: skip
    (line,) = [line for line in lines if line.name == "CE, agreement+no-copies"]
    assert [point[0] for point in line.points] == [720, 1840, 4320]
    assert [level.name for level in levels] == ["balanced softmax", "CE + class-balanced resampling", "CE"]
    assert [level.control for level in levels] == [True, False, False]
    assert "Drawn are" not in text


def test_more_lines_and_rows_than_fit_are_left_out_and_said(drawn: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_ROWS", 20)
    found = fake_study(weights=("weight 1", "weight 0.5", "weight 0.2"))
    found["rows"] += [arm(f"recipe {i}", 0.3) for i in range(3)]
    text = text_of(build_study(found))
    lines, levels, _ = drawn[0]
    assert (len(lines), len(levels)) == (8, 3)
    assert "Drawn are the 8 of 12 lines with the highest points" in text
    assert "Drawn are the best 3 of 6 arms without synthetic images" in text
    assert "22 more rows, with lower accuracies, are in study.json" in text


def test_many_groups_are_capped(drawn: list[Any]) -> None:
    found = fake_study()
    found["groups"] = [*GROUPS, *(f"g{i}" for i in range(9))]
    text = text_of(build_study(found))
    assert len(drawn[0][2]) == 6
    assert "Drawn are 5 of 12 groups" in text
    assert "4 more groups are in study.json" in text


def test_every_line_of_the_plot_can_be_told_apart_without_colour() -> None:
    n = study_plot.MAX_LINES
    assert len(set(study_plot.MARKERS)) == len(study_plot.COLOURS) == n
    assert len({light for light, _ in study_plot.COLOURS}) == len({dark for _, dark in study_plot.COLOURS}) == n
    assert len(study_plot.LEVELS) == study_plot.MAX_LEVELS


def test_the_plot_draws_means_bars_and_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []

    def keep(alt: str, draw: Any, size: tuple[int, int], narrow: tuple[int, int]) -> Any:
        figures.append(Figure(figsize=(size[0] / 96, size[1] / 96)))
        draw(figures[0], LIGHT)
        return alt

    monkeypatch.setattr(study_plot, "plot", keep)
    line = study_plot.Line("$x", ((10, {"a": 0.5, "b": None}, {"a": 0.1, "b": None}), (30, {"a": 0.7}, {"a": None})))
    alt = study_plot.sweep_plot([line], [study_plot.Level("CE", {"a": 0.4, "b": 0.3}, True)], ["a", "b"])
    assert "for a, b" in str(alt)
    first, second = figures[0].axes
    data = [np.array(drawn.get_xydata()).tolist() for drawn in first.lines if len(drawn.get_xydata())]
    assert [[10, 0.4], [10, 0.6]] in [np.round(d, 6).tolist() for d in data]
    assert [[10, 0.5], [30, 0.7]] in [np.round(d, 6).tolist() for d in data]
    assert any(set(np.round(drawn.get_ydata(), 6)) == {0.4} for drawn in first.lines if len(drawn.get_ydata()))
    assert any(set(np.round(drawn.get_ydata(), 6)) == {0.3} for drawn in second.lines if len(drawn.get_ydata()))
    (legend,) = figures[0].legends
    assert [t.get_text() for t in legend.get_texts()] == ["$x", "without synthetic images: CE"]
    assert not any(t.get_parse_math() for t in legend.get_texts())
