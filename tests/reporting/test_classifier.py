"""What classifiers recognise, on the page: the verdict, columns, plots and the table of classes."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from imbdiff.data.stats import ClassStats
from imbdiff.recognition.arms import PRIMARY as STORED
from imbdiff.reporting import classifier as module
from imbdiff.reporting.answer import arm_text, comparisons
from imbdiff.reporting.blocks import Cell, Section, Table, Text
from imbdiff.reporting.classifier import (
    LINE,
    Arm,
    accuracy_plot,
    arms_of,
    classifiers,
    difference_text,
    no_loss,
    pair,
    points,
    value_of,
    verdict,
    verdict_sentence,
)  # fmt: skip
from imbdiff.reporting.content import ReportData

from . import fake
from .looking import HOSTILE, axes_of, blocks_of, check_page, page_of, tables, text_of, words

PRIMARY = arm_text(STORED)


@pytest.fixture(scope="module")
def data() -> ReportData:
    return fake.trained(ClassStats(tuple("0123456789"), fake.COUNTS))


@pytest.fixture(scope="module")
def found(data: ReportData) -> dict[str, Any]:
    assert data.classifier is not None
    return dict(data.classifier)


@pytest.fixture(scope="module")
def arms(found: dict[str, Any]) -> list[Arm]:
    return arms_of(found)


def section(data: ReportData) -> Section:
    return classifiers(data, "RUN")


@pytest.mark.parametrize(
    ("results", "tone"),
    [(("helped", "no difference"), "good"), (("hurt", "no difference"), "bad"), (("helped", "hurt"), "mixed"),
     (("no difference", "not measured"), "same"), (("not measured", "not measured"), "none")],
)  # fmt: skip
def test_tone_of_the_verdict_follows_its_groups(results: tuple[str, str], tone: str) -> None:
    groups = dict(zip("ab", ({"outcome": o} for o in results), strict=True))
    assert verdict_sentence({"verdict": {"sentence": "s", "per_group": groups}}) == ("s", tone)
    assert verdict_sentence(None)[0] == ""


def test_comparisons_are_printed_in_points_or_say_why_there_are_none(data: ReportData, found: dict[str, Any]) -> None:
    rows = comparisons({"all": fake.compared(600, "hurt", -0.038, -0.061, -0.014),
                        "few": {**fake.compared(13, "not measured"), "reason": "13 test images"}})  # fmt: skip
    assert [difference_text(row) for row in rows.values()] == ["−3.8 (−6.1 to −1.4)", "13 test images"]
    every = next(t for t in tables(section(data)) if t[0][:2] == [PRIMARY, "all"])
    row = next(row for row in every if row[:2] == ["synthetic + CE", "few"])
    few = comparisons(found["verdict"]["other_arms"]["synthetic + CE"])["few"]
    assert row[2:] == [few.outcome, difference_text(few), few.against, str(few.n), module.number(few.p_adjusted)]
    assert len(every) == 4 * sum(arm["needs_synthetic"] for arm in found["arms"])


@pytest.mark.parametrize(("low", "said"), [(-0.004, "is ruled out"), (-0.02, "overall is not ruled out")])
def test_whether_anything_is_lost_overall_is_said(low: float, said: str) -> None:
    text = no_loss({"margin": 0.01, "shown": low > -0.01, "low": low})
    assert f"{said} (the interval starts at {points(low)})" in text


def heads(table: Table) -> list[str]:
    return [head if isinstance(head, str) else head.text for head in table.columns]


def row_of(section: Section, arm: str, table: int = 0) -> list[str]:
    """The row of an arm, whose name may be followed by badges and small print."""
    names = [row[0] for row in tables(section)[table]]
    return tables(section)[table][max(i for i, name in enumerate(names) if f"{name} ".startswith(f"{arm} "))]


def test_columns_are_those_that_the_field_reports(data: ReportData, found: dict[str, Any]) -> None:
    shown = section(data)
    first, second = blocks_of(shown, Table)[:2]
    assert heads(first) == [
        "arm", "balanced accuracy", "all (top-1)", "many", "medium", "few", "adjustment τ", "ECE ↓"
    ]  # fmt: skip
    assert heads(second) == ["arm", "Std of groups ↓", "macro-F1"]
    arm = next(row for row in found["arms"] if row["name"] == "balanced softmax")
    row, more = row_of(shown, "balanced softmax best control"), row_of(shown, "balanced softmax best control", 1)
    for cell, key in (
        (row[1], "balanced_accuracy"), (row[2], "accuracy"), (row[7], "ece"), (more[1], "group_sd"),
        (more[2], "macro_f1"),
    ):  # fmt: skip
        assert cell == f"{arm['mean'][key]:.3f} ± {arm['sd'][key]:.3f}"
    few = [run["groups"]["few"] for run in arm["runs"]]
    assert row[5] == f"{np.mean(few):.3f} ± {np.std(few, ddof=1):.3f}"
    assert row[6] == "0.40"  # of 0.2, 0.4 and 0.6
    assert row_of(shown, f"{PRIMARY} synthetic, judged")[0].endswith("judged")
    assert [row[0].style for row in first.rows if isinstance(row[0], Cell)].count("control") == 1


def test_arms_stand_by_kind_and_what_a_kind_costs_is_said(data: ReportData, found: dict[str, Any]) -> None:
    rows = copy.deepcopy(found["arms"])
    rows.insert(0, {**rows[-1], "name": "pupil", "members": [], "teacher": rows[-1]["name"]})
    of: dict[str, set[str]] = {"Single": set(), "Ensembles": set(), "Distilled": set()}
    for row in rows:
        of["Ensembles" if row["members"] else "Distilled" if row["teacher"] else "Single"].add(arm_text(row["name"]))
    names = [row[0] for row in tables(section(replace(data, classifier={**found, "arms": rows})))[0]]
    at = {kind: next(i for i, name in enumerate(names) if name.startswith(f"{kind} ")) for kind in of}
    assert list(at.values()) == sorted(at.values())
    assert "4 networks" in names[at["Ensembles"]]
    ends = [*list(at.values())[1:], len(names)]
    for (kind, wanted), end in zip(of.items(), ends, strict=True):
        own = names[at[kind] + 1 : end]
        assert len(own) == len(wanted)
        assert {max((name for name in wanted if one.startswith(name)), key=len) for one in own} == wanted
    single = [row for row in rows if arm_text(row["name"]) in of["Single"]]
    alone = tables(section(replace(data, classifier={**found, "arms": single})))[0]
    assert len(alone) == len(single), "no line above a single kind"


def test_what_placebo_and_strong_augmentation_are_for_is_said_where_they_are(
    data: ReportData, found: dict[str, Any]
) -> None:
    def text(leave: tuple[str, ...]) -> str:
        rows = [row for row in found["arms"] if not any(word in row["name"] for word in leave)]
        return text_of(section(replace(data, classifier={**found, "arms": rows})))

    every = text(())
    assert "the placebo, sees real images again" in every
    assert "“strong augmentation” rotates" in every
    assert "the placebo" not in text(("repeated real",))
    assert "“strong augmentation” rotates" not in text(("strong",))
    assert "what else may explain" not in text(("repeated real", "strong"))


@pytest.mark.parametrize(
    ("decision", "said"),
    [({"tau": 0.2, "chosen_by": "chosen on 107 validation images"}, "chosen on 107 validation images"),
     ({"tau": 0.0, "chosen_by": f"not adjusted: there are no validation images of {HOSTILE[0]}"},
      f"no validation images of {HOSTILE[0]}"),
     ({"tau": 0.0, "chosen_by": ""}, "--classify.adjust")],
)  # fmt: skip
def test_how_the_adjustment_was_chosen_or_why_it_was_not(
    data: ReportData, found: dict[str, Any], decision: dict[str, Any], said: str
) -> None:
    rows = [{**row, "decisions": [{"temperature": 1.0, **decision}] * 3} for row in found["arms"]]
    html = page_of(section(replace(data, classifier={**found, "arms": rows})))
    check_page(html)
    assert said in text_of(section(replace(data, classifier={**found, "arms": rows})))


def test_the_section_starts_with_what_came_out(data: ReportData, found: dict[str, Any]) -> None:
    whole = comparisons(found["verdict"]["per_group"])["all"]
    first = section(data).blocks[0]
    assert isinstance(first, Text)
    for part in (difference_text(whole), PRIMARY, str(whole.against)):
        assert part in words(first.text)
    alone = copy.deepcopy(found)
    alone["verdict"] |= {"per_group": {}, "other_arms": {}, "sentence": "There are no synthetic images."}
    assert text_of(section(replace(data, classifier=alone))).count("There are no synthetic images.") == 1


def test_a_group_called_like_a_number_keeps_its_accuracy(arms: list[Arm]) -> None:
    assert value_of(replace(arms[0].mean, groups={"ECE": 0.7}), "ECE") == 0.7
    assert value_of(arms[0].mean, "ECE") == arms[0].mean.ece


def test_several_controls_are_all_marked_and_the_best_is_shown_by_class(data: ReportData) -> None:
    several = fake.trained(data.stats, controls=True)
    shown = section(several)
    arms = arms_of(several.classifier)
    controls = [arm for arm in arms if not arm.synthetic]
    marked = [row[0] for row in tables(shown)[0] if " control" in row[0]]
    assert [text.split(" control")[0] for text in marked] == [arm.name for arm in controls]
    best = max(controls, key=lambda arm: arm.mean.balanced_accuracy or 0.0)
    assert [arm.name for arm in pair(arms)] == [best.name, PRIMARY]
    assert [arm.name for arm in pair(controls)] == [best.name]


def test_without_results_the_command_is_named() -> None:
    assert "imbdiff classify RUN" in text_of(section(fake.minimal()))


def test_the_table_of_classes_starts_with_the_smallest(data: ReportData, arms: list[Arm]) -> None:
    rows = tables(section(data))[-1]
    low, high = (arm.mean.per_class[9] or 0.0 for arm in pair(arms))
    assert rows[0][:3] == ["9", "few", "2"]
    assert [cell.split(" ")[0] for cell in rows[0][3:5]] == [f"{low:.2f}", f"{high:.2f}"]
    assert rows[0][5] == points(high - low)


def test_recalls_are_those_of_the_classes_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = fake.trained(ClassStats(tuple("abcd"), (3, 110, 46, 8)))
    calls: list[Any] = []
    original = module.class_plot
    monkeypatch.setattr(module, "class_plot", lambda *given: calls.append(given) or original(*given))
    section(data)
    ((classes, (panel,)),) = calls
    assert (classes.order, classes.counts) == ([1, 2, 3, 0], [110, 46, 8, 3])
    assert classes.group == [data.group(k) for k in classes.order]
    for arm, series in zip(pair(arms_of(data.classifier)), (panel.real, panel.synthetic), strict=True):
        mean, sd = (np.array([s.per_class[k] for k in classes.order], float) for s in (arm.mean, arm.sd))
        np.testing.assert_allclose(series, [mean, np.maximum(mean - sd, 0), np.minimum(mean + sd, 1)])
    _, axes = axes_of(monkeypatch, lambda: original(classes, [panel]))
    shown = {line.get_marker(): line.get_ydata().tolist() for line in axes.lines if line.get_marker() in ("o", "D")}
    assert shown == {"D": panel.real[0].tolist(), "o": panel.synthetic[0].tolist()}


def test_the_plot_of_arms_has_a_panel_for_each_scope(arms: list[Arm], monkeypatch: pytest.MonkeyPatch) -> None:
    panels = axes_of(monkeypatch, lambda: accuracy_plot(arms, ["all", "few"]))
    for axes, scope in zip(panels, ("all", "few"), strict=True):
        means = [
            line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 6 and len(line.get_xdata()) == 1
        ]
        assert means == [value_of(arm.mean, scope) for arm in arms]
    names = [t.get_text() for t in panels[0].get_yticklabels()]
    assert [name.replace("\n", " ") for name in names] == [arm.name for arm in arms], "two arms must not look alike"
    assert max(len(line) for name in names for line in name.split("\n")) <= LINE
    heights = -np.diff(panels[0].get_yticks())
    kinds = [a.kind != b.kind for a, b in pairwise(arms)]
    assert heights.min() >= 1
    assert kinds.count(True) == len({arm.kind for arm in arms}) - 1
    first = kinds.index(True)
    assert heights[first] > heights[:first].max()


def test_hostile_names_stay_text(data: ReportData) -> None:
    found = copy.deepcopy(dict(data.classifier or {}))
    found["arms"][-1]["name"] = found["verdict"]["primary"] = found["control"]["chosen_by"] = HOSTILE[0]
    found["arms"][-1]["recipe"] = found["verdict"]["sentence"] = HOSTILE[8]
    hostile = replace(data, stats=ClassStats(HOSTILE, data.stats.counts), classifier=found)
    for shown in (section(hostile), Section("v", "Verdict", verdict(found, "RUN"))):
        check_page(page_of(shown))
    assert text_of(section(hostile)).count(HOSTILE[0]) >= 4


@pytest.mark.parametrize("n", [0, 1, 19, 20])
def test_a_group_of_few_test_images_has_no_accuracy(data: ReportData, found: dict[str, Any], n: int) -> None:
    protocol = {**found["protocol"], "n_test_groups": {"many": 90, "medium": 90, "few": n}}
    shown = section(replace(data, classifier={**found, "protocol": protocol}))
    row = row_of(shown, "balanced softmax best control")
    assert ("±" in row[5]) == (n >= 20)
    assert (f"{n} test image" in row[5]) == (n < 20)
    assert "±" in row[3]
