"""What classifiers recognise, on the page: columns, plots, steps and the table of classes."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.recognition.arms import ARMS, PRIMARY
from imbdiff.recognition.scores import scores, spread
from imbdiff.recognition.verdict import choose_control, verdict
from imbdiff.reporting import plots, recognised_plots, tables
from imbdiff.reporting.compare import build_comparison
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.recognised import MAX_ROWS, MAX_SINGLE, pair, recognised
from imbdiff.reporting.recognised_plots import stretches
from imbdiff.reporting.report import build_report

from . import fake


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawing of plots out."""
    monkeypatch.setattr(plots, "render", lambda draw, size, theme: "data:image/png;base64,AA==")


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def section(html: str) -> str:
    return html[html.index('id="classifier"') : html.index('id="metrics"')]


def trained(
    counts: tuple[int, ...] = fake.COUNTS,
    per_class: int = 30,
    seeds: int = 3,
    best: bool = True,
    controls: bool = False,
) -> ReportData:
    """Real results of made-up networks: the rarer the class, the worse, less so with synthetic images; too sure."""
    c, random = len(counts), np.random.default_rng(4)
    stats = ClassStats(tuple(f"class {k}" if c > 10 else str(k) for k in range(c)), counts)
    groups = Groups.default(stats)
    labels = np.repeat(np.arange(c), per_class)
    test = ImageSet(np.zeros((len(labels), 2, 2, 1), np.uint8), labels, stats.names)
    size = np.log(np.array(counts) + 1) / np.log(max(counts) + 1)

    def network(arm: Any, lift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        p = np.clip(0.5 + 0.45 * size + lift + 0.1 * arm.needs_synthetic * (1 - size), 0, 0.99)[labels]
        right = random.random(len(labels)) < p
        return np.where(right, labels, (labels + 1) % c), np.clip(p + random.normal(0.08, 0.1, len(p)), 1 / c, 1)

    def scored(made: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
        return scores(made[0], labels, groups, (True,) * c, made[1])

    rows, predictions = [], {}
    for arm in ARMS:
        made = [network(arm) for _ in range(seeds)]
        predictions[arm.name] = np.array([one[0] for one in made])
        runs = [{"seed": i, **scored(one), "val": None, "best": None} for i, one in enumerate(made)]
        if best:
            for i, run in enumerate(runs):
                run["best"] = {"step": 300 + 50 * i, **scored(network(arm, 0.02)), "val": None}
        val = {"balanced_accuracy": 0.5 + 0.1 * (arm.recipe == "balanced-softmax")}
        rows.append({**arm.to_json(), "runs": runs, **spread(runs), "val": val})
    control = choose_control(rows, None if controls else test, (True,) * c)
    made_of = [arm.name for arm in ARMS if arm.needs_synthetic]
    judged = verdict(predictions, test, groups, (True,) * c, control, PRIMARY, made_of)
    found = {"protocol": {"steps": 500, "n_test": len(test)}, "arms": rows, "control": control, "verdict": judged}
    return replace(fake.minimal(stats), groups=groups, classifier=found)


def older(data: ReportData) -> ReportData:
    """The same results as versions before wrote them."""
    found = copy.deepcopy(dict(data.classifier or {}))
    new = ("group_sd", "macro_f1", "macro_precision", "ece", "ece_chance", "ece_by_group", "reliability", "best")
    for arm in found["arms"]:
        arm.pop("recipe"), arm.pop("use")
        for block in (arm["mean"], arm["sd"], *arm["runs"]):
            for key in new:
                block.pop(key, None)
    del found["verdict"]["no_loss"]
    for block in (found["verdict"]["per_group"], *found["verdict"]["other_arms"].values()):
        for row in block.values():
            for key in ("corrected", "p", "p_adjusted"):
                row.pop(key)
    return replace(data, classifier=found)


def test_columns_are_those_that_the_field_reports(quick: None) -> None:
    data = trained()
    html = section(build_report(data))
    heads = re.search(r"<thead><tr><th>arm</th>(.*?)</tr>", html)
    assert heads is not None
    assert re.findall(r">([^<]+)</th>", heads[1]) == [
        "all (top-1)", "mean over classes", "many", "medium", "few", "Std of groups ↓", "macro-F1", "ECE ↓",
    ]  # fmt: skip
    assert data.classifier is not None
    arm = data.classifier["arms"][2]
    for key in ("accuracy", "balanced_accuracy", "group_sd", "macro_f1", "ece"):
        assert f"{arm['mean'][key]:.3f} ± {arm['sd'][key]:.3f}" in words(html)
    assert "counts every test image of its classes once" in words(html)
    assert "balanced-softmax, prior: train" in words(html)
    assert html.count('title="synthetic images: ') == 2


def test_results_of_earlier_versions_still_make_a_page(quick: None) -> None:
    old = older(trained())
    html = section(build_report(old))
    text = words(html)
    for new in ("Std of groups", "macro-F1", "ECE", "Last step", "as often as it is sure", "declared beforehand."):
        assert new not in text
    assert "exploratory" in text
    assert "corrected" not in text.replace("corrected for", "")
    assert "Recall of each class" in text  # per-class accuracies were there
    # and those without accuracies of classes
    assert "Recall of each class" not in words(section(build_report(fake.full())))
    assert recognised(fake.minimal()) is None


def test_every_comparison_says_what_kind_it_is(quick: None) -> None:
    data = trained()
    assert data.classifier is not None
    judged = data.classifier["verdict"]
    found = tables.verdict(data.classifier)
    assert found is not None
    assert [row.kind for row in found.outcomes] == ["declared beforehand"] + ["corrected"] * 3
    assert {row.kind for row in found.others} == {"corrected"}
    unmeasured = {"outcome": "not measured", "reason": "3 test images", "n": 3, "corrected": True}
    few = tables.verdict({"verdict": {**judged, "per_group": {**judged["per_group"], "few": unmeasured}}})
    assert few is not None
    assert [row.kind for row in few.outcomes] == ["declared beforehand", "corrected", "corrected", "–"]
    html = build_report(data)
    text = words(section(html))
    assert text.count("declared beforehand") == 1
    p = judged["other_arms"]["synthetic + CE"]["few"]["p_adjusted"]
    assert f"{tables.number(p)} corrected" in text
    start = tables.points(judged["no_loss"]["low"])
    assert f"(the interval starts at {start})" in words(html)


@pytest.mark.parametrize(("low", "said"), [(-0.004, "is ruled out"), (-0.02, "overall is not ruled out")])
def test_whether_anything_is_lost_overall_is_said(low: float, said: str) -> None:
    block = {"sentence": "s", "no_loss": {"margin": 0.01, "shown": low > -0.01, "low": low}}
    found = tables.verdict({"verdict": block})
    assert found is not None
    assert f"{said} (the interval starts at {tables.points(low)})" in found.no_loss


def test_last_and_best_step_stand_apart(quick: None) -> None:
    data = trained()
    shown = recognised(data)
    assert shown is not None
    assert data.classifier is not None
    assert len(shown.steps) == 2 * len(ARMS)
    assert [which for _, which, _ in shown.steps[:2]] == ["last: step 500", "best by validation: steps 300 to 400"]
    arm = data.classifier["arms"][0]
    for row, blocks in ((shown.steps[0], arm["runs"]), (shown.steps[1], [run["best"] for run in arm["runs"]])):
        few = [block["groups"]["few"] for block in blocks]
        assert [cell.value for cell in row[2]][-1] == f"{np.mean(few):.3f}"
        assert row[2][-1].aside == f"± {np.std(few, ddof=1):.3f}"
    assert shown.steps[0][2] != shown.steps[1][2]
    assert shown.step_columns == ["all (top-1)", "mean over classes", "few"]
    assert "Last step, and the best by validation" in words(build_report(data))
    without = recognised(trained(best=False))
    assert without is not None
    assert without.steps == []


def test_the_arms_shown_are_the_control_and_the_judged_one() -> None:
    chosen, why = pair(trained().classifier or {})
    assert [arm["name"] for arm in chosen] == ["balanced softmax", PRIMARY]
    assert why == ""
    several = trained(controls=True).classifier or {}
    chosen, why = pair(several)
    best = max(several["arms"][:3], key=lambda arm: arm["mean"]["balanced_accuracy"])
    assert [arm["name"] for arm in chosen] == [best["name"], PRIMARY]
    assert "for these pictures only" in why
    real = {**several, "arms": several["arms"][:3]}
    assert len(pair(real)[0]) == 1


def test_the_table_of_classes_starts_with_the_smallest(quick: None) -> None:
    data = trained()
    shown = recognised(data)
    assert shown is not None
    assert data.classifier is not None
    name, group, n, cells, gap = shown.classes[0]
    assert (name, group, n) == ("9", "few", "2")
    control, judged = (
        next(a for a in data.classifier["arms"] if a["name"] == x) for x in ("balanced softmax", PRIMARY)
    )
    values = [arm["mean"]["per_class"][9] for arm in (control, judged)]
    assert [cell.value for cell in cells] == [f"{v:.3f}" for v in values]
    assert gap == tables.points(values[1] - values[0])
    assert shown.hidden == 0
    assert not shown.binned


def test_many_classes_are_drawn_in_stretches_and_the_cap_is_said(quick: None) -> None:
    counts = tuple(1 + (k * 37) % 400 for k in range(MAX_SINGLE + 50))
    data = trained(counts, per_class=4, seeds=2, best=False)
    shown = recognised(data)
    assert shown is not None
    assert shown.binned
    assert len(shown.classes) == MAX_ROWS
    assert shown.classes[0][2] == str(min(counts))
    html = section(build_report(data))
    assert "(the 200 smallest of 250)" in words(html)
    assert "band: 10th to 90th percentile" in words(html)
    assert len(html) < 120_000


def test_stretches_hold_equally_many_classes() -> None:
    counts = np.arange(1000, 0, -1)
    values = counts / 1000
    values[::7] = np.nan
    at, mean, (low, high) = stretches(counts, values)
    assert len(at) == 20
    known = np.flatnonzero(np.isfinite(values))
    first = known[: len(known) // 20 + 1]
    assert mean[0] == pytest.approx(values[first].mean(), abs=1e-3)
    assert at[0] == pytest.approx(np.exp(np.log(counts[first]).mean()), rel=1e-3)
    assert (low < mean).all()
    assert (mean < high).all()
    assert (np.diff(at) < 0).all()


def _drawn(figure_of: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes that a plot draws, wide, in light colours."""
    from matplotlib.figure import Figure

    made: list[Figure] = []

    def keep(draw: Any, size: tuple[int, int], theme: Any) -> str:
        figure = Figure(figsize=(size[0] / 96, size[1] / 96))
        draw(figure, theme)
        made.append(figure)
        return ""

    monkeypatch.setattr(plots, "render", keep)
    figure_of()
    return list(made[-2].axes)


def test_recall_stands_at_the_training_images_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.array([100, 40, 10, 2])
    value = np.array([0.9, 0.8, np.nan, 0.1])
    arms = [
        recognised_plots.Recalls("a", False, value, np.full(4, 0.05)),
        recognised_plots.Recalls("b", True, value + 0.1, np.full(4, 0.2)),
    ]
    (axes,) = _drawn(
        lambda: recognised_plots.recall_plot(arms, counts, ["many", "many", "few", "few"], False), monkeypatch
    )
    assert axes.get_xscale() == "log"
    points = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    assert [line.get_marker() for line in points] == ["D", "o"]
    for line, arm in zip(points, arms, strict=True):
        np.testing.assert_allclose(line.get_xdata(), counts, rtol=0.03)
        np.testing.assert_array_equal(line.get_ydata(), arm.value)
    assert (points[0].get_xdata() < points[1].get_xdata()).all()
    bars = axes.collections[1].get_segments()
    assert bars[0][1][1] == 1  # 1.0 + 0.2 is no recall
    assert bars[-1][:, 1] == pytest.approx([0, 0.4])
    assert {text.get_text() for text in axes.texts} == {"many", "few"}


def test_reliability_is_drawn_where_the_confidence_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    empty: dict[str, Any] = {"n": 0, "confidence": None, "accuracy": None}
    bins = [empty, {"n": 30, "confidence": 0.62, "accuracy": 0.4}, {"n": 10, "confidence": 0.9, "accuracy": 1.0}]
    panel = recognised_plots.Calibration("CE", False, bins, 0.19, 0.05)
    above, below = _drawn(lambda: recognised_plots.reliability_plot([panel]), monkeypatch)
    np.testing.assert_allclose(above.collections[-1].get_offsets(), [(0.62, 0.4), (0.9, 1.0)])
    assert [round(bar.get_x() + bar.get_width() / 2, 3) for bar in above.patches] == [0.5, 0.833]
    assert [bar.get_height() for bar in below.patches] == [0.75, 0.25]
    assert above.get_title(loc="left") == "CE\nECE 0.190 (by chance alone 0.050)"


def test_compared_runs_share_only_what_all_of_them_have(quick: None) -> None:
    new = trained()
    both = words(build_comparison([new, replace(new, title="other")]))
    assert new.classifier is not None
    arm = new.classifier["arms"][0]
    for scope, key in (("mean over classes", "balanced_accuracy"), ("Std of groups", "group_sd"), ("ECE", "ece")):
        value = f"{arm['mean'][key]:.3f} ± {arm['sd'][key]:.3f}"
        assert f"{scope} {value} {value}" in both
    mixed = words(build_comparison([new, replace(older(new), title="other")]))
    assert "mean over classes" in mixed
    for scope in tables.EXTRAS:
        assert scope not in mixed
    # a run without classifiers takes nothing away
    assert "macro-F1" in words(build_comparison([new, replace(fake.minimal(), title="other")]))


def test_a_group_called_like_a_number_keeps_its_accuracy() -> None:
    block = {"accuracy": 0.5, "ece": 0.1, "groups": {"ECE": 0.7}}
    assert tables.of_scope(block, "ECE") == 0.7
    assert tables.of_scope({**block, "groups": {}}, "ECE") == 0.1


def test_hostile_names_stay_text(quick: None) -> None:
    data = trained((30, 20, 10))
    names = ("<b>x</b>", "{{ 1 }}", "y" * 300)
    found = copy.deepcopy(dict(data.classifier or {}))
    found["arms"][-1]["name"] = found["verdict"]["primary"] = "<i>arm</i>"
    found["arms"][-1]["recipe"] = "<script>"
    html = build_report(replace(data, stats=ClassStats(names, data.stats.counts), classifier=found))
    for tag in ("<b>x", "<i>arm", "<script>,"):
        assert tag not in html
    assert html.count("&lt;i&gt;arm&lt;/i&gt;") >= 3


def test_the_plot_gets_classes_from_the_largest_to_the_smallest(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    from imbdiff.reporting import recognised as module

    counts = (3, 110, 46, 8)
    data = trained(counts, best=False)
    seen: list[Any] = []
    monkeypatch.setattr(module, "recall_plot", lambda *args, **options: seen.append((*args, options)))
    recognised(data)
    ((arms, ordered, group, options),) = seen
    assert ordered.tolist() == [110, 46, 8, 3]
    assert group == [data.groups.names[data.groups.of_class[k]] for k in (1, 2, 3, 0)]
    assert not options["binned"]
    for arm, name in zip(arms, ("balanced softmax", PRIMARY), strict=True):
        found = next(a for a in (data.classifier or {})["arms"] if a["name"] == name)
        assert arm.value.tolist() == [found["mean"]["per_class"][k] for k in (1, 2, 3, 0)]
        assert arm.sd.tolist() == [found["sd"]["per_class"][k] for k in (1, 2, 3, 0)]
