"""What classifiers recognise, on the page: the verdict, columns, plots, steps and the table of classes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imbdiff.data.stats import ClassStats
from imbdiff.recognition.arms import ARMS, PRIMARY
from imbdiff.reporting import classifier as module
from imbdiff.reporting.blocks import Section, Table
from imbdiff.reporting.classifier import (
    EXTRAS,
    MAX_ROWS,
    classifiers,
    judged_outcomes,
    no_loss,
    of_scope,
    outcomes,
    pair,
    points,
    verdict,
    verdict_sentence,
)  # fmt: skip
from imbdiff.reporting.compare import arm_rows
from imbdiff.reporting.content import ReportData

from . import fake
from .looking import HOSTILE, axes_of, blocks_of, check_page, section_page, tables, text_of


@pytest.fixture(scope="module")
def data() -> ReportData:
    return fake.trained()


@pytest.fixture(scope="module")
def found(data: ReportData) -> dict[str, Any]:
    assert data.classifier is not None
    return dict(data.classifier)


def section(data: ReportData) -> Section:
    return classifiers(data, "RUN")


@pytest.mark.parametrize(
    ("results", "tone"),
    [(("helped", "no difference"), "good"), (("hurt", "no difference"), "bad"), (("helped", "hurt"), "mixed"),
     (("no difference", "not measured"), "same"), (("not measured", "not measured"), "none")],
)  # fmt: skip
def test_tone_of_the_verdict_follows_its_groups(results: tuple[str, str], tone: str) -> None:
    groups = dict(zip("ab", ({"outcome": o, "difference": 0.0} for o in results), strict=True))
    assert verdict_sentence({"verdict": {"sentence": "s", "per_group": groups}}) == ("s", tone)
    assert verdict_sentence(None)[0] == ""


def test_scopes_not_measured_say_why() -> None:
    rows = {"all": {"outcome": "no difference", "difference": -0.038, "low": -0.061, "high": -0.014},
            "few": {"outcome": "not measured", "difference": None, "n": 13, "reason": "13 test images"}}  # fmt: skip
    whole, few = outcomes("arm", rows)
    assert whole.difference == "−3.8 (−6.1 to −1.4)"
    assert (few.difference, few.kind) == ("13 test images", "–")


def test_every_comparison_says_what_kind_it_is(data: ReportData, found: dict[str, Any]) -> None:
    judged = found["verdict"]
    assert [row.kind for row in judged_outcomes(found)] == ["declared beforehand"] + ["corrected"] * 3
    assert {row.kind for row in outcomes("synthetic + CE", judged["other_arms"]["synthetic + CE"])} == {"corrected"}
    assert [row.kind for row in outcomes("x", {"all": {"outcome": "helped"}})] == ["exploratory"]
    rows = next(t for t in tables(section(data)) if t[0][-1] == "declared beforehand")
    p = judged["other_arms"]["synthetic + CE"]["few"]["p_adjusted"]
    row = next(row for row in rows if row[:2] == ["synthetic + CE", "few"])
    assert row[-2:] == [module.number(p), "corrected"]


@pytest.mark.parametrize(("low", "said"), [(-0.004, "is ruled out"), (-0.02, "overall is not ruled out")])
def test_whether_anything_is_lost_overall_is_said(low: float, said: str) -> None:
    text = no_loss({"no_loss": {"margin": 0.01, "shown": low > -0.01, "low": low}})
    assert f"{said} (the interval starts at {points(low)})" in text


def test_columns_are_those_that_the_field_reports(data: ReportData, found: dict[str, Any]) -> None:
    table = blocks_of(section(data), Table)[0]
    heads = [head if isinstance(head, str) else head.text for head in table.columns]
    assert heads == [
        "arm", "all (top-1)", "mean over classes", "many", "medium", "few", "Std of groups ↓", "macro-F1", "ECE ↓"
    ]  # fmt: skip
    row, arm = tables(section(data))[0][2], found["arms"][2]
    for i, key in ((1, "accuracy"), (2, "balanced_accuracy"), (6, "group_sd"), (7, "macro_f1"), (8, "ece")):
        assert row[i] == f"{arm['mean'][key]:.3f} ± {arm['sd'][key]:.3f}"
    few = [run["groups"]["few"] for run in arm["runs"]]
    assert row[5] == f"{np.mean(few):.3f} ± {np.std(few, ddof=1):.3f}"
    assert row[0] == "balanced softmax best control balanced-softmax, prior: train"
    assert tables(section(data))[0][-1][0].startswith(f"{PRIMARY} synthetic, judged")
    styles = [getattr(one, "style", "") for one in table.rows]
    assert [i for i, style in enumerate(styles) if style == "control"] == [2]


def test_a_group_called_like_a_number_keeps_its_accuracy() -> None:
    block = {"accuracy": 0.5, "ece": 0.1, "groups": {"ECE": 0.7}}
    assert of_scope(block, "ECE") == 0.7
    assert of_scope({**block, "groups": {}}, "ECE") == 0.1


def test_several_controls_are_all_marked_where_none_was_chosen() -> None:
    found = fake.classifier()
    names = [arm["name"] for arm in found["arms"] if not arm["needs_synthetic"]]
    found["control"] = {"arm": None, "arms": names, "chosen_by": "no validation images", "scores": {}}
    shown = section(replace(fake.minimal(), classifier=found))
    assert [getattr(row, "style", "") for row in blocks_of(shown, Table)[0].rows] == ["control"] * 3 + [""] * 2
    assert "Every arm without synthetic images is to be beaten (no validation images)" in text_of(shown)


def test_numbers_that_were_not_computed_are_left_out() -> None:
    text = text_of(section(fake.full()))  # accuracies alone
    for other in ("Std of groups", "macro-F1", "ECE", "Last step", "as often as it is sure", "Recall of each class"):
        assert other not in text
    assert "imbdiff classify RUN" in text_of(section(fake.minimal()))


def test_last_and_best_step_are_apart(data: ReportData, found: dict[str, Any]) -> None:
    rows = next(t for t in tables(section(data)) if t[0][1].startswith("last: step"))
    assert len(rows) == 2 * len(ARMS)
    assert [row[1] for row in rows[:2]] == ["last: step 500", "best by validation: steps 300 to 400"]
    arm = found["arms"][0]
    for row, blocks in ((rows[0], arm["runs"]), (rows[1], [run["best"] for run in arm["runs"]])):
        few = [block["groups"]["few"] for block in blocks]
        assert row[-1] == f"{np.mean(few):.3f} ± {np.std(few, ddof=1):.3f}"
    assert rows[0][2:] != rows[1][2:]
    assert "Last step" not in text_of(section(fake.trained(best=False)))


def test_the_arms_shown_are_the_control_and_the_judged_one(found: dict[str, Any]) -> None:
    chosen, why = pair(found)
    assert [arm["name"] for arm in chosen] == ["balanced softmax", PRIMARY]
    assert why == ""
    several = fake.trained(controls=True).classifier or {}
    chosen, why = pair(several)
    best = max(several["arms"][:3], key=lambda arm: arm["mean"]["balanced_accuracy"])
    assert [arm["name"] for arm in chosen] == [best["name"], PRIMARY]
    assert "for these pictures only" in why
    assert len(pair({**several, "arms": several["arms"][:3]})[0]) == 1


def test_the_table_of_classes_starts_with_the_smallest(data: ReportData, found: dict[str, Any]) -> None:
    rows = tables(section(data))[-1]
    values = [arm["mean"]["per_class"][9] for arm in pair(found)[0]]
    assert rows[0][:3] == ["9", "few", "2"]
    assert [cell.split(" ")[0] for cell in rows[0][3:5]] == [f"{v:.2f}" for v in values]
    assert rows[0][5] == points(values[1] - values[0])


def test_many_classes_have_running_means_and_the_cap_is_said() -> None:
    counts = tuple(1 + (k * 37) % 400 for k in range(MAX_ROWS + 50))
    shown = section(fake.trained(counts, per_class=4, seeds=2, best=False))
    rows = tables(shown)[-1]
    assert (len(rows), rows[0][2]) == (MAX_ROWS, str(min(counts)))
    text = text_of(shown)
    assert "(the 200 smallest of 250)" in text
    assert "lines: running means" in text
    assert len(section_page(shown)) < 120_000


def test_recalls_are_those_of_the_classes_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = fake.trained((3, 110, 46, 8), best=False)
    views: list[Any] = []
    original = module.class_plot
    monkeypatch.setattr(module, "class_plot", lambda view: views.append(view) or original(view))
    section(data)
    (view,) = views
    assert (view.order, view.counts) == ([1, 2, 3, 0], [110, 46, 8, 3])
    assert view.group == [data.group(k) for k in view.order]
    (panel,) = view.panels
    for arm, series in zip(pair(data.classifier or {})[0], (panel.real, panel.synthetic), strict=True):
        mean, sd = (np.array([arm[key]["per_class"][k] for k in view.order]) for key in ("mean", "sd"))
        np.testing.assert_allclose(series.value, mean)
        np.testing.assert_allclose(series.high, np.minimum(mean + sd, 1))
        np.testing.assert_allclose(series.low, np.maximum(mean - sd, 0))
    _, axes = axes_of(monkeypatch, lambda: original(view))
    shown = {line.get_marker(): line.get_ydata().tolist() for line in axes.lines if line.get_marker() in ("o", "D")}
    assert shown == {"D": panel.real.value.tolist(), "o": panel.synthetic.value.tolist()}
    assert module.recall_of({"mean": {"per_class": [None] * 4}}, range(4)) is None


def test_reliability_is_where_the_confidence_is(monkeypatch: pytest.MonkeyPatch) -> None:
    empty: dict[str, Any] = {"n": 0, "confidence": None, "accuracy": None}
    bins = [empty, {"n": 30, "confidence": 0.62, "accuracy": 0.4}, {"n": 10, "confidence": 0.9, "accuracy": 1.0}]
    arm = {"name": "CE", "mean": {"reliability": bins, "ece": 0.19, "ece_chance": 0.05}}
    above, below = axes_of(monkeypatch, lambda: module.reliability_plot([arm]))
    np.testing.assert_allclose(above.collections[-1].get_offsets(), [(0.62, 0.4), (0.9, 1.0)])
    assert [round(bar.get_x() + bar.get_width() / 2, 3) for bar in above.patches] == [0.5, 0.833]
    assert [bar.get_height() for bar in below.patches] == [0.75, 0.25]
    assert above.get_title(loc="left") == "CE\nECE 0.190 (by chance alone 0.050)"


def test_the_plot_of_arms_has_a_panel_for_each_scope(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    panels = axes_of(monkeypatch, lambda: module.accuracy_plot(found, ["all", "few"]))
    for axes, scope in zip(panels, ("all", "few"), strict=True):
        means = [
            line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 6 and len(line.get_xdata()) == 1
        ]
        assert means == [of_scope(arm["mean"], scope) for arm in found["arms"]]
    assert [t.get_text() for t in panels[0].get_yticklabels()] == [arm["name"][:30] for arm in found["arms"]]


def test_compared_runs_share_only_what_all_of_them_have(data: ReportData, found: dict[str, Any]) -> None:
    arm = found["arms"][0]
    lines = {(name, scope): cells for name, scope, cells in arm_rows([data, replace(data, title="other")])}
    for scope, key in (("mean over classes", "balanced_accuracy"), ("Std of groups", "group_sd"), ("ECE", "ece")):
        assert [cell.text for cell in lines[arm["name"], scope].values()] == [f"{arm['mean'][key]:.3f}"] * 2
    scopes = {scope for _, scope, _ in arm_rows([data, fake.full()])}
    assert "mean over classes" in scopes
    assert not scopes & set(EXTRAS)
    # a run without classifiers takes nothing away
    assert "macro-F1" in {scope for _, scope, _ in arm_rows([data, fake.minimal()])}


def test_hostile_names_stay_text() -> None:
    data = fake.trained((30, 20, 10))
    found = copy.deepcopy(dict(data.classifier or {}))
    found["arms"][-1]["name"] = found["verdict"]["primary"] = found["control"]["chosen_by"] = HOSTILE[0]
    found["arms"][-1]["recipe"] = found["verdict"]["sentence"] = HOSTILE[8]
    data = replace(data, stats=ClassStats(HOSTILE[-3:], data.stats.counts), classifier=found)
    for shown in (section(data), Section("v", "Verdict", verdict(data, "RUN"))):
        check_page(section_page(shown))
    assert text_of(section(data)).count(HOSTILE[0]) >= 4
